"""`make run OBSERVE=1`: Prometheus beside the stack, which the dashboard's queries and the alerts are put to."""

import os
import re
from pathlib import Path

import httpx
import pytest

from devstack.prometheus import find_prometheus
from tests.integration.devstack.runs import a_run, is_gone
from tests.support.monitoring import alerts, dashboard_expressions
from tests.support.prometheus_api import asking
from tests.support.receiver import receiving
from tests.support.service import Service
from tests.support.waiting import eventually
from timemachine.metrics import METRICS

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        find_prometheus(os.environ) is None,
        reason="no prometheus here (Debian: apt-get install prometheus; macOS: brew install prometheus)",
    ),
]

ADDRESS = re.compile(r"^ *(API|Prometheus) +(http://[\d.:]+)", re.MULTILINE)
OURS = {metric.name for metric in METRICS}


async def test_prometheus_has_all_that_the_dashboard_and_the_alerts_ask_for(tmp_path: Path) -> None:
    async with a_run(tmp_path, "--observe") as run:
        await run.until("timemachine ready: ")
        address = dict(ADDRESS.findall(run.output))
        parts = run.parts()
        assert set(parts) == {"Postgres", "Temporal", "API", "worker", "Prometheus"}
        await deliver_one(address["API"])
        async with asking(address["Prometheus"]) as prometheus:
            up = {"timemachine-api": "up", "timemachine-worker": "up"}
            await eventually(prometheus.targets, lambda targets: targets == up)
            # Of a histogram only its buckets, sum and count have names there.
            await eventually(prometheus.names, lambda names: names | {family(name) for name in names} >= OURS)
            for expression in dashboard_expressions():
                await prometheus.query(expression)
            known = {alert.name: "ok" for alert in alerts()}
            await eventually(prometheus.rules, lambda rules: rules == known)
        assert await run.stop() == 0
    assert all(is_gone(part) for part in parts.values())


async def test_prometheus_that_dies_stops_the_others(tmp_path: Path) -> None:
    async with a_run(tmp_path, "--observe") as run:
        await run.until("timemachine ready: ")
        parts = run.parts()
        parts["Prometheus"].kill()
        assert await run.end() == 1
    assert "Prometheus was killed by signal 9" in run.output
    assert all(is_gone(part) for part in parts.values())


def family(name: str) -> str:
    return re.sub(r"_(bucket|sum|count)$", "", name)


async def deliver_one(api_url: str) -> None:
    """Have something to count for each metric."""
    async with httpx.AsyncClient(base_url=api_url, timeout=30) as http, receiving() as receiver:
        service = Service(http, "observed")
        await service.add_route(receiver.url)
        await service.wait_for_state(await service.create(0), "delivered")

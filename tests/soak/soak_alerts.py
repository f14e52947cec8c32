"""A real Prometheus watches a stack while its parts die: each alert that should fire does, and no other one."""

import asyncio
import os
import re
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import msgspec
import pytest

from devstack.prometheus import Watch, find_prometheus
from devstack.stack import Stack, local_stack
from tests.soak.cluster import kill
from tests.soak.report import table
from tests.soak.size import size
from tests.support.monitoring import RULES
from tests.support.prometheus_api import PrometheusApi, asking
from tests.support.receiver import Received, Receiver, receiving, response
from tests.support.service import Service
from tests.support.waiting import eventually
from timemachine.settings import Settings

ROUNDS = size("ALERTS_ROUNDS", smoke=1, full=5)
FASTER = 30
"""How many times shorter the waits and windows of the rules are."""
SHORTEST_WINDOW_MS = 5_000
"""Of a rate, which needs some scrapes."""
QUIET_FOR = 30.0
"""Seconds in which nothing may fire of a service that is well."""
LIMIT = 120.0
"""Seconds within which what should fire does, and within which all is quiet again."""
LATE_JOBS_KNOWN = 25.0
"""Seconds after which a count tells whether jobs of a fault are overdue, which they are from 20 s on."""

RATE = 5.0
"""Jobs a second."""
ANSWER_AFTER = 1.0
"""Seconds: some attempts are in flight at each moment."""

_MS = {"s": 1000, "m": 60_000, "h": 3_600_000}
_WAIT = re.compile(r"(?<=for: )(\d+)([smh])")
_WINDOW = re.compile(r"(?<=[\[:])(\d+)([smh])(?=[\]:])|(?<=offset )(\d+)([smh])")


def shortened(rules: str, by: int = FASTER) -> str:
    """Return rules whose waits, windows and offsets are shorter. Thresholds stay."""

    def shorter(found: re.Match[str], shortest: int = 0) -> str:
        number, unit = [part for part in found.groups() if part]
        return f"{max(int(number) * _MS[unit] // by, shortest)}ms"

    return _WINDOW.sub(lambda found: shorter(found, SHORTEST_WINDOW_MS), _WAIT.sub(shorter, rules))


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that fails, and what it makes fire, without `Timemachine` before the names."""

    name: str
    part: str = ""
    """What is killed of the stack, or cuts its connections if it is the receiver. Nothing by default."""
    must: frozenset[str] = frozenset()
    may: frozenset[str] = frozenset()
    """What follows from it by how long it lasts and by chance, and what is seen when all are back."""


LATE = frozenset({"JobsLate", "JobsOverdue", "TasksWait"})
"""Jobs that came due meanwhile are late, and so were their tasks."""

FAULTS = (
    Fault(name="nothing"),
    Fault(name="worker killed", part="worker", must=frozenset({"NoWorker", "ProcessDown"}), may=LATE),
    Fault(name="receiver dies", part="receiver", must=frozenset({"ReceiversFailing", "JobsFailing"})),
    Fault(
        name="Postgres killed",
        part="postgres",
        must=frozenset({"PostgresUnanswered", "ApiFailing", "OutcomesNotWritten"}),
        may=LATE | {"ApiSlow", "PostgresPoolBusy"},
    ),
    Fault(
        name="Temporal killed",
        part="temporal",
        must=frozenset({"TemporalUnanswered", "ApiFailing"}),
        may=LATE | {"ApiSlow"},
    ),
    Fault(
        name="API killed",
        part="api",
        must=frozenset({"NoApi", "ProcessDown"}),
        may=frozenset({"ApiSlow"}),  # a process that has just begun is asked by all at once
    ),
)


class Watched:
    """The stack under a load, with its Prometheus and its receiver."""

    def __init__(self, stack: Stack, prometheus: PrometheusApi, receiver: Receiver) -> None:
        self.prometheus = prometheus
        self._stack = stack
        self._receiver = receiver

    @asynccontextmanager
    async def suffering(self, fault: Fault) -> AsyncIterator[None]:
        """Have something fail meanwhile."""
        if fault.part == "receiver":
            self._receiver.answer = hang_up
            yield
            self._receiver.answer = take_slowly
        elif fault.part:
            part = self._stack.parts[fault.part]
            kill(part)
            yield
            await part.restart()
        else:
            yield

    async def is_quiet(self, *, since: float) -> bool:
        """Return whether nothing fires, nor will for jobs that a fault before this time has made late."""
        if await self.firing():
            return False
        known_at = since + LATE_JOBS_KNOWN
        counted = f"timemachine_jobs_overdue == 0 and timemachine_counted_timestamp_seconds > {known_at}"
        return bool(await self.prometheus.query(counted))

    async def firing(self) -> set[str]:
        return {name.removeprefix("Timemachine") for name in await self.prometheus.firing()}


async def take_slowly(_: Received) -> bytes:
    await asyncio.sleep(ANSWER_AFTER)
    return response(200)


async def hang_up(_: Received) -> bytes:
    raise ConnectionResetError


@asynccontextmanager
async def watched(folder: Path, logs: Path) -> AsyncIterator[Watched]:
    """Run a stack, whatever this process's environment says, with rules that are shortened, and jobs all the time."""
    rules = logs / "rules.yml"
    rules.write_text(shortened(RULES.read_text()))
    settings = Settings(
        data_dir=str(folder),
        http_port=0,
        temporal_port=0,
        temporal_ui_port=0,
        temporal_cli=os.environ.get("TIMEMACHINE_TEMPORAL_CLI"),
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith(("TIMEMACHINE_", "TEMPORAL_"))}
    async with (
        local_stack(settings, env, watch=Watch(rules=rules, every="1s")) as stack,
        asking(stack.prometheus_url or "") as prometheus,
        receiving() as receiver,
        httpx.AsyncClient(base_url=stack.api_url, timeout=10) as http,
    ):
        receiver.answer = take_slowly
        service = Service(http, "soak")
        await service.add_route(receiver.url)
        load = asyncio.create_task(create_jobs(service))
        try:
            under = Watched(stack, prometheus, receiver)
            await eventually(prometheus.targets, lambda health: set(health.values()) == {"up"})
            await quiet_again(under)  # before the first scrape nobody answers
            yield under
        finally:
            load.cancel()


async def create_jobs(service: Service) -> None:
    """Create jobs that are tried twice, all the time, whatever is answered."""
    async with asyncio.TaskGroup() as creates:
        while True:
            creates.create_task(_create(service))
            await asyncio.sleep(1 / RATE)


async def _create(service: Service) -> None:
    with suppress(httpx.HTTPError, AssertionError):
        await service.create(0.5, retry={"waits": [0.5]})


async def seen_to_fire(under: Watched, until: Callable[[Mapping[str, float]], bool], limit: float) -> dict[str, float]:
    """Return what fires within a time, and after how many seconds each did first, as soon as it suffices."""
    began, seen = time.monotonic(), dict[str, float]()
    while (passed := time.monotonic() - began) < limit and not until(seen):
        for name in await under.firing():
            seen.setdefault(name, passed)
        await asyncio.sleep(0.5)
    return seen


async def quiet_again(under: Watched) -> tuple[dict[str, float], float | None]:
    """Return what fires until nothing does, and after how many seconds that was; None where something never ends.

    It is known only once jobs have been counted that a fault has left behind.
    """
    began, seen, quiet_after = time.monotonic(), dict[str, float](), None
    since = time.time()
    while (passed := time.monotonic() - began) < LIMIT:
        if await under.is_quiet(since=since):
            return seen, quiet_after or 0
        firing = await under.firing()
        for name in firing:
            seen.setdefault(name, passed)
        quiet_after = None if firing else quiet_after or passed
        await asyncio.sleep(0.5)
    return seen, None


async def endured(under: Watched, fault: Fault) -> dict[str, object]:
    """Have something fail, and return a line of the table."""
    async with under.suffering(fault):
        limit = LIMIT if fault.must else QUIET_FOR
        fired = await seen_to_fire(under, lambda seen: bool(fault.must) and fault.must <= seen.keys(), limit)
    later, quiet_after = await quiet_again(under)
    return {
        "fault": fault.name,
        "should fire, after s": " ".join(f"{name}:{_seconds(fired.get(name))}" for name in sorted(fault.must)),
        "may, and did": " ".join(sorted((fired.keys() | later.keys()) & fault.may)),
        "missing": " ".join(sorted(fault.must - fired.keys())),
        "wrong": " ".join(sorted((fired.keys() | later.keys()) - fault.must - fault.may)),
        "quiet after s": _seconds(quiet_after),
    }


def _seconds(after: float | None) -> str:
    return "never" if after is None else f"{after:.0f}"


@pytest.mark.timeout(120 + ROUNDS * len(FAULTS) * 2 * int(LIMIT))
@pytest.mark.skipif(find_prometheus(os.environ) is None, reason="no prometheus here (apt-get install prometheus)")
async def test_each_alert_fires_for_what_it_is_for(tmp_path: Path) -> None:
    lines = list[dict[str, object]]()
    with tempfile.TemporaryDirectory() as data:
        async with watched(Path(data), tmp_path) as under:
            for fault in FAULTS * ROUNDS:
                lines.append(await endured(under, fault))
                print(table("alerts so far", lines))

    assert [line for line in lines if line["missing"] or line["wrong"] or line["quiet after s"] == "never"] == []

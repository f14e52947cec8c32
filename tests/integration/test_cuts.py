"""Jobs whose history is cut: what is asked of a job in that moment is not lost with its old run."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta

import httpx
import pytest

from api.app import create_app
from tests.conftest import serving, working
from tests.receiver import Receiver
from tests.service import ROUTE, Service, refused
from timemachine.attempt_log import AttemptLog
from timemachine.http import WebhookClient
from timemachine.local import temporal as local_temporal
from timemachine.local.temporal import Temporal, embedded_temporal
from timemachine.local.temporal_cli import find_temporal_cli
from timemachine.postgres import open_pool
from timemachine.route_store import RouteStore
from timemachine.settings import Settings
from timemachine.temporal import connect, ensure_search_attributes
from timemachine.vault import Vault

JOBS = 40
EVENTS = 20
"""Events after which Temporal suggests to cut a history: a change or two, or two looks of a held job."""


@pytest.fixture(scope="module")
async def cutting(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Temporal]:
    cli = await find_temporal_cli(os.environ.get("TIMEMACHINE_TEMPORAL_CLI"), os.environ)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(local_temporal._DYNAMIC_CONFIG, "limit.historyCount.suggestContinueAsNew", str(EVENTS))
        async with embedded_temporal(cli, tmp_path_factory.mktemp("cutting")) as temporal:
            yield temporal


@pytest.fixture
async def cut(
    cutting: Temporal, settings: Settings, db: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Service]:
    """The whole service, on a Temporal that has histories cut soon."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", cutting.address)
    client = await connect()
    await ensure_search_attributes(client)
    async with (
        serving(create_app(settings)) as api,
        open_pool(settings) as pool,
        WebhookClient(timeout=settings.delivery_timeout, max_connections=100, targets=settings.targets) as webhooks,
        working(client, RouteStore(pool, Vault(settings)), AttemptLog(pool), webhooks, settings),
    ):
        service = Service(api, db)
        await service.add_route(receiver.url)
        yield service


async def changed_and_cancelled(service: Service, job_id: str, due_in: float) -> list[tuple[int, str | None]]:
    """Send a DELETE and a PUT at once, and return both answers."""
    both = await asyncio.gather(service.cancel(job_id), service.change(job_id, due_in, meta="new"))
    return [(answer.status_code, answer.json().get("code")) for answer in both]


@pytest.mark.parametrize("changes", [1, 2, 3])
async def test_a_waiting_job_that_is_cut_is_cancelled(cut: Service, receiver: Receiver, changes: int) -> None:
    job_ids = [await cut.create(3600) for _ in range(JOBS)]

    async def play(job_id: str) -> None:
        for n in range(changes):
            await cut.change(job_id, 3600 + n)
        answers = await changed_and_cancelled(cut, job_id, 7200)
        assert answers[0] == (200, None), answers
        assert answers[1] in [(200, None), (400, "E006"), (503, "E015")], answers
        assert (await cut.find(job_id))["state"] == "cancelled"

    await asyncio.gather(*map(play, job_ids))


async def test_a_held_job_that_is_cut_is_cancelled(
    cut: Service, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.job.LOOK_AGAIN", (timedelta(seconds=0.15),))
    await cut.api.post(f"/route/{cut.db}/{ROUTE}/pause")
    job_ids = [await cut.create(0, meta="old") for _ in range(JOBS)]
    for job_id in job_ids:
        await until_held(cut, job_id)
    ends: Counter[str] = Counter()

    async def play(n: int, job_id: str) -> None:
        await asyncio.sleep(n * 0.05)  # each at another moment between two looks
        (cancelled, code), _ = await changed_and_cancelled(cut, job_id, 0)
        assert (cancelled, code) in [(200, None), (503, "E015")]
        ends[(await cut.wait_for_end(job_id))["state"]] += 1

    await asyncio.gather(*(play(n, job_id) for n, job_id in enumerate(job_ids)))
    await cut.api.post(f"/route/{cut.db}/{ROUTE}/resume", json={"spread": 0})
    assert ends == {"cancelled": JOBS}
    assert receiver.received == []


async def until_held(service: Service, job_id: str) -> None:
    async with asyncio.timeout(20):
        while "held" not in await service.find(job_id):
            await asyncio.sleep(0.02)


async def test_a_held_job_that_is_delivered_once_more_cannot_be_changed(service: Service, receiver: Receiver) -> None:
    """It would come with other content under a `webhook-id` that the receiver may have taken already."""
    job_id = await service.create(0)
    await service.wait_for_state(job_id, "delivered")
    await service.api.post(f"/route/{service.db}/{ROUTE}/pause")
    again: httpx.Response = await service.api.post(f"{service.jobs}/{job_id}/redeliver")
    assert again.status_code == 200
    await until_held(service, job_id)

    assert refused(await service.change(job_id, 0, meta="other")) == (400, "E006")

    await service.api.post(f"/route/{service.db}/{ROUTE}/resume", json={"spread": 0})
    first, second = await receiver.wait_for(job_id, 2)
    assert (first.body, first.headers["webhook-id"]) == (second.body, second.headers["webhook-id"])

"""A worker that dies after the receiver took the job, before Temporal knows: the log is asked, after a cancel too."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from msgspec.structs import replace
from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from activities.deliver import Deliveries
from api.app import create_app
from tests.conftest import serving
from tests.service import Service, refused
from timemachine.attempt_log import Attempt, AttemptLog
from timemachine.delivery import Delivered, Delivery, Kind
from timemachine.http import WebhookClient
from timemachine.local.temporal import Temporal
from timemachine.postgres import open_pool
from timemachine.route_store import RouteStore
from timemachine.settings import Settings
from timemachine.vault import Vault
from workflows.job import JobWorkflow


class Dying:
    """Makes its attempt as a worker does that is killed at the worst moment: taken and logged, but never told."""

    def __init__(self, attempts: AttemptLog, *, taken: bool) -> None:
        self._attempts = attempts
        self._taken = taken
        self.reached = asyncio.Event()

    @activity.defn(name="deliver_at_once")
    async def deliver_at_once(self, delivery: Delivery) -> Delivered:
        raise ApplicationError("its route is busy", type="NotYet")

    @activity.defn(name="deliver")
    async def deliver(self, delivery: Delivery) -> Delivered:
        if self._taken:
            await self._attempts.record(logged(delivery, activity.info().workflow_run_id or ""))
        self.reached.set()
        activity.raise_complete_async()


def logged(delivery: Delivery, run_id: str) -> Attempt:
    job = delivery.job
    return Attempt(
        db=job.db,
        collection=job.collection,
        job_id=job.id,
        route_id=job.route,
        run_id=run_id,
        message_id=delivery.message_id,
        attempt=1,
        started_at=datetime.now(UTC),
        duration_ms=1,
        status=200,
        kind=Kind.TAKEN,
        error=None,
        worker="dead",
    )


@pytest.fixture
def own(settings: Settings, temporal: Temporal, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with a task queue that no other worker serves."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal.address)
    return replace(settings, task_queue=f"lost-{uuid.uuid4().hex}")


@activity.defn(name="find_taken")
async def find_nothing_out(delivery: Delivery) -> Delivered | None:
    raise ApplicationError("Postgres does not answer")


@asynccontextmanager
async def dying_worker(
    client: Client, own: Settings, db: str, *, taken: bool, finds: bool = True
) -> AsyncIterator[tuple[Service, Dying]]:
    """Run a worker whose attempts die, and an API."""
    async with open_pool(own) as pool, serving(create_app(own)) as api:
        service = Service(api, db)
        await service.add_route("http://127.0.0.1:1/")
        async with WebhookClient(timeout=1, max_connections=1, targets=own.targets) as webhooks:
            log = AttemptLog(pool)
            dying = Dying(log, taken=taken)
            real = Deliveries(RouteStore(pool, Vault(own)), log, webhooks, own)
            async with Worker(
                client,
                task_queue=own.task_queue,
                workflows=[JobWorkflow],
                workflow_runner=UnsandboxedWorkflowRunner(),
                activities=[dying.deliver_at_once, dying.deliver, real.find_taken if finds else find_nothing_out],
            ):
                yield service, dying


each_end = pytest.mark.parametrize(
    ("taken", "end"), [(True, "delivered"), (False, "cancelled")], ids=["taken", "not taken"]
)


@pytest.mark.timeout(150)
@each_end
async def test_a_cancel_after_the_worker_died(own: Settings, client: Client, db: str, taken: bool, end: str) -> None:
    async with dying_worker(client, own, db, taken=taken) as (service, dying):
        job_id = await service.create(0)
        await dying.reached.wait()

        # Nobody knows yet how the attempt ended.
        assert refused(await service.cancel(job_id)) == (503, "E015")

        job = await service.wait_for_end(job_id, limit=100)
        assert job["state"] == end
        answer: httpx.Response = await service.cancel(job_id)
        assert refused(answer) == (400, "E006")


@each_end
async def test_a_cancel_before_the_lost_attempt_is_made_again(
    own: Settings, client: Client, db: str, monkeypatch: pytest.MonkeyPatch, taken: bool, end: str
) -> None:
    monkeypatch.setattr("workflows.job.ATTEMPT_LIMIT", timedelta(seconds=1))
    async with dying_worker(client, own, db, taken=taken) as (service, dying):
        job_id = await service.create(0)
        await dying.reached.wait()
        while "next_attempt_time" not in await service.find(job_id):
            await asyncio.sleep(0.05)

        answer = await service.cancel(job_id)

        assert (await service.find(job_id))["state"] == end
        assert answer.status_code == (400 if taken else 200)


async def test_that_the_log_is_asked_is_not_shown_as_an_attempt(
    own: Settings, client: Client, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.job.ATTEMPT_LIMIT", timedelta(seconds=1))
    async with dying_worker(client, own, db, taken=False, finds=False) as (service, dying):
        job_id = await service.create(0)
        await dying.reached.wait()
        while "next_attempt_time" not in await service.find(job_id):
            await asyncio.sleep(0.05)

        assert refused(await service.cancel(job_id)) == (503, "E015")

        job = await service.find(job_id)
        assert job["state"] == "delivering"
        assert not job.keys() & {"attempts", "next_attempt_time", "last_error"}
        await client.get_workflow_handle(f"{db}/c/{job_id}").terminate()

"""What is answered, and kept, while it is not known what has become of an attempt."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from msgspec import Raw
from msgspec.structs import replace
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from activities.attempt import Attempts
from activities.deliver import TASK_PATIENCE
from tests.support.holds import pause, resume, wait_until_held
from tests.support.job_histories import wait_for_event, workflow_of
from tests.support.ledger import AnotherWorker, first_run
from tests.support.receiver import Received, Receiver, response
from tests.support.refusals import AWAY, TOO_LATE
from tests.support.service import Service, a_job, refused
from tests.support.waiting import eventually
from timemachine.domain.delivery import Delivery
from timemachine.domain.errors import TriggerTimeError
from timemachine.domain.outcomes import Held, Outcome
from timemachine.postgres.route_store import RouteStore
from timemachine.settings import Settings
from timemachine.temporal.job_runs import latest_run
from timemachine.webhooks.client import WebhookClient


def _too_late(*_: Any, **__: Any) -> None:
    raise TriggerTimeError("it is past")


@pytest.mark.parametrize("late", [False, True], ids=["in time", "after its time"])
async def test_a_create_is_not_confirmed_while_the_job_is_being_cancelled(
    service: Service, impatient: Service, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """The attempt in flight decides; a create that was answered with 200 meanwhile might never be delivered."""
    ending = asyncio.Event()

    async def refuse(_: Received) -> bytes:
        await ending.wait()
        return response(500)

    receiver.answer = refuse
    job = a_job(0)
    await service.api.post(service.jobs, json=job)
    await receiver.wait_for(job["id"])

    assert refused(await impatient.cancel(job["id"])) == AWAY
    if late:
        monkeypatch.setattr("api.jobs.check_not_past", _too_late)
    assert refused(await impatient.api.post(service.jobs, json=job)) == AWAY
    monkeypatch.undo()

    ending.set()
    assert (await service.wait_for_end(job["id"]))["state"] == "cancelled"
    assert (await service.api.post(service.jobs, json=job)).status_code == 200


async def test_a_held_job_whose_attempt_was_lost_takes_no_change(
    service: Service, client: Client, another: AnotherWorker
) -> None:
    """The API looks before it sends a change, and may have looked before the attempt."""
    job_id = await service.create(2)
    run = await first_run(client, service, job_id)
    await another.begin(service.db, run)
    await another.die(run)
    await pause(service)
    await wait_until_held(service, job_id)
    job = workflow_of(client, service, job_id)

    with pytest.raises(WorkflowUpdateFailedError) as refusal:
        await job.execute_update("change", replace((await latest_run(client, job.id)).job, meta=Raw(b'"new"')))

    assert isinstance(refusal.value.cause, ApplicationError)
    assert refusal.value.cause.type == "TooLate"


END_OTHER_SESSIONS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


@asynccontextmanager
async def read_only(dsn: str | None) -> AsyncIterator[None]:
    """Turn our database read-only, as managed ones do when the disk is full. Temporal's may be on the same server."""
    postgres = await asyncpg.connect(dsn)
    database = f'ALTER DATABASE "{await postgres.fetchval("SELECT current_database()")}"'
    try:
        await postgres.execute(f"{database} SET default_transaction_read_only = on")
        await postgres.execute(END_OTHER_SESSIONS)  # it holds for those that come
        yield
    finally:
        await postgres.execute(f"{database} RESET default_transaction_read_only")
        await postgres.execute(END_OTHER_SESSIONS)
        await postgres.close()


async def test_an_end_that_cannot_be_written_is_kept_and_told_by_nobody(
    service: Service, impatient: Service, receiver: Receiver, client: Client, settings: Settings
) -> None:
    asked, ending, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(_: Received) -> bytes:
        asked.set()
        await ending.wait()
        ended.set()
        return response(200)

    receiver.answer = slow
    job_id = await service.create(0)
    await asked.wait()
    async with read_only(settings.postgres_dsn):
        ending.set()
        await ended.wait()
        assert refused(await impatient.cancel(job_id)) == AWAY
        assert (await service.find(job_id))["state"] == "delivering"
        description = await workflow_of(client, service, job_id).describe()
        assert description.status is WorkflowExecutionStatus.RUNNING

    assert (await service.wait_for_end(job_id))["state"] == "delivered"
    assert refused(await service.cancel(job_id)) == TOO_LATE
    await workflow_of(client, service, job_id).result()
    assert len(receiver.of(job_id)) == 1


async def test_a_worker_that_was_stopped_for_too_long_makes_no_attempt(
    service: Service, receiver: Receiver, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker may have taken the attempt for lost by then, and made it."""
    monkeypatch.setattr("activities.attempt.BEGIN_TIME", -1.0)
    job_id = await service.create(0)
    await wait_for_event(client, service, job_id, EventType.EVENT_TYPE_TIMER_STARTED)
    assert receiver.received == []

    monkeypatch.undo()

    assert (await service.wait_for_state(job_id, "delivered"))["attempts"] == 1
    assert len(receiver.of(job_id)) == 1


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Let every attempt break off by an error that nobody has foreseen, at its request."""

    async def post(*_: Any, **__: Any) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(WebhookClient, "post", post)
    return monkeypatch


async def test_an_attempt_that_broke_off_is_a_failed_one(
    service: Service, receiver: Receiver, broken: pytest.MonkeyPatch
) -> None:
    """Or it would be made for ever, each time it is taken for lost."""
    job_id = await service.create(0, retry={"waits": [1, 1]})
    job = await eventually(lambda: service.find(job_id), lambda job: job.get("attempts"))
    assert "internal error" in job["last_error"]

    broken.undo()

    assert (await service.wait_for_state(job_id, "delivered"))["attempts"] > 1
    assert len(receiver.of(job_id)) == 1


async def test_an_attempt_that_cannot_begin_uses_none_up(
    service: Service, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def open_target(*_: Any, **__: Any) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(RouteStore, "open_target", open_target)
    job_id = await service.create(0)
    await eventually(lambda: service.find(job_id), lambda job: "internal error" in job.get("last_error", ""))

    monkeypatch.undo()

    assert (await service.wait_for_state(job_id, "delivered"))["attempts"] == 1
    assert len(receiver.of(job_id)) == 1


async def test_a_first_attempt_that_waits_for_its_slot_while_the_job_is_held_and_changed_is_not_made(
    service: Service, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits on one worker, while another has found the route paused."""
    outcome, waiting = Attempts.outcome, []

    async def waits_for_its_slot(attempts: Attempts, delivery: Delivery, *, patience: float) -> Outcome | None:
        if patience != TASK_PATIENCE or delivery.job.db != service.db:
            return await outcome(attempts, delivery, patience=patience)
        waiting.append((attempts, delivery))
        return None

    monkeypatch.setattr(Attempts, "outcome", waits_for_its_slot)
    await pause(service)
    job_id = await service.create(0, meta="old")
    assert (await wait_until_held(service, job_id))["state"] == "scheduled"
    assert (await service.change(job_id, 3600, meta="new")).status_code == 200
    await resume(service)

    ((attempts, delivery),) = waiting
    assert isinstance(await outcome(attempts, delivery, patience=5), Held)

    assert (await service.change(job_id, 1, meta="newer")).status_code == 200
    assert (await service.wait_for_state(job_id, "delivered"))["attempts"] == 1
    assert [received.body for received in receiver.of(job_id)] == [b'"newer"']

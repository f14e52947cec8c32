"""A cancel is decided by the ledger: without a worker, whatever Temporal has been told, and exactly."""

import asyncio
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from tests.support.job_histories import events, wait_for_event, wait_for_status, workflow_of
from tests.support.ledger import AnotherWorker, first_run, refused_by_receiver, taken
from tests.support.receiver import Received, Receiver, response
from tests.support.refusals import AWAY, TOO_LATE
from tests.support.service import Service, a_job, refused
from timemachine.domain.outcomes import LedgerRow, RowState
from timemachine.postgres.pool import open_pool
from timemachine.settings import Settings
from timemachine.webhooks.client import WebhookClient
from worker import create_worker

MAY_BE_TAKEN = "the receiver may have taken it"


async def test_without_a_worker_a_job_is_cancelled_and_never_fires(
    alone: tuple[Service, Settings], client: Client, receiver: Receiver
) -> None:
    service, own = alone
    due, waiting = await service.create(0), await service.create(3600)

    for job_id in (due, waiting):
        assert (await service.cancel(job_id)).json() == {"status": "ok"}
        assert (await service.find(job_id))["state"] == "cancelled"
        # Its workflow is still open: a DELETE whose answer was lost is confirmed.
        assert (await service.cancel(job_id)).json() == {"status": "ok"}

    async with (
        open_pool(own) as pool,
        WebhookClient(timeout=5, max_connections=9, address_guard=own.address_guard) as webhooks,
        create_worker(client, pool, webhooks, own),
    ):
        for job_id in (due, waiting):
            await wait_for_status(client, service, job_id, WorkflowExecutionStatus.CANCELED)
    assert receiver.received == []


async def test_a_cancel_that_temporal_was_not_told_of_holds(
    service: Service, receiver: Receiver, client: Client, another: AnotherWorker
) -> None:
    job_id = await service.create(2)
    await another.ledger.cancel(await first_run(client, service, job_id), due=datetime.now(UTC))
    assert (await service.find(job_id))["state"] == "cancelled"
    assert (await service.cancel(job_id)).json() == {"status": "ok"}

    await wait_for_status(client, service, job_id, WorkflowExecutionStatus.CANCELED)

    assert (await service.find(job_id))["state"] == "cancelled"
    assert receiver.received == []


@pytest.mark.parametrize("same", [True, False], ids=["the same", "another"])
async def test_a_job_whose_cancel_temporal_was_not_told_of_is_created_anew(
    service: Service, receiver: Receiver, client: Client, another: AnotherWorker, same: bool
) -> None:
    job = a_job(3)
    await service.api.post(service.jobs, json=job)
    old = await first_run(client, service, job["id"])
    await another.ledger.cancel(old, due=datetime.now(UTC))

    assert (await service.api.post(service.jobs, json=job if same else job | {"meta": "new"})).status_code == 200

    assert await first_run(client, service, job["id"]) != old
    assert (await service.wait_for_state(job["id"], "delivered"))["attempts"] == 1
    assert [received.body for received in receiver.received] == [b"null" if same else b'"new"']


async def in_each_state(another: AnotherWorker, db: str, run: str, state: str) -> None:
    """Bring a run's row into a state."""
    if state == "cancelled":
        await another.ledger.cancel(run, due=datetime.now(UTC))
        return
    claim = await another.begin(db, run)
    match state:
        case "delivered":
            await another.end(run, claim, taken())
        case "failed":
            await another.end(run, claim, refused_by_receiver(None))
        case "retrying":
            await another.end(run, claim, refused_by_receiver(timedelta(hours=1)))
        case "in doubt":
            await another.die(run)
            await another.ledger.cancel(run, due=datetime.now(UTC))
            await another.ledger.cancel(run, due=datetime.now(UTC), expired_claim=str(claim))


@pytest.mark.parametrize(
    ("state", "shown", "why"),
    [
        ("cancelled", "cancelled", "the job was cancelled before; create it again"),
        ("delivered", "delivered", "the job was delivered"),
        ("failed", "failed", "the job has failed"),
        ("under way", "delivering", "the job is due, and being delivered or tried again"),
        ("retrying", "delivering", "the job is due, and being delivered or tried again"),
        ("in doubt", "failed", MAY_BE_TAKEN),
    ],
)
async def test_a_change_of_a_job_that_the_ledger_knows_is_refused_with_the_reason(
    service: Service, client: Client, another: AnotherWorker, state: str, shown: str, why: str
) -> None:
    """Temporal knows of nothing: the job waits there still."""
    job_id = await service.create(3600)
    await in_each_state(another, service.db, await first_run(client, service, job_id), state)

    answer = await service.change(job_id, 0, meta="new")

    assert refused(answer) == TOO_LATE
    assert why in answer.json()["error"]
    assert (await service.find(job_id))["state"] == shown
    if shown not in ("delivering", "cancelled"):
        answer = await service.cancel(job_id)
        assert refused(answer) == TOO_LATE
        assert why in answer.json()["error"]


async def test_a_lost_attempt_is_never_told_to_be_cancelled(
    service: Service, receiver: Receiver, client: Client, another: AnotherWorker
) -> None:
    job_id = await service.create(2)
    run = await first_run(client, service, job_id)
    await another.begin(service.db, run)
    await another.die(run)

    answer = await service.cancel(job_id)

    assert refused(answer) == TOO_LATE
    assert MAY_BE_TAKEN in answer.json()["error"]
    job = await service.find(job_id)
    assert job["state"] == "failed"
    assert MAY_BE_TAKEN in job["last_error"]
    await wait_for_status(client, service, job_id, WorkflowExecutionStatus.FAILED)
    assert receiver.received == []


async def test_that_a_lost_attempt_was_taken_counts_when_its_worker_wakes(
    service: Service, client: Client, another: AnotherWorker
) -> None:
    job_id = await service.create(3600)
    run = await first_run(client, service, job_id)
    claim = await another.begin(service.db, run)
    await another.die(run)
    assert refused(await service.cancel(job_id)) == TOO_LATE
    await wait_for_status(client, service, job_id, WorkflowExecutionStatus.FAILED)

    await another.end(run, claim, taken())

    assert (await service.find(job_id))["state"] == "delivered"


async def test_a_wish_that_was_not_fulfilled_in_time_stands(
    service: Service, impatient: Service, receiver: Receiver, client: Client, another: AnotherWorker
) -> None:
    job_id = await service.create(2)
    run = await first_run(client, service, job_id)
    claim = await another.begin(service.db, run)

    assert refused(await impatient.cancel(job_id)) == AWAY
    assert (await another.row(run)).state is RowState.CANCELLING
    await another.end(run, claim, refused_by_receiver(timedelta(0)))

    assert (await service.find(job_id))["state"] == "cancelled"
    await wait_for_status(client, service, job_id, WorkflowExecutionStatus.CANCELED)
    assert receiver.received == []


async def test_a_terminated_job_is_told_too_late_and_no_frozen_worker_begins_it(
    service: Service, client: Client, another: AnotherWorker
) -> None:
    job_id = await service.create(3600)
    run = await first_run(client, service, job_id)
    await workflow_of(client, service, job_id).terminate()

    assert refused(await service.cancel(job_id)) == TOO_LATE

    begun = await another.ledger.begin(run, service.db, "hook", uuid.uuid4())
    assert isinstance(begun, LedgerRow)
    assert begun.state is RowState.CANCELLED
    assert (await service.find(job_id))["state"] == "cancelled"


async def test_an_operators_cancel_of_a_waiting_job(
    service: Service, client: Client, receiver: Receiver, another: AnotherWorker
) -> None:
    job_id = await service.create(3600)
    run = await first_run(client, service, job_id)
    await workflow_of(client, service, job_id).cancel()

    await wait_for_status(client, service, job_id, WorkflowExecutionStatus.CANCELED)

    assert (await another.row(run)).state is RowState.CANCELLED
    assert (await service.find(job_id))["state"] == "cancelled"
    assert refused(await service.cancel(job_id)) == TOO_LATE


async def test_an_operators_cancel_of_an_attempt_in_flight_goes_by_its_end(
    service: Service, client: Client, receiver: Receiver
) -> None:
    ending = asyncio.Event()

    async def slow(_: Received) -> bytes:
        await ending.wait()
        return response(200)

    receiver.answer = slow
    job_id = await service.create(0)
    await receiver.wait_for(job_id)
    await wait_for_event(client, service, job_id, EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED)
    await workflow_of(client, service, job_id).cancel()
    await wait_for_event(client, service, job_id, EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED)
    ending.set()

    await wait_for_status(client, service, job_id, WorkflowExecutionStatus.COMPLETED)
    assert EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED in await events(client, service, job_id)
    assert len(receiver.of(job_id)) == 1


async def test_a_job_whose_cancel_ended_in_doubt_is_created_anew(
    service: Service, receiver: Receiver, client: Client, another: AnotherWorker
) -> None:
    job = a_job(5)
    await service.api.post(service.jobs, json=job)
    old = await first_run(client, service, job["id"])
    await another.begin(service.db, old)
    await another.die(old)
    assert refused(await service.cancel(job["id"])) == TOO_LATE
    await wait_for_status(client, service, job["id"], WorkflowExecutionStatus.FAILED)

    assert (await service.api.post(service.jobs, json=job)).status_code == 200

    assert await first_run(client, service, job["id"]) != old
    assert (await service.wait_for_state(job["id"], "delivered"))["attempts"] == 1
    assert len(receiver.of(job["id"])) == 1


async def test_a_repeated_delete_closes_the_workflow_that_was_not_told(
    service: Service, receiver: Receiver, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(*_: object, **__: object) -> None:
        raise RPCError("no answer", RPCStatusCode.UNAVAILABLE, b"")

    job_id = await service.create(3600)
    with monkeypatch.context() as patch:
        patch.setattr(WorkflowHandle, "cancel", lost)
        assert (await service.cancel(job_id)).json() == {"status": "ok"}
    assert (await service.find(job_id))["state"] == "cancelled"
    description = await workflow_of(client, service, job_id).describe()
    assert description.status is WorkflowExecutionStatus.RUNNING

    assert (await service.cancel(job_id)).json() == {"status": "ok"}

    await wait_for_status(client, service, job_id, WorkflowExecutionStatus.CANCELED)
    assert refused(await service.cancel(job_id)) == TOO_LATE


async def test_cancels_of_attempts_in_flight_leave_the_worker_free_for_other_jobs(
    alone: tuple[Service, Settings], client: Client, receiver: Receiver
) -> None:
    """More of them than the worker takes workflow tasks at a time, each until its attempt has ended."""
    service, own = alone
    ending = asyncio.Event()

    async def slow(received: Received) -> bytes:
        if received.path == "/hook":
            await ending.wait()
        return response(500)

    receiver.answer = slow
    await service.add_route(receiver.url.replace("/hook", "/other"), "other")
    own = replace(own, max_workflow_tasks=4, delivery_timeout=60.0)
    async with (
        open_pool(own) as pool,
        WebhookClient(timeout=own.delivery_timeout, max_connections=20, address_guard=own.address_guard) as webhooks,
        create_worker(client, pool, webhooks, own),
    ):
        job_ids = [await service.create(0) for _ in range(6)]
        await receiver.wait_until(lambda: len(receiver.received) == len(job_ids))
        answers = await asyncio.gather(*(service.cancel(job_id) for job_id in job_ids))
        assert {refused(answer) for answer in answers} == {AWAY}

        quick = await service.create(0, route="other", retry={"maximum_attempts": 1})
        await service.wait_for_state(quick, "failed")

        assert {(await service.find(job_id))["state"] for job_id in job_ids} == {"delivering"}
        ending.set()
        for job_id in job_ids:
            await wait_for_status(client, service, job_id, WorkflowExecutionStatus.CANCELED)

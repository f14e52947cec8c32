"""The first attempt, made within a workflow task: made once, whatever becomes of the task."""

import asyncio
from datetime import timedelta

from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowExecutionStatus

from tests.support.job_histories import events, wait_for_event, workflow_of
from tests.support.ledger import AnotherWorker, first_run, refused_by_receiver, taken
from tests.support.receiver import Received, Receiver, response
from tests.support.refusals import TOO_LATE
from tests.support.service import Service, now_ms, refused


async def test_a_job_that_is_taken_at_once_has_six_events(service: Service, client: Client) -> None:
    job_id = await service.create(0)
    await workflow_of(client, service, job_id).result()

    assert await events(client, service, job_id) == [
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED,
        EventType.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED,
        EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED,
        EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED,
        EventType.EVENT_TYPE_MARKER_RECORDED,
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED,
    ]


async def test_a_slow_attempt_is_made_once_and_joined(service: Service, receiver: Receiver, client: Client) -> None:
    """It outlasts the workflow task, and a change or a cancel meanwhile is answered as for any attempt in flight."""
    answered = asyncio.Event()

    async def slow(_: Received) -> bytes:
        await answered.wait()
        return response(200)

    receiver.answer = slow
    job_id = await service.create(0)
    await receiver.wait_for(job_id)
    await wait_for_event(client, service, job_id, EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED)

    assert refused(await service.change(job_id, 5)) == TOO_LATE
    cancelling = asyncio.create_task(service.cancel(job_id))
    await wait_for_event(client, service, job_id, EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED)
    answered.set()

    assert refused(await cancelling) == TOO_LATE
    assert (await service.find(job_id))["attempts"] == 1
    await workflow_of(client, service, job_id).result()
    assert len(receiver.of(job_id)) == 1


async def test_a_slow_attempt_ends_the_job_by_the_activity_that_joined_it(
    service: Service, receiver: Receiver, client: Client
) -> None:
    async def slow(_: Received) -> bytes:
        await asyncio.sleep(1.5)
        return response(200)

    receiver.answer = slow
    job_id = await service.create(0)
    await workflow_of(client, service, job_id).result()

    assert EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED in await events(client, service, job_id)
    assert len(receiver.of(job_id)) == 1


async def test_an_operators_cancel_in_the_moment_of_the_attempt(
    service: Service, receiver: Receiver, client: Client
) -> None:
    """The cancel makes the server refuse the task's end, and the task is run again: the attempt must not be."""
    answer, asked = asyncio.Event(), asyncio.Event()

    async def hold(_: Received) -> bytes:
        asked.set()
        await answer.wait()
        return response(200)

    receiver.answer = hold
    job_id = await service.create(0)
    await asked.wait()
    await workflow_of(client, service, job_id).cancel()
    answer.set()

    await workflow_of(client, service, job_id).result()
    assert (await service.find(job_id))["state"] == "delivered"
    assert EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED in await events(client, service, job_id)
    assert len(receiver.of(job_id)) == 1


async def test_an_attempt_that_another_worker_makes_is_waited_for(
    service: Service, receiver: Receiver, client: Client, another: AnotherWorker
) -> None:
    job_id = await service.create(2)
    run = await first_run(client, service, job_id)
    claim = await another.begin(service.db, run)
    await wait_for_event(client, service, job_id, EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED)
    assert (await service.find(job_id))["state"] == "delivering"

    await another.end(run, claim, taken())

    assert (await service.find(job_id))["attempts"] == 1
    await workflow_of(client, service, job_id).result()
    assert receiver.of(job_id) == []


async def test_an_attempt_that_was_lost_with_its_worker_is_made_again(
    service: Service, receiver: Receiver, client: Client, another: AnotherWorker
) -> None:
    job_id = await service.create(2)
    run = await first_run(client, service, job_id)
    await another.begin(service.db, run)
    await another.die(run)

    assert (await service.wait_for_state(job_id, "delivered"))["attempts"] == 1
    assert len(receiver.of(job_id)) == 1


async def test_what_an_attempt_elsewhere_failed_with_counts(
    service: Service, receiver: Receiver, client: Client, another: AnotherWorker
) -> None:
    """And so does how long the receiver asked to be left alone."""
    job_id = await service.create(2)
    run = await first_run(client, service, job_id)
    claim = await another.begin(service.db, run)
    not_before = now_ms(4)
    await another.end(run, claim, refused_by_receiver(timedelta(seconds=4)))

    job = await service.find(job_id)
    assert (job["state"], job["attempts"], job["last_error"]) == ("delivering", 1, "500 from the receiver")
    assert (await service.wait_for_state(job_id, "delivered"))["attempts"] == 2
    (received,) = receiver.of(job_id)
    assert received.headers["timemachine-attempt"] == "2"
    assert received.at_ms >= job["next_attempt_time"] - 5
    assert received.at_ms >= not_before


async def test_a_cancel_waits_for_an_attempt_on_another_worker(
    service: Service, receiver: Receiver, client: Client, another: AnotherWorker
) -> None:
    job_id = await service.create(2)
    run = await first_run(client, service, job_id)
    claim = await another.begin(service.db, run)
    await wait_for_event(client, service, job_id, EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED)

    cancelling = asyncio.create_task(service.cancel(job_id))
    await wait_for_event(client, service, job_id, EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED)
    assert not cancelling.done()
    await another.end(run, claim, taken())

    assert refused(await cancelling) == TOO_LATE
    await workflow_of(client, service, job_id).result()
    assert (await service.find(job_id))["state"] == "delivered"
    assert receiver.of(job_id) == []


async def test_a_cancel_during_an_attempt_on_another_worker_that_fails(
    service: Service, receiver: Receiver, client: Client, another: AnotherWorker
) -> None:
    job_id = await service.create(2)
    run = await first_run(client, service, job_id)
    claim = await another.begin(service.db, run)
    await wait_for_event(client, service, job_id, EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED)

    cancelling = asyncio.create_task(service.cancel(job_id))
    await wait_for_event(client, service, job_id, EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED)
    await another.end(run, claim, refused_by_receiver(timedelta(0)))

    assert (await cancelling).status_code == 200
    await wait_for_event(client, service, job_id, EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED)
    assert (await workflow_of(client, service, job_id).describe()).status is WorkflowExecutionStatus.CANCELED
    assert receiver.of(job_id) == []


async def test_a_change_to_now_is_durable_before_it_is_delivered(
    service: Service, receiver: Receiver, client: Client
) -> None:
    job_id = await service.create(3600)
    assert (await service.change(job_id, 0, meta="now")).json() == {"status": "ok"}
    await service.wait_for_state(job_id, "delivered")

    assert [received.body for received in receiver.of(job_id)] == [b'"now"']
    assert EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED in await events(client, service, job_id)

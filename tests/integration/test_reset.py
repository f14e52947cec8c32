"""An operator's reset of a job: what was confirmed to its client holds on."""

import asyncio
from datetime import timedelta

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client

from tests.conftest import delivering
from tests.support.cuts import until_continued
from tests.support.job_histories import Events, events, workflow_of
from tests.support.ledger import first_run
from tests.support.receiver import Receiver
from tests.support.refusals import AWAY
from tests.support.resets import reset
from tests.support.service import Service, now_ms, refused
from tests.support.waiting import eventually
from timemachine.postgres.pool import connection, open_pool
from timemachine.settings import Settings

AND_ITS_OLD_TIMER = -2
"""The workflow task of the last change, where the timer of the change before it has fired since."""


async def until_past(at: int) -> None:
    await asyncio.sleep(max(0, at - now_ms()) / 1000 + 0.1)


async def until_fired(client: Client, service: Service, job_id: str) -> None:
    """Wait until a timer has fired and the task after it is done."""

    def is_done(seen: Events) -> bool:
        fired = EventType.EVENT_TYPE_TIMER_FIRED
        return fired in seen and EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED in seen[seen.index(fired) :]

    await eventually(lambda: events(client, service, job_id), is_done)


async def reset_before_last_change(service: Service, client: Client, job_id: str, *, task: int = -1) -> None:
    """Reset a job to before a workflow task, and wait until the new run has done its first one."""

    async def since_the_reset() -> Events:
        seen = await events(client, service, job_id)
        failed = EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED
        return seen[seen.index(failed) :] if failed in seen else []

    await reset(client, workflow_of(client, service, job_id), task=task)
    await eventually(since_the_reset, lambda seen: EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED in seen)


async def check_waits_as_changed(service: Service, receiver: Receiver, job_id: str) -> None:
    """Demand that a job has neither gone out nor forgotten its last change, and goes out as that has it."""
    job = await service.find(job_id)
    assert (job["state"], job["meta"]) == ("scheduled", "new")
    assert job["trigger_time"] > now_ms(1000)
    assert receiver.received == []

    assert (await service.trigger(job_id)).status_code == 200
    await service.wait_for_state(job_id, "delivered")
    assert [received.body for received in receiver.of(job_id)] == [b'"new"']


async def test_a_change_holds_when_the_time_that_it_changed_is_past(
    service: Service, receiver: Receiver, client: Client
) -> None:
    job_id = await service.create(2, meta="old")
    assert (await service.change(job_id, 3600, meta="new")).status_code == 200
    await until_past(now_ms(2))

    await reset_before_last_change(service, client, job_id)

    await check_waits_as_changed(service, receiver, job_id)


async def test_the_last_of_several_changes_holds(service: Service, receiver: Receiver, client: Client) -> None:
    job_id = await service.create(2, meta="old")
    for due_in, meta in ((4, "second"), (3600, "new")):
        assert (await service.change(job_id, due_in, meta=meta)).status_code == 200
    await until_fired(client, service, job_id)

    await reset_before_last_change(service, client, job_id, task=AND_ITS_OLD_TIMER)

    await check_waits_as_changed(service, receiver, job_id)


async def test_a_job_that_is_set_back_to_where_it_was_continued_goes_on_again(
    cut: Service, receiver: Receiver, client: Client
) -> None:
    job_id = await cut.create(3600, meta="old")
    first = await until_continued(cut, client, job_id, due_in=3600)
    assert (await cut.change(job_id, 3600, meta="new")).status_code == 200

    await reset(client, first, task=-1)

    await eventually(lambda: cut.find(job_id), lambda job: job["meta"] == "new")
    await check_waits_as_changed(cut, receiver, job_id)


async def test_a_change_of_a_continued_job_holds(cut: Service, receiver: Receiver, client: Client) -> None:
    job_id = await cut.create(3600, meta="old")
    await until_continued(cut, client, job_id, due_in=5)
    waits = EventType.EVENT_TYPE_TIMER_STARTED
    await eventually(lambda: events(client, cut, job_id), lambda seen: waits in seen)
    assert (await cut.change(job_id, 3600, meta="new")).status_code == 200
    await until_fired(client, cut, job_id)

    await reset_before_last_change(cut, client, job_id, task=AND_ITS_OLD_TIMER)

    await check_waits_as_changed(cut, receiver, job_id)


async def test_a_job_that_was_taken_is_not_sent_again_and_ends_as_the_ledger_says(
    service: Service, receiver: Receiver, client: Client
) -> None:
    job_id = await service.create(0)
    await workflow_of(client, service, job_id).result()
    ended = await service.find(job_id)

    await reset(client, workflow_of(client, service, job_id))
    await workflow_of(client, service, job_id).result()

    assert await service.find(job_id) == ended
    assert len(receiver.of(job_id)) == 1
    # An attempt within the task could be lost with it, and a change be taken then.
    assert EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED in await events(client, service, job_id)


@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_a_create_does_not_take_a_job_for_what_it_was_before_a_change(
    alone: tuple[Service, Settings], client: Client, method: str
) -> None:
    """Until its first task a run that was reset shows what it was; the task hands the change over."""
    service, own = alone
    job_id = await service.create(3600, meta="first")
    first = {field: value for field, value in (await service.find(job_id)).items() if field != "state"}
    async with delivering(client, own):
        assert (await service.change(job_id, 3600, meta="second")).status_code == 200
    await reset(client, workflow_of(client, service, job_id))

    if method == "PUT":
        answer = await service.put(job_id, first)
    else:
        answer = await service.api.post(service.jobs, json=first)

    assert refused(answer) == AWAY
    async with delivering(client, own):
        await eventually(lambda: service.find(job_id), lambda job: job["meta"] == "second")


async def test_a_cancel_of_a_job_that_was_reset_is_kept_until_it_would_be_due_after_its_changes(
    alone: tuple[Service, Settings], client: Client
) -> None:
    service, own = alone
    job_id = await service.create(3600)
    async with delivering(client, own):
        assert (await service.change(job_id, 60 * 24 * 3600)).status_code == 200
    await reset(client, workflow_of(client, service, job_id))
    run = await first_run(client, service, job_id)

    assert (await service.cancel(job_id)).status_code == 200

    async with open_pool(own) as pool, connection(pool) as postgres:
        kept = await postgres.fetchval("SELECT at - clock_timestamp() FROM delivery_ledger WHERE run_id = $1", run)
    assert kept > timedelta(days=59)

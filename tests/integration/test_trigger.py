"""Run now: as exact as a change, and with the same answers when it comes too late."""

import asyncio
import re
from datetime import timedelta
from pathlib import Path

from msgspec import Raw
from temporalio import workflow
from temporalio.client import Client
from temporalio.common import SearchAttributePair, TypedSearchAttributes
from temporalio.worker import Worker

from tests.integration.test_release import told_to_wait
from tests.support.holds import pause, resume, wait_until_held, wait_until_listed
from tests.support.job_histories import workflow_of
from tests.support.receiver import Received, Receiver, response
from tests.support.refusals import AWAY, NO_SUCH_JOB, TOO_LATE
from tests.support.service import ROUTE, Service, a_job, new_id, now_ms, refused
from tests.support.waiting import eventually
from timemachine.domain.jobs import Job
from timemachine.postgres.pool import connection, open_pool
from timemachine.settings import Settings
from timemachine.temporal.search_attributes import ROUTE as ROUTE_ATTRIBUTE

OK = {"status": "ok"}

UPGRADES = Path(__file__).parents[2] / "docs" / "upgrades.md"


async def test_a_waiting_job_goes_out_now(service: Service, receiver: Receiver) -> None:
    job_id = await service.create(3600, meta="kept", labels=["a"])
    before = now_ms()

    assert (await service.trigger(job_id)).json() == OK

    (received,) = await receiver.wait_for(job_id)
    shown = await service.wait_for_state(job_id, "delivered")
    assert received.body == b'"kept"'
    assert received.headers["timemachine-trigger-time"] == str(shown["trigger_time"])
    assert before - 1000 <= shown["trigger_time"] <= received.at_ms
    assert (shown["labels"], shown["attempts"]) == (["a"], 1)


async def test_a_job_that_was_changed_goes_out_as_it_is_now(service: Service, receiver: Receiver) -> None:
    job_id = await service.create(3600, meta="old")
    await service.change(job_id, 7200, meta="new")

    assert (await service.trigger(job_id)).json() == OK

    (received,) = await receiver.wait_for(job_id)
    assert received.body == b'"new"'


async def test_one_that_is_not_there_is_not_run(service: Service) -> None:
    assert refused(await service.trigger("never")) == NO_SUCH_JOB


async def test_it_comes_too_late_for_a_job_that_has_ended(service: Service, receiver: Receiver) -> None:
    delivered, cancelled = await service.create(0), await service.create(3600)
    await service.wait_for_state(delivered, "delivered")
    await service.cancel(cancelled)

    assert refused(await service.trigger(delivered)) == TOO_LATE
    assert refused(await service.trigger(cancelled)) == TOO_LATE
    assert len(receiver.of(delivered)) == 1


async def test_it_comes_too_late_between_attempts_and_during_one(service: Service, receiver: Receiver) -> None:
    answered = asyncio.Event()

    async def slow(_: Received) -> bytes:
        await answered.wait()
        return response(500)

    receiver.answer = slow
    job_id = await service.create(0, retry={"waits": [60]})
    await receiver.wait_for(job_id)

    during = asyncio.create_task(service.trigger(job_id))
    await asyncio.sleep(0.1)
    answered.set()

    assert refused(await during) == TOO_LATE
    await eventually(lambda: service.find(job_id), lambda job: job.get("attempts") == 1)
    assert refused(await service.trigger(job_id)) == TOO_LATE
    await service.cancel(job_id)


async def test_a_held_job_that_is_run_now_goes_out_when_its_route_is_active(
    service: Service, receiver: Receiver, client: Client
) -> None:
    await pause(service)
    job_id = await service.create(0)
    await wait_until_held(service, job_id)

    assert (await service.trigger(job_id)).json() == OK
    held = await wait_until_held(service, job_id)
    assert held["state"] == "scheduled"
    assert (await service.trigger(job_id)).json() == OK  # as often as one likes
    await wait_until_held(service, job_id)
    await resume(service)

    (received,) = await receiver.wait_for(job_id)
    assert received.headers["timemachine-trigger-time"] != str(held["trigger_time"])
    await service.wait_for_state(job_id, "delivered")


async def test_a_held_job_that_is_run_now_soon_looks_again_at_its_route(
    service: Service, receiver: Receiver, settings: Settings
) -> None:
    """A release may miss it just then, so its own looks must not have become rare."""
    await pause(service)
    job_id = await service.create(0)
    await wait_until_held(service, job_id)
    await service.trigger(job_id)
    await wait_until_held(service, job_id)

    async with open_pool(settings) as pool, connection(pool) as postgres:
        await postgres.execute("UPDATE routes SET state = 'active' WHERE db = $1", service.db)

    await receiver.wait_for(job_id)


async def test_a_job_that_waits_in_a_spread_goes_out_now(service: Service, receiver: Receiver, client: Client) -> None:
    job_id = await told_to_wait(service, client)

    assert (await service.trigger(job_id)).json() == OK

    await receiver.wait_for(job_id)
    assert "next_attempt_time" not in await service.wait_for_state(job_id, "delivered")


async def test_a_held_job_whose_deadline_has_passed_is_not_run(service: Service, receiver: Receiver) -> None:
    await pause(service)
    job_id = await service.create(0, deadline=now_ms(1.5))
    await wait_until_held(service, job_id)
    await asyncio.sleep(1.5)

    answer = await service.trigger(job_id)

    assert refused(answer) == TOO_LATE
    assert "deadline" in answer.json()["error"]


async def test_a_job_that_is_delivered_once_more_is_not_run_now(service: Service, receiver: Receiver) -> None:
    job_id = await service.create(0)
    await service.wait_for_state(job_id, "delivered")
    await pause(service)
    await service.api.post(f"{service.jobs}/{job_id}/redeliver")
    await wait_until_held(service, job_id)

    assert refused(await service.trigger(job_id)) == TOO_LATE


async def test_a_create_that_is_repeated_after_its_job_was_run_early_delivers_nothing_twice(
    service: Service, receiver: Receiver
) -> None:
    job = a_job(3600)
    await service.api.post(service.jobs, json=job)
    await service.trigger(job["id"])
    shown = await service.wait_for_state(job["id"], "delivered")

    for time in (job["trigger_time"], shown["trigger_time"]):
        for again in (
            await service.api.post(service.jobs, json=job | {"trigger_time": time}),
            await service.put(job["id"], job | {"trigger_time": time}),
        ):
            assert (again.status_code, again.headers["timemachine-job"]) == (200, "unchanged"), again.text
    assert len(receiver.of(job["id"])) == 1


async def test_a_job_can_be_run_now_that_goes_on_as_a_new_run(cut: Service, receiver: Receiver) -> None:
    job_id = await cut.create(3600)
    for turn in range(12):
        await cut.change(job_id, 3600 + turn)

    assert (await cut.trigger(job_id)).json() == OK

    (received,) = await receiver.wait_for(job_id)
    assert int(received.headers["timemachine-trigger-time"]) <= received.at_ms
    assert (await cut.wait_for_end(job_id))["state"] == "delivered"


# --- what was started, or is run, by the version before


async def start_before_ledger(client: Client, service: Service, due_in: float) -> str:
    """Start a job as it was started before there was the ledger."""
    job_id = new_id()
    job = Job(
        db=service.db,
        collection="c",
        id=job_id,
        trigger_time=now_ms(due_in),
        route=ROUTE,
        meta=Raw(b"1"),
        attempt_in_task=True,
    )
    await client.start_workflow(
        "Job",
        job,
        id=job.workflow_id,
        task_queue="tests",
        start_delay=timedelta(seconds=due_in),
        search_attributes=TypedSearchAttributes([SearchAttributePair(ROUTE_ATTRIBUTE, job.route_key)]),
    )
    return job_id


async def test_a_run_from_before_the_ledger_is_run_now(service: Service, receiver: Receiver, client: Client) -> None:
    job_id = await start_before_ledger(client, service, 3600)

    assert (await service.trigger(job_id)).json() == OK

    (received,) = await receiver.wait_for(job_id)
    assert int(received.headers["timemachine-trigger-time"]) <= received.at_ms
    assert (await service.wait_for_end(job_id))["state"] == "delivered"
    assert refused(await service.trigger(job_id)) == TOO_LATE


async def test_a_run_from_before_the_ledger_that_waits_in_a_spread_goes_out_now(
    service: Service, receiver: Receiver, client: Client
) -> None:
    await pause(service)
    job_id = await start_before_ledger(client, service, 0)
    await wait_until_held(service, job_id)
    await wait_until_listed(client, service, 1)
    await resume(service, spread=86_400)
    query = f"TimemachineRoute = '{service.db}/{ROUTE}' AND TimemachineHeld = true"
    await eventually(lambda: client.count_workflows(query), lambda found: found.count == 0)

    assert (await service.trigger(job_id)).json() == OK

    await receiver.wait_for(job_id)


async def test_a_run_from_before_the_ledger_is_counted_as_one_when_it_goes_on_as_a_new_run(
    cut: Service, client: Client
) -> None:
    """By the query after which the code for such runs may be removed. The new run is started later."""
    job_id = await start_before_ledger(client, cut, 3600)
    await cut.create(3600)
    (query,) = re.findall(r'temporal workflow count -q "(.* IS NULL)"', UPGRADES.read_text())
    first = (await workflow_of(client, cut, job_id).describe()).run_id

    async def is_continued() -> bool:
        await cut.change(job_id, 3600)
        return (await workflow_of(client, cut, job_id).describe()).run_id != first

    await eventually(is_continued)

    mine = f"{query} AND TimemachineRoute = '{cut.db}/{ROUTE}'"
    await eventually(lambda: client.count_workflows(mine), lambda found: found.count == 1)
    assert (await cut.cancel(job_id)).status_code == 200


@workflow.defn(name="Job", sandboxed=False)
class JobOfTheVersionBefore:
    """Knows no trigger."""

    @workflow.run
    async def run(self, job: Job) -> None:
        await workflow.wait_condition(lambda: False)


async def test_a_worker_of_the_version_before_makes_it_unavailable(
    alone: tuple[Service, Settings], receiver: Receiver, client: Client
) -> None:
    service, own = alone
    job_id = await service.create(3600)
    async with Worker(client, task_queue=own.task_queue, workflows=[JobOfTheVersionBefore]):
        answer = await service.trigger(job_id)

    assert refused(answer) == AWAY
    assert (await service.find(job_id))["state"] == "scheduled"

"""The first attempt, made within a workflow task: made once, whatever becomes of the task."""

import asyncio
from datetime import UTC, datetime, timedelta

from activities.flights import Flights
from msgspec.structs import replace
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowHandle

from activities import deliver
from tests.receiver import Received, Receiver, response
from tests.service import ROUTE, Service, new_id, refused
from timemachine.attempt_log import Attempt, AttemptLog
from timemachine.delivery import Delivered, Kind
from timemachine.job_runs import latest_run
from timemachine.postgres import connection, open_pool
from timemachine.route_store import RouteStore
from timemachine.settings import Settings
from timemachine.vault import Vault

Events = list[EventType.ValueType]


async def events(client: Client, service: Service, job_id: str) -> Events:
    handle: WorkflowHandle[object, object] = client.get_workflow_handle(f"{service.db}/c/{job_id}")
    return [event.event_type async for event in handle.fetch_history_events()]


async def test_a_job_that_is_taken_at_once_has_six_events(service: Service, client: Client) -> None:
    job_id = await service.create(0)
    await service.wait_for_state(job_id, "delivered")

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
    await service.wait_for_state(job_id, "delivering")

    assert refused(await service.change(job_id, 5)) == (400, "E006")
    cancelling = asyncio.create_task(service.cancel(job_id))
    while EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED not in await events(client, service, job_id):
        await asyncio.sleep(0.05)
    answered.set()

    assert refused(await cancelling) == (400, "E006")
    assert (await service.find(job_id))["attempts"] == 1
    assert len(receiver.of(job_id)) == 1


async def test_a_cancel_in_the_moment_of_the_attempt(service: Service, receiver: Receiver, client: Client) -> None:
    """The cancel makes the server refuse the task's end, and the task is run again: the attempt must not be."""
    answer, asked = asyncio.Event(), asyncio.Event()

    async def hold(_: Received) -> bytes:
        asked.set()
        await answer.wait()
        return response(200)

    receiver.answer = hold
    job_id = await service.create(0)
    await asked.wait()
    await client.get_workflow_handle(f"{service.db}/c/{job_id}").cancel()
    answer.set()

    assert (await service.wait_for_end(job_id))["state"] == "delivered"
    assert EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED in await events(client, service, job_id)
    assert len(receiver.of(job_id)) == 1


async def of_another_worker(client: Client, service: Service, job_id: str) -> Attempt:
    """Return the attempt as another worker logs it that was successful."""
    run = await latest_run(client, f"{service.db}/c/{job_id}")
    return Attempt(
        db=service.db,
        collection="c",
        job_id=job_id,
        route_id=run.job.route,
        run_id=run.run_id,
        message_id=run.message_id,
        attempt=1,
        started_at=datetime.now(UTC),
        duration_ms=1,
        status=200,
        kind=Kind.TAKEN,
        error=None,
        worker="another",
    )


async def begin_elsewhere(settings: Settings, run: str, ago: timedelta = timedelta(0)) -> None:
    """Note the first attempt of a run as another worker does that begins it."""
    async with open_pool(settings) as pool, connection(pool) as postgres:
        await postgres.execute(
            "INSERT INTO first_attempts (run_id, begun_at) VALUES ($1, now() - $2::interval)", run, ago
        )


async def test_an_attempt_that_another_worker_makes_is_waited_for(
    service: Service, receiver: Receiver, client: Client, settings: Settings
) -> None:
    job_id = await service.create(1.5)
    taken = await of_another_worker(client, service, job_id)
    await begin_elsewhere(settings, taken.run_id)
    job = await service.wait_for_state(job_id, "delivering")
    while "last_error" not in job:
        job = await service.find(job_id)
    assert job["last_error"] == "another worker may be making the attempt"

    async with open_pool(settings) as pool:
        await AttemptLog(pool).record(taken)

    assert (await service.wait_for_state(job_id, "delivered"))["attempts"] == 1
    assert receiver.of(job_id) == []


async def test_an_attempt_that_was_lost_with_its_worker_is_made_again(
    service: Service, receiver: Receiver, client: Client, settings: Settings
) -> None:
    job_id = await service.create(1.5)
    lost = await of_another_worker(client, service, job_id)
    await begin_elsewhere(settings, lost.run_id, deliver.LOST_AFTER)

    assert (await service.wait_for_state(job_id, "delivered"))["attempts"] == 1
    assert len(receiver.of(job_id)) == 1


async def test_what_an_attempt_elsewhere_failed_with_counts(
    service: Service, receiver: Receiver, client: Client, settings: Settings
) -> None:
    job_id = await service.create(1.5, retry={"waits": [0.2]})
    taken = await of_another_worker(client, service, job_id)
    await begin_elsewhere(settings, taken.run_id)
    async with open_pool(settings) as pool:
        failed = replace(taken, status=500, kind=Kind.REFUSED, error="500 from the receiver")
        await AttemptLog(pool).record(failed)

    assert (await service.wait_for_state(job_id, "delivered"))["attempts"] == 2
    assert [received.headers["timemachine-attempt"] for received in receiver.of(job_id)] == ["2"]


async def test_a_flight_is_not_cut_by_who_waits_for_it() -> None:
    flights, land = Flights(1), asyncio.Event()

    async def attempt() -> Delivered:
        await land.wait()
        return Delivered(status=200, attempts=1, delivered_at=0, late_ms=0)

    waiting = asyncio.create_task(asyncio.wait([flights.take_off("run", attempt())]))
    await asyncio.sleep(0)
    assert flights.full
    waiting.cancel()
    land.set()
    await flights.landed()
    assert not flights.full

    flight = flights.of("run")
    assert flight
    assert flight.result().status == 200


async def test_a_cancel_waits_for_an_attempt_on_another_worker(
    service: Service, receiver: Receiver, client: Client, settings: Settings
) -> None:
    job_id = await service.create(1.5)
    taken = await of_another_worker(client, service, job_id)
    await begin_elsewhere(settings, taken.run_id)
    while "last_error" not in await service.find(job_id):
        await asyncio.sleep(0.05)

    cancelling = asyncio.create_task(service.cancel(job_id))
    while EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED not in await events(client, service, job_id):
        await asyncio.sleep(0.05)
    async with open_pool(settings) as pool:
        await AttemptLog(pool).record(taken)

    assert refused(await cancelling) in [(400, "E006"), (503, "E015")]
    assert (await service.wait_for_end(job_id))["state"] == "delivered"
    assert receiver.of(job_id) == []


async def test_after_an_activity_has_asked_no_task_begins_the_attempt(service: Service, settings: Settings) -> None:
    run = new_id()
    async with open_pool(settings) as pool:
        assert await AttemptLog(pool).claim_first(run) is None
        assert await AttemptLog(pool).claim_first(run) is None
        store = RouteStore(pool, Vault(settings))
        assert await store.first_target(service.db, ROUTE, run) is None
        assert await store.first_target(service.db, "deleted meanwhile", run) is None


async def test_a_change_to_now_is_durable_before_it_is_delivered(
    service: Service, receiver: Receiver, client: Client
) -> None:
    job_id = await service.create(3600)
    assert (await service.change(job_id, 0, meta="now")).json() == {"status": "ok"}
    await service.wait_for_state(job_id, "delivered")

    assert [received.body for received in receiver.of(job_id)] == [b'"now"']
    assert EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED in await events(client, service, job_id)

"""Operations as one thing: releases, redeliveries and cancels of many are listed, shown and stopped alike."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any

import httpx
import pytest
from msgspec.structs import replace
from temporalio import activity
from temporalio.api.enums.v1 import EventType, PendingActivityState
from temporalio.client import Client, WorkflowExecution, WorkflowExecutionDescription, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from activities import cancel_many, redelivery, release
from activities.redelivery import Redeliveries
from activities.release import Releases
from api.app import create_app
from devstack.temporal import Temporal
from tests.conftest import delivering, serving, working
from tests.integration.test_bulk import redeliver_all, until_failed
from tests.integration.test_cancel_many import cancel, find, until_ended
from tests.support.failed_jobs import fail, refuse
from tests.support.holds import held_count, hold, resume
from tests.support.receiver import Receiver, take
from tests.support.refusals import MALFORMED, NO_SUCH_OPERATION, TOO_LATE
from tests.support.service import ROUTE, Service, now_ms, refused
from tests.support.waiting import eventually
from timemachine.domain.operations import parse_operation_id
from timemachine.domain.redelivery import FailedJobs, redelivery_key
from timemachine.domain.releases import ReleaseHeld
from timemachine.postgres.pool import open_pool
from timemachine.settings import Settings
from timemachine.temporal.job_runs import redeliver
from timemachine.temporal.operations import find_operation, start_operation
from timemachine.webhooks.client import WebhookClient
from worker import bulk_activities, create_bulk_worker

SILENCE = timedelta(seconds=3)
AWAY = RPCError("away", RPCStatusCode.UNAVAILABLE, b"")
UNKNOWN_RUN = "00000000-0000-4000-8000-000000000000"


async def listed(service: Service, **query: Any) -> list[dict[str, Any]]:
    """Return the operations of a db, followed to their end."""
    found: list[dict[str, Any]] = []
    while True:
        answer = await service.api.get(f"/operation/{service.db}", params=query)
        assert answer.status_code == 200, answer.text
        found += answer.json()["operations"]
        if "next" not in answer.json():
            return found
        query["cursor"] = answer.json()["next"]


async def until_listed(service: Service, *kinds: str) -> list[dict[str, Any]]:
    """Return the operations of a db once they are of these kinds, and have all ended."""
    return await eventually(
        lambda: listed(service),
        lambda found: (
            sorted(operation["kind"] for operation in found) == sorted(kinds)
            and all(operation["state"] != "running" for operation in found)
        ),
    )


async def stop(service: Service, operation_id: str) -> httpx.Response:
    return await service.api.delete(f"/operation/{service.db}/{operation_id}")


async def test_what_was_done_with_many_is_listed(service: Service, client: Client, receiver: Receiver) -> None:
    before = now_ms()
    await hold(service, client, 3)
    await resume(service)
    await until_listed(service, "release")
    receiver.answer = refuse
    await fail(service)
    await until_failed(client, service, 1)
    receiver.answer = take
    redelivery_id = await redeliver_all(service)
    await until_listed(service, "release", "redelivery")
    delivered = f"WorkflowType = 'Job' AND ExecutionStatus = 'Completed' AND TimemachineRoute = '{service.db}/{ROUTE}'"
    await eventually(lambda: client.count_workflows(delivered), lambda found: found.count == 4)
    cancelled = await cancel(service, route=ROUTE)
    await until_ended(service, cancelled["id"])

    found = await until_listed(service, "release", "redelivery", "cancel")

    by_kind = {operation["kind"]: operation for operation in found}
    assert [operation["kind"] for operation in found] == ["cancel", "redelivery", "release"]
    for operation in found:
        assert await find(service, operation["id"]) == operation
        assert before - 1000 < operation.pop("started_at") <= operation.pop("ended_at") <= now_ms() + 1000
    window = redelivery_id.partition("-")[2]
    assert by_kind["redelivery"].pop("id").startswith(f"redelivery:{ROUTE}:0-{window}:")
    assert by_kind["release"].pop("id").startswith(f"release:{ROUTE}:")
    assert by_kind["cancel"].pop("id") == cancelled["id"]
    counts = {"state": "done", "failed": 0}
    assert by_kind == {
        "release": counts | {"kind": "release", "matched": 3, "done": 3, "route": ROUTE},
        "redelivery": counts | {"kind": "redelivery", "matched": 1, "done": 1, "route": ROUTE},
        "cancel": counts | {"kind": "cancel", "matched": 0, "done": 0, "delivered": 0, "filter": {"route": ROUTE}},
    }


async def test_the_list_is_paged_and_of_this_db_only(service: Service) -> None:
    other = Service(service.api, f"{service.db}x")
    ids = [(await cancel(service, label=label))["id"] for label in ("a", "b", "c")]
    await cancel(other, label="a")

    await until_listed(service, "cancel", "cancel", "cancel")

    pages = await listed(service, limit=1)
    assert {operation["id"] for operation in pages} == set(ids)
    assert len(pages) == 3
    first = (await service.api.get(f"/operation/{service.db}?limit=1")).json()
    answer = await service.api.get(f"/operation/{other.db}", params={"cursor": first["next"]})
    assert refused(answer) == MALFORMED


async def test_an_operation_has_who_started_it(service: Service, client: Client, settings: Settings) -> None:
    wanted = ReleaseHeld(db=service.db, route_id=ROUTE)
    operation_id = await start_operation(
        client,
        wanted.key,
        wanted,
        task_queue=settings.task_queue,
        summary="a release",
        route=ROUTE,
        started_by="k3Jx9QmW2aBc",
    )

    assert (await find_operation(client, service.db, operation_id)).started_by == "k3Jx9QmW2aBc"
    assert (await find(service, operation_id))["started_by"] == "k3Jx9QmW2aBc"


async def test_what_is_not_there_is_told_so(service: Service) -> None:
    (operation,) = [await cancel(service, label="x")]
    other_db = f"/operation/{service.db}x/{operation['id']}"
    unknown = operation["id"][:-36] + UNKNOWN_RUN
    for path in (other_db, f"/operation/{service.db}/{unknown}", f"/operation/{service.db}/x"):
        assert refused(await service.api.get(path)) == NO_SUCH_OPERATION
        assert refused(await service.api.delete(path)) == NO_SUCH_OPERATION


async def test_an_operation_that_has_ended_is_not_stopped(service: Service) -> None:
    operation = await cancel(service, label="x")
    await until_ended(service, operation["id"])

    assert refused(await stop(service, operation["id"])) == TOO_LATE

    assert (await find(service, operation["id"]))["state"] == "done"
    audit = (await service.api.get(f"/audit/{service.db}")).json()["entries"]
    assert "operation.stop" not in {entry["action"] for entry in audit}


@pytest.fixture
async def slow(
    settings: Settings, client: Client, temporal: Temporal, receiver: Receiver, db: str
) -> AsyncIterator[Service]:
    """A service whose bulk work does two jobs a second."""
    own = replace(settings, task_queue=f"slow-{uuid.uuid4().hex}", bulk_per_second=2)
    with pytest.MonkeyPatch.context() as env:
        env.setenv("TEMPORAL_ADDRESS", temporal.address)
        async with (
            serving(create_app(own)) as api,
            open_pool(own) as pool,
            WebhookClient(timeout=5, max_connections=9, address_guard=own.address_guard) as webhooks,
            working(client, pool, webhooks, own),
        ):
            service = Service(api, db)
            await service.add_route(receiver.url)
            yield service


async def test_the_operations_of_one_db_do_not_hold_up_those_of_another(slow: Service, db: str) -> None:
    await asyncio.gather(*(cancel(slow, label=f"nothing {number}") for number in range(30)))
    other = Service(slow.api, f"{db}-other")

    await until_ended(other, (await cancel(other, label="x"))["id"])

    assert "running" in {operation["state"] for operation in await listed(slow, limit=200)}


async def test_a_stop_waits_for_no_other_operation(slow: Service) -> None:
    first = await cancel(slow, label="first")
    await eventually(lambda: find(slow, first["id"]), lambda operation: "matched" in operation)
    await asyncio.gather(*(cancel(slow, label=f"nothing {number}") for number in range(30)))

    await stop(slow, first["id"])
    assert (await until_ended(slow, first["id"]))["state"] in ("stopped", "done")

    assert "running" in {operation["state"] for operation in await listed(slow, limit=200)}


async def the_only(service: Service, kind: str) -> dict[str, Any]:
    """Return the one operation of a db, which is under way."""
    (operation,) = await eventually(lambda: listed(service))
    assert operation["kind"] == kind
    return operation


async def test_a_release_is_stopped_in_the_middle(
    slow: Service, client: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.job.HOLD_CHECKS", (timedelta(hours=1),))  # none goes out by itself meanwhile
    await hold(slow, client, 40)
    await resume(slow)
    operation = await the_only(slow, "release")
    seen = await eventually(lambda: find(slow, operation["id"]), lambda seen: seen.get("done", 0) > 5)
    assert (seen["state"], seen["matched"]) == ("running", 40)
    assert seen["rate"] > 0

    assert (await stop(slow, operation["id"])).json() == {"status": "ok"}

    stopped = await until_ended(slow, operation["id"])
    assert stopped["state"] == "stopped"
    assert 5 < stopped["done"] < 40
    assert (await stop(slow, operation["id"])).json() == {"status": "ok"}
    await eventually(lambda: held_count(client, slow), lambda held: held == 40 - stopped["done"])
    await receiver.wait_until(lambda: len(receiver.received) == stopped["done"])


async def test_a_redelivery_is_stopped_in_the_middle(slow: Service, client: Client, receiver: Receiver) -> None:
    receiver.answer = refuse
    await asyncio.gather(*(fail(slow) for _ in range(30)))
    await until_failed(client, slow, 30)
    receiver.answer = take
    redelivery_id = await redeliver_all(slow)
    operation = await the_only(slow, "redelivery")
    await eventually(lambda: find(slow, operation["id"]), lambda seen: seen.get("done", 0) > 5)

    assert (await stop(slow, operation["id"])).json() == {"status": "ok"}

    stopped = await until_ended(slow, operation["id"])
    assert (stopped["state"], stopped["matched"]) == ("stopped", 30)
    assert 5 < stopped["done"] < 30
    answer = await slow.api.get(f"/route/{slow.db}/{ROUTE}/redeliver/{redelivery_id}")
    assert answer.json() == {
        "id": redelivery_id,
        "found": 30,
        "started": stopped["done"],
        "skipped": 0,
        "done": True,
        "error": "it was stopped",
    }
    await receiver.wait_until(lambda: len(receiver.received) == 30 + stopped["done"])


def wait_for_the_stop(
    monkeypatch: pytest.MonkeyPatch, work: type, step: str, *, fails: bool = False
) -> Callable[[], Awaitable[object]]:
    """Have the third of an activity's steps last until the activity is told to stop, and then fail perhaps.

    Returns what waits until that step has begun.
    """
    take, taken, is_third = getattr(work, step), count(1), asyncio.Event()

    async def until_told(*args: object) -> object:
        if next(taken) == 3:
            is_third.set()
            while not activity.is_cancelled():
                activity.heartbeat()
                await asyncio.sleep(0.05)
            if fails:
                raise AWAY
        return await take(*args)

    monkeypatch.setattr(work, step, until_told)
    return is_third.wait


@pytest.mark.parametrize("fails", [False, True])
async def test_what_is_being_redelivered_when_it_is_stopped_counts(
    service: Service, client: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    await failed_jobs(service, client, receiver, 5)
    receiver.answer = take
    until_third = wait_for_the_stop(monkeypatch, Redeliveries, "_started", fails=fails)
    await redeliver_all(service)
    operation = await the_only(service, "redelivery")
    await until_third()

    assert (await stop(service, operation["id"])).json() == {"status": "ok"}

    stopped = await until_ended(service, operation["id"])
    assert (stopped["state"], stopped["done"]) == ("stopped", 2 if fails else 3)
    await receiver.wait_until(lambda: len(receiver.received) == 5 + stopped["done"])


async def test_what_was_redelivered_before_a_retry_that_is_stopped_counts(
    service: Service, client: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The retry goes through the page once more, and is stopped at its first job."""
    await failed_jobs(service, client, receiver, 5)
    receiver.answer = take
    started, steps, again = Redeliveries._started, count(1), asyncio.Event()

    async def started_until_away(redeliveries: Redeliveries, failure: WorkflowExecution) -> bool:
        step = next(steps)
        if step == 4:
            raise AWAY
        if step == 5:
            again.set()
            while not activity.is_cancelled():
                activity.heartbeat(*activity.info().heartbeat_details)
                await asyncio.sleep(0.05)
        return await started(redeliveries, failure)

    monkeypatch.setattr(Redeliveries, "_started", started_until_away)
    await redeliver_all(service)
    operation = await the_only(service, "redelivery")
    await again.wait()

    assert (await stop(service, operation["id"])).json() == {"status": "ok"}

    assert (await until_ended(service, operation["id"]))["done"] == 3
    await receiver.wait_until(lambda: len(receiver.received) == 5 + 3)


async def test_what_is_being_released_when_it_is_stopped_counts(
    service: Service, client: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.job.HOLD_CHECKS", (timedelta(hours=1),))
    await hold(service, client, 5)
    until_third = wait_for_the_stop(monkeypatch, Releases, "_signal")
    await resume(service)
    operation = await the_only(service, "release")
    await until_third()

    assert (await stop(service, operation["id"])).json() == {"status": "ok"}

    stopped = await until_ended(service, operation["id"])
    assert (stopped["matched"], stopped["done"]) == (5, 3)
    await receiver.wait_until(lambda: len(receiver.received) == 3)


async def failed_jobs(service: Service, client: Client, receiver: Receiver, jobs: int) -> list[str]:
    """Have some jobs fail, and the receiver refuse what comes."""
    receiver.answer = refuse
    ids = list(await asyncio.gather(*(fail(service) for _ in range(jobs))))
    await until_failed(client, service, jobs)
    return ids


def note_first_and_retry_third(
    monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[WorkflowExecution], Awaitable[None]]
) -> None:
    """Have Temporal go away at the third job of a redelivery, once something has happened to the first one."""
    started, seen = Redeliveries._started, list[WorkflowExecution]()

    async def scripted(redeliveries: Redeliveries, failure: WorkflowExecution) -> bool:
        seen.append(failure)
        if len(seen) == 3:
            await meanwhile(seen[0])
            raise AWAY
        return await started(redeliveries, failure)

    monkeypatch.setattr(Redeliveries, "_started", scripted)


@pytest.mark.parametrize("how", ["redelivered", "created anew"])
async def test_what_was_redelivered_counts_though_something_else_has_happened_to_it_before_a_retry(
    service: Service, client: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    await failed_jobs(service, client, receiver, 4)

    async def meanwhile(failure: WorkflowExecution) -> None:
        job_id = failure.id.rpartition("/")[2]
        await receiver.wait_for(job_id, 2)
        await service.wait_for_state(job_id, "failed")
        if how == "redelivered":
            receiver.answer = take
            assert (await service.api.post(f"{service.jobs}/{job_id}/redeliver")).status_code == 200
            await service.wait_for_state(job_id, "delivered")
        else:
            await service.create(3600, job_id=job_id)

    note_first_and_retry_third(monkeypatch, meanwhile)
    await redeliver_all(service)

    (operation,) = await until_listed(service, "redelivery")
    assert (operation["state"], operation["done"], operation["failed"]) == ("done", 4, 0)


async def test_what_was_redelivered_by_an_attempt_that_was_taken_for_lost_counts(
    service: Service, client: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lives on, and starts the job that the next attempt is just about to start."""
    monkeypatch.setattr("workflows.redelivery.SILENCE", SILENCE)
    (job_id,) = await failed_jobs(service, client, receiver, 1)
    receiver.answer = take
    both = asyncio.Event()

    async def meet(*args: Any, **kwargs: Any) -> None:
        if activity.info().attempt > 1:
            both.set()
            await receiver.wait_for(job_id, 2)
        else:
            await both.wait()
        await redeliver(*args, **kwargs)

    monkeypatch.setattr("activities.redelivery.redeliver", meet)
    await redeliver_all(service)

    (operation,) = await until_listed(service, "redelivery")
    assert (operation["done"], operation["failed"]) == (1, 0)
    assert len(receiver.of(job_id)) == 2


async def test_a_redelivery_starts_nothing_again_that_failed_again(
    service: Service, client: Client, receiver: Receiver, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The window goes on into the future where Temporal's clock is behind that of the API."""
    ids = await failed_jobs(service, client, receiver, 3)

    async def meanwhile(_: WorkflowExecution) -> None:
        await until_failed(client, service, 5)

    note_first_and_retry_third(monkeypatch, meanwhile)
    window = FailedJobs(db=service.db, route_id=ROUTE, since=0, until=now_ms(60))
    key = redelivery_key(service.db, ROUTE, window.id)

    await client.execute_workflow("Redelivery", window, id=key.workflow_id, task_queue=settings.task_queue)

    for job_id in ids:
        await receiver.wait_for(job_id, 2)
    assert len(receiver.received) == 2 * len(ids)


Does = Callable[[], Awaitable[None]]


def script(monkeypatch: pytest.MonkeyPatch, work: type, step: str, at: int, does: Does) -> None:
    """Have something happen just before one of an activity's steps, which are counted from 1."""
    take, taken = getattr(work, step), count(1)

    async def scripted(*args: Any) -> Any:
        if next(taken) == at:
            await does()
        return await take(*args)

    monkeypatch.setattr(work, step, scripted)


async def stop_the_only(service: Service) -> None:
    (running,) = await eventually(lambda: listed(service))
    assert (await stop(service, running["id"])).json() == {"status": "ok"}


async def yield_its_slot(service: Service) -> None:
    await stop_the_only(service)
    raise ApplicationError("others take their turn", type="YieldsSlot", next_retry_delay=timedelta(seconds=0.1))


async def fail_a_request(service: Service) -> None:
    await stop_the_only(service)
    raise AWAY


async def fall_silent(service: Service) -> None:
    await stop_the_only(service)
    await asyncio.sleep(2 * SILENCE.total_seconds())


Unaware = Callable[[Service], Awaitable[None]]
unaware_of_its_stop = pytest.mark.parametrize("unaware", [yield_its_slot, fail_a_request, fall_silent])


@unaware_of_its_stop
async def test_a_redelivery_whose_activity_does_not_learn_of_the_stop_keeps_its_figures(
    service: Service, client: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, unaware: Unaware
) -> None:
    """Temporal does not try such an activity again."""
    monkeypatch.setattr("workflows.redelivery.SILENCE", SILENCE)
    monkeypatch.setattr(redelivery, "PAGE", 3)
    await failed_jobs(service, client, receiver, 5)
    receiver.answer = take
    script(monkeypatch, Redeliveries, "_started", 3, partial(unaware, service))

    await redeliver_all(service)

    (operation,) = await until_listed(service, "redelivery")
    assert (operation["state"], operation["matched"]) == ("stopped", 5)
    assert operation["done"] in (2, 3)
    await receiver.wait_until(lambda: len(receiver.received) == 5 + operation["done"])
    assert (await stop(service, operation["id"])).json() == {"status": "ok"}


@unaware_of_its_stop
async def test_a_cancel_whose_activity_does_not_learn_of_the_stop_keeps_its_figures(
    service: Service, client: Client, monkeypatch: pytest.MonkeyPatch, unaware: Unaware
) -> None:
    monkeypatch.setattr("workflows.cancel_many.SILENCE", SILENCE)
    monkeypatch.setattr(cancel_many, "AT_ONCE", 1)
    ids = [await service.create(3600, labels=["a"]) for _ in range(5)]
    await eventually(lambda: client.count_workflows(f"TimemachineDb = '{service.db}'"), lambda found: found.count == 5)
    script(monkeypatch, cancel_many._Cancel, "_cancel", 3, partial(unaware, service))

    await cancel(service, label="a")

    (operation,) = await until_listed(service, "cancel")
    assert (operation["state"], operation["matched"]) == ("stopped", 5)
    states = [(await service.find(job_id))["state"] for job_id in ids]
    assert operation["done"] == states.count("cancelled") > 0


@unaware_of_its_stop
async def test_a_release_whose_activity_does_not_learn_of_the_stop_has_no_figures(
    service: Service, client: Client, monkeypatch: pytest.MonkeyPatch, unaware: Unaware
) -> None:
    """Nothing shows which jobs it has told."""
    monkeypatch.setattr("workflows.job.HOLD_CHECKS", (timedelta(hours=1),))
    monkeypatch.setattr("workflows.release.SILENCE", SILENCE)
    monkeypatch.setattr(release, "PAGE", 3)
    await hold(service, client, 5)
    script(monkeypatch, Releases, "_signal", 3, partial(unaware, service))

    await resume(service)

    (operation,) = await until_listed(service, "release")
    assert operation["state"] == "stopped"
    assert operation.keys().isdisjoint({"matched", "done"})
    assert (await stop(service, operation["id"])).json() == {"status": "ok"}


async def test_a_release_stops_after_a_look_that_was_about_to_end(
    service: Service, client: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its activity ends before Temporal tells it of the stop."""
    monkeypatch.setattr("workflows.job.HOLD_CHECKS", (timedelta(hours=1),))
    await hold(service, client, 5)
    script(monkeypatch, Releases, "_signal", 5, partial(stop_the_only, service))

    await resume(service)

    (operation,) = await until_listed(service, "release")
    assert (operation["state"], operation["done"]) == ("stopped", 5)
    await receiver.wait_until(lambda: len(receiver.received) == 5)


async def stopped_as_its_activity_ends(
    service: Service, client: Client, own: Settings, ask: Callable[[], Awaitable[object]], last_step: asyncio.Event
) -> dict[str, Any]:
    """Return an operation whose workflow learns in one task of a stop and of its activity's end."""
    async with delivering(client, own):
        await ask()
        (operation,) = await eventually(lambda: listed(service))
        workflow = client.get_workflow_handle(operation_workflow_id(service, operation["id"]))
        await eventually(workflow.describe, has_begun_activity)
    assert (await stop(service, operation["id"])).json() == {"status": "ok"}
    last_step.set()
    await eventually(lambda: event_types(workflow), lambda types: EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED in types)
    async with delivering(client, own):
        return await until_ended(service, operation["id"])


def operation_workflow_id(service: Service, operation_id: str) -> str:
    key, _ = parse_operation_id(service.db, operation_id)
    return key.workflow_id


def has_begun_activity(described: WorkflowExecutionDescription) -> bool:
    pending = described.raw_description.pending_activities
    return any(activity.state == PendingActivityState.PENDING_ACTIVITY_STATE_STARTED for activity in pending)


async def event_types(workflow: WorkflowHandle[Any, Any]) -> list[int]:
    return [event.event_type async for event in workflow.fetch_history_events()]


@pytest.fixture
async def bulk_alone(
    settings: Settings, client: Client, temporal: Temporal, receiver: Receiver, db: str
) -> AsyncIterator[tuple[Service, Settings]]:
    """A service with a worker of bulk work, and none of workflows."""
    own = replace(settings, task_queue=f"bulk-{uuid.uuid4().hex}")
    with pytest.MonkeyPatch.context() as env:
        env.setenv("TEMPORAL_ADDRESS", temporal.address)
        async with (
            serving(create_app(own)) as api,
            open_pool(own) as pool,
            create_bulk_worker(client, bulk_activities(client, pool, own), own),
        ):
            service = Service(api, db)
            await service.add_route(receiver.url)
            yield service, own


async def test_a_redelivery_that_ends_as_it_is_stopped_keeps_its_figures(
    bulk_alone: tuple[Service, Settings], client: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, own = bulk_alone
    async with delivering(client, own):
        await failed_jobs(service, client, receiver, 3)
    receiver.answer = take
    last_step = asyncio.Event()
    script(monkeypatch, Redeliveries, "_started", 3, partial(waiting_for, last_step))

    operation = await stopped_as_its_activity_ends(service, client, own, partial(redeliver_all, service), last_step)

    assert (operation["state"], operation["matched"], operation["done"]) == ("done", 3, 3)
    async with delivering(client, own):
        await receiver.wait_until(lambda: len(receiver.received) == 3 + 3)


async def test_a_cancel_that_ends_as_it_is_stopped_keeps_its_figures(
    bulk_alone: tuple[Service, Settings], client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, own = bulk_alone
    for _ in range(3):
        await service.create(3600, labels=["a"])
    await eventually(lambda: client.count_workflows(f"TimemachineDb = '{service.db}'"), lambda found: found.count == 3)
    last_step = asyncio.Event()
    script(monkeypatch, cancel_many._Cancel, "_cancel", 3, partial(waiting_for, last_step))

    operation = await stopped_as_its_activity_ends(service, client, own, partial(cancel, service, label="a"), last_step)

    assert (operation["state"], operation["matched"], operation["done"]) == ("done", 3, 3)


async def test_a_release_whose_look_ends_as_it_is_stopped_keeps_its_figures(
    bulk_alone: tuple[Service, Settings], client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.job.HOLD_CHECKS", (timedelta(hours=1),))
    service, own = bulk_alone
    async with delivering(client, own):
        await hold(service, client, 3)
    last_step = asyncio.Event()
    script(monkeypatch, Releases, "_signal", 3, partial(waiting_for, last_step))

    operation = await stopped_as_its_activity_ends(service, client, own, partial(resume, service), last_step)

    assert (operation["state"], operation["matched"], operation["done"]) == ("stopped", 3, 3)


async def waiting_for(event: asyncio.Event) -> None:
    await event.wait()


async def test_a_release_that_another_resume_replaces_was_stopped(slow: Service, client: Client) -> None:
    await hold(slow, client, 20)
    await resume(slow)
    first = await the_only(slow, "release")

    await resume(slow)

    assert (await until_ended(slow, first["id"]))["state"] == "stopped"
    second = await eventually(lambda: listed(slow), lambda found: len(found) == 2)
    assert [operation["state"] for operation in second] == ["running", "stopped"]


async def test_operations_from_before_they_were_listed_are_found(
    service: Service, client: Client, settings: Settings
) -> None:
    """They were started without what the list goes by."""
    wanted = ReleaseHeld(db=service.db, route_id=ROUTE)
    run = await client.start_workflow("Release", wanted, id=wanted.key.workflow_id, task_queue=settings.task_queue)

    operation = await until_ended(service, wanted.key.operation_id(run.result_run_id or ""))

    assert (operation["kind"], operation["state"], operation["route"]) == ("release", "done", ROUTE)

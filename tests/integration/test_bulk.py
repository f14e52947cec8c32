"""Releases, redeliveries of many, and retention: on a task queue of their own, a few at a time, all at one rate."""

import asyncio
import time
import uuid
from collections import Counter

import httpx
import pytest
from msgspec.structs import replace
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client

from activities import bulk, redelivery, release
from activities.rate_limit import RateLimiter
from devstack.temporal import Temporal
from tests.support.failed_jobs import fail, refuse
from tests.support.holds import held_count, hold
from tests.support.receiver import Received, Receiver, response, take
from tests.support.service import ROUTE, Service
from tests.support.service_of_its_own import a_service
from tests.support.waiting import eventually
from timemachine.domain.releases import ReleaseHeld
from timemachine.settings import Settings
from worker import BULK_SLOTS


@pytest.fixture
def own(settings: Settings) -> Settings:
    return replace(settings, task_queue=f"bulk-{uuid.uuid4().hex}")


async def queues_of_activities(client: Client, workflow_id: str) -> set[str]:
    """Return the task queues that a workflow's activities waited in."""
    return {
        event.activity_task_scheduled_event_attributes.task_queue.name
        async for event in client.get_workflow_handle(workflow_id).fetch_history_events()
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
    }


async def redeliver_all(service: Service, route: str = ROUTE) -> str:
    answer = await service.api.post(f"/route/{service.db}/{route}/redeliver", json={"since": 0})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def until_done(service: Service, redelivery_id: str, *, route: str = ROUTE) -> dict[str, object]:
    path = f"/route/{service.db}/{route}/redeliver/{redelivery_id}"
    answer = await eventually(lambda: service.api.get(path), lambda answer: answer.json()["done"])
    seen: dict[str, object] = answer.json()
    return seen


async def until_failed(client: Client, service: Service, count: int, route: str = ROUTE) -> None:
    query = f"ExecutionStatus = 'Failed' AND TimemachineRoute = '{service.db}/{route}'"
    await eventually(lambda: client.count_workflows(query), lambda found: found.count >= count)


async def test_bulk_work_waits_in_a_task_queue_of_its_own(
    service: Service, client: Client, settings: Settings, receiver: Receiver
) -> None:
    await hold(service, client, 1)
    await service.api.post(f"/route/{service.db}/{ROUTE}/resume", json={"spread": 0})
    released = ReleaseHeld(db=service.db, route_id=ROUTE).key.workflow_id
    await client.get_workflow_handle(released).result()
    redelivery_id = await redeliver_all(service)
    await until_done(service, redelivery_id)
    cleaned = f"clean-{service.db}"
    await client.execute_workflow("CleanAttempts", id=cleaned, task_queue=settings.task_queue)

    redelivered = f"timemachine/redelivery/{service.db}/{ROUTE}/{redelivery_id}"
    for workflow_id in (released, redelivered, cleaned):
        assert await queues_of_activities(client, workflow_id) == {f"{settings.task_queue}-bulk"}


async def test_bulk_work_holds_no_slot_of_a_delivery(
    own: Settings, client: Client, temporal: Temporal, receiver: Receiver, db: str
) -> None:
    """The one slot there is serves the second attempt of a job while a release is under way."""
    slow = replace(own, max_deliveries=1, bulk_per_second=1)
    async with a_service(slow, client, temporal, receiver, db) as service:
        await service.add_route(receiver.url, "open")
        await hold(service, client, 10)
        await service.api.post(f"/route/{db}/{ROUTE}/resume", json={"spread": 0})
        await eventually(lambda: held_count(client, service), lambda held: held < 10)

        async def second_time(received: Received) -> bytes:
            return response(200 if len(receiver.of(received.job_id)) > 1 else 500)

        receiver.answer = second_time
        job_id = await service.create(0, route="open", retry={"waits": [0.1]})

        await receiver.wait_for(job_id, 2)
        # Some more than one: of those that were just released a list may still tell.
        assert await held_count(client, service) > 2


async def test_all_bulk_work_of_a_worker_keeps_to_one_rate(
    own: Settings, client: Client, temporal: Temporal, receiver: Receiver, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    routes, jobs, rate = ("a", "b", "c"), 6, 6
    asked: Counter[RateLimiter] = Counter()
    acquire = RateLimiter.acquire

    async def count(limiter: RateLimiter) -> None:
        asked[limiter] += 1
        await acquire(limiter)

    monkeypatch.setattr(RateLimiter, "acquire", count)
    async with a_service(replace(own, bulk_per_second=rate), client, temporal, receiver, db) as service:
        receiver.answer = refuse
        for route in routes:
            await service.add_route(receiver.url, route)
        await asyncio.gather(*(fail(service, route=route) for route in routes for _ in range(jobs)))
        for route in routes:
            await until_failed(client, service, jobs, route)
        receiver.answer = take
        started = time.monotonic()

        ids = [await redeliver_all(service, route) for route in routes]
        seen = [await until_done(service, id_, route=route) for id_, route in zip(ids, routes, strict=True)]

        assert [progress["started"] for progress in seen] == [jobs] * len(routes)
        assert time.monotonic() - started >= (len(routes) * jobs - 1) / rate
        assert len(asked) == 1


async def test_long_bulk_work_takes_turns_with_what_waits(
    own: Settings, client: Client, temporal: Temporal, receiver: Receiver, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more redeliveries under way than there are slots, a route that is resumed does not wait for their end."""
    monkeypatch.setattr(bulk, "LONGEST_RUN", 0.5)
    monkeypatch.setattr(redelivery, "PAGE", 2)
    monkeypatch.setattr(release, "PAGE", 2)
    busy, jobs = [f"busy-{n}" for n in range(BULK_SLOTS)], 8
    async with a_service(replace(own, bulk_per_second=8), client, temporal, receiver, db) as service:
        receiver.answer = refuse
        for route in busy:
            await service.add_route(receiver.url, route)
        await asyncio.gather(*(fail(service, route=route) for route in busy for _ in range(jobs)))
        for route in busy:
            await until_failed(client, service, jobs, route)
        receiver.answer = take
        held = await hold(service, client, 3)

        ids = [await redeliver_all(service, route) for route in busy]
        await service.api.post(f"/route/{db}/{ROUTE}/resume", json={"spread": 0})

        for job_id in held:
            await receiver.wait_for(job_id)
        shown = await asyncio.gather(*(progress(service, id_, route) for id_, route in zip(ids, busy, strict=True)))
        assert not all(answer.json()["done"] for answer in shown)
        for id_, route in zip(ids, busy, strict=True):
            seen = await until_done(service, id_, route=route)
            assert (seen["found"], seen["started"], seen["skipped"]) == (jobs, jobs, 0)


async def progress(service: Service, redelivery_id: str, route: str) -> httpx.Response:
    return await service.api.get(f"/route/{service.db}/{route}/redeliver/{redelivery_id}")

"""The release of the jobs that a paused route has held."""

import asyncio
from typing import Any

from temporalio.client import Client

from tests.support.holds import held_count, hold
from tests.support.receiver import Receiver
from tests.support.service import ROUTE, Service, a_job, now_ms
from tests.support.waiting import LIMIT, eventually
from timemachine.domain.releases import ReleaseHeld
from timemachine.settings import Settings


async def release(service: Service, client: Client, settings: Settings, spread: float = 0) -> None:
    wanted = ReleaseHeld(db=service.db, route_id=ROUTE, spread=spread)
    await client.execute_workflow("Release", wanted, id=wanted.key.workflow_id, task_queue=settings.task_queue)


async def resume(service: Service, spread: float = 0) -> None:
    answer = await service.api.post(f"/route/{service.db}/{ROUTE}/resume", json={"spread": spread})
    assert answer.status_code == 200, answer.text


async def test_every_held_job_is_let_go(service: Service, receiver: Receiver, client: Client) -> None:
    ids = await hold(service, client, 12)
    assert receiver.received == []

    await resume(service)

    for job_id in ids:
        await receiver.wait_for(job_id)
        assert (await service.wait_for_state(job_id, "delivered"))["attempts"] == 1
    assert len(receiver.received) == 12


async def test_the_jobs_are_spread_over_the_time_that_is_asked_for(
    service: Service, receiver: Receiver, client: Client
) -> None:
    ids = await hold(service, client, 12)
    start = now_ms()

    await resume(service, spread=4)

    for job_id in ids:
        await receiver.wait_for(job_id)
    after = sorted(received.at_ms - start for received in receiver.received)
    assert len(after) == 12
    assert after[-1] < 20_000
    assert after[-1] - after[0] > 1000


async def test_a_job_cannot_stand_in_the_way_of_a_release(service: Service, receiver: Receiver, client: Client) -> None:
    (held,) = await hold(service, client, 1)
    for db, collection, job_id in (("release", service.db, ROUTE), ("timemachine", "release", service.db)):
        other = Service(service.api, db)
        await other.add_route(receiver.url)
        job = a_job(3600, id=job_id)
        assert (await service.api.post(f"/job/{db}/{collection}", json=job)).status_code == 200

    await resume(service)

    await receiver.wait_for(held)


async def test_a_later_resume_does_not_wait_for_the_spread_of_the_one_before(
    service: Service, receiver: Receiver, client: Client
) -> None:
    await hold(service, client, 1)
    await resume(service, spread=600)
    # Until the job has been told its moment.
    await eventually(lambda: held_count(client, service), lambda held: held == 0)
    assert (await service.api.post(f"/route/{service.db}/{ROUTE}/pause")).status_code == 200
    late = await service.create(0)
    await eventually(lambda: held_count(client, service))

    await resume(service)

    async with asyncio.timeout(20):  # sooner than the release before would have let it go
        await receiver.wait_for(late)


async def test_a_release_ends_when_nothing_is_held(service: Service, client: Client, settings: Settings) -> None:
    async with asyncio.timeout(LIMIT):
        await release(service, client, settings)


async def test_a_release_lets_nothing_go_when_the_route_is_paused_again(
    service: Service, receiver: Receiver, client: Client, settings: Settings
) -> None:
    await hold(service, client, 3)

    async with asyncio.timeout(LIMIT):
        await release(service, client, settings)

    await asyncio.sleep(0.5)  # time for deliveries that must not come
    assert receiver.received == []
    assert await held_count(client, service) == 3


async def test_a_release_leaves_the_jobs_of_other_routes_held(
    service: Service, receiver: Receiver, client: Client, settings: Settings
) -> None:
    other = Service(service.api, f"{service.db}x")
    await other.add_route(receiver.url)
    await hold(other, client, 2)
    (mine,) = await hold(service, client, 1)

    await resume(service)

    await receiver.wait_for(mine)
    await asyncio.sleep(0.5)  # time for deliveries that must not come
    assert len(receiver.received) == 1
    assert await held_count(client, other) == 2


async def until_released(service: Service, job_id: str) -> Any:
    """Return a job once it waits for its moment."""
    return await eventually(lambda: service.find(job_id), lambda job: "next_attempt_time" in job)


async def told_to_wait(service: Service, client: Client) -> str:
    """Return a job that was released to some moment within a day."""
    (job_id,) = await hold(service, client, 1)
    await resume(service, spread=86_400)
    job = await until_released(service, job_id)
    assert "held" not in job
    assert job["state"] == "scheduled"
    assert now_ms() < job["next_attempt_time"] < now_ms(86_401)
    return job_id


async def test_a_spread_does_not_reach_beyond_a_job_s_deadline(service: Service, client: Client) -> None:
    """Such a job would fail without an attempt, though its route is open again."""
    deadline = now_ms(120)
    ids = await hold(service, client, 4, deadline=deadline)

    await resume(service, spread=86_400)

    moments = [(await until_released(service, job_id))["next_attempt_time"] for job_id in ids]
    assert max(moments) <= deadline - 10_000


async def test_a_job_that_waits_for_its_moment_can_be_moved(
    service: Service, receiver: Receiver, client: Client
) -> None:
    job_id = await told_to_wait(service, client)

    answer = await service.change(job_id, 2, meta="moved")

    assert answer.json() == {"status": "ok"}
    (received,) = await receiver.wait_for(job_id)
    assert received.body == b'"moved"'
    assert 0 <= received.late_ms < 30_000
    assert "next_attempt_time" not in await service.wait_for_state(job_id, "delivered")


async def test_a_job_that_waits_for_its_moment_can_be_cancelled(
    service: Service, receiver: Receiver, client: Client
) -> None:
    job_id = await told_to_wait(service, client)

    assert (await service.cancel(job_id)).json() == {"status": "ok"}

    assert (await service.find(job_id))["state"] == "cancelled"
    assert receiver.received == []


async def test_a_second_resume_moves_jobs_that_wait_for_their_moment(
    service: Service, receiver: Receiver, client: Client
) -> None:
    job_id = await told_to_wait(service, client)

    await resume(service, spread=0)

    await receiver.wait_for(job_id)


async def test_a_later_moment_moves_no_job_that_has_one(service: Service, receiver: Receiver, client: Client) -> None:
    """Told again, by who does not know that it was, a job keeps its moment unless that is sooner."""
    job_id = await told_to_wait(service, client)
    moment = (await service.find(job_id))["next_attempt_time"]
    job = client.get_workflow_handle(f"{service.db}/c/{job_id}")

    await job.signal("release", 86_400.0)
    await job.execute_update("wake")  # comes after the signal, so that this has been heeded
    assert (await service.find(job_id))["next_attempt_time"] == moment
    await job.signal("release", 0.0)

    await receiver.wait_for(job_id)

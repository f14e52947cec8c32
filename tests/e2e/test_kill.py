"""`kill -9` of any part: what was accepted arrives, never early, and twice only where an attempt was cut in flight."""

import asyncio
import os
import signal
import time
from collections.abc import Iterable

import httpx
import pytest

from devstack.parts import Part
from devstack.stack import Stack
from tests.support.kills import kill, restart
from tests.support.many_jobs import create_many
from tests.support.receiver import Received, Receiver, response
from tests.support.service import Service, a_job, new_id


async def assert_each_arrives_once(receiver: Receiver, job_ids: Iterable[str], *, limit: float = 90) -> None:
    wanted = set(job_ids)
    await receiver.wait_until(lambda: wanted <= {received.job_id for received in receiver.received}, limit=limit)
    assert [received.job_id for received in receiver.received if received.late_ms < 0] == []
    assert len(receiver.received) == len(wanted)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "names", [["worker"], ["temporal"], ["api"], ["worker", "api", "temporal", "postgres"]], ids="+".join
)
async def test_kill_while_jobs_wait(stack: Stack, service: Service, receiver: Receiver, names: list[str]) -> None:
    """Half of the jobs come due while the parts are away."""
    began = time.monotonic()
    later = await create_many(service, 20, due_in=12)
    # However slow this machine is, none is due before the kill.
    due_in = 2 + 4 * (time.monotonic() - began)
    soon = await create_many(service, 20, due_in=due_in)

    kill(*(stack.parts[name] for name in names))
    await asyncio.sleep(due_in)
    for name in reversed(names):
        await stack.parts[name].restart()

    await assert_each_arrives_once(receiver, soon + later)


@pytest.mark.timeout(300)
async def test_kill_of_the_worker_while_it_delivers(workers: list[Part], service: Service, receiver: Receiver) -> None:
    """The attempt that was cut is made again; a job that merely waited is delivered once."""
    cut = asyncio.Event()

    async def slow_at_first(received: Received) -> bytes:
        if received.job_id == in_flight and len(receiver.of(in_flight)) == 1:
            await cut.wait()
        return response(200)

    receiver.answer = slow_at_first
    in_flight = new_id()
    await service.create(0, job_id=in_flight)
    waiting = await service.create(3)
    await receiver.wait_for(in_flight)

    kill(*workers)
    cut.set()
    await restart(workers)

    await receiver.wait_for(waiting)
    first, second = await receiver.wait_for(in_flight, 2, limit=90)
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    await service.wait_for_state(in_flight, "delivered")
    assert (len(receiver.of(in_flight)), len(receiver.of(waiting))) == (2, 1)


@pytest.mark.timeout(300)
async def test_kill_of_the_api_between_create_and_answer(stack: Stack, service: Service, receiver: Receiver) -> None:
    """Whoever got no answer repeats the create: each job is there once."""
    jobs = [a_job(10) for _ in range(60)]
    creates = [asyncio.create_task(service.api.post(service.jobs, json=job)) for job in jobs]
    await asyncio.wait(creates, return_when=asyncio.FIRST_COMPLETED)

    kill(stack.parts["api"])
    answers = await asyncio.gather(*creates, return_exceptions=True)
    await stack.parts["api"].restart()
    unanswered = [job for job, answer in zip(jobs, answers, strict=True) if isinstance(answer, httpx.HTTPError)]
    again = [await service.api.post(service.jobs, json=job) for job in unanswered]

    assert unanswered
    assert {answer.status_code for answer in again} == {200}
    await assert_each_arrives_once(receiver, (job["id"] for job in jobs))


async def test_a_stopped_worker_lets_its_attempt_finish(
    workers: list[Part], service: Service, receiver: Receiver
) -> None:
    answered = asyncio.Event()

    async def slow(_: Received) -> bytes:
        await answered.wait()
        return response(200)

    receiver.answer = slow
    job_id = await service.create(0)
    await receiver.wait_for(job_id)

    for worker in workers:
        os.kill(worker.pid, signal.SIGTERM)
    asyncio.get_running_loop().call_later(2, answered.set)

    assert await asyncio.gather(*(worker.wait() for worker in workers)) == [0] * len(workers)
    await restart(workers)
    assert (await service.wait_for_state(job_id, "delivered"))["attempts"] == 1
    assert len(receiver.of(job_id)) == 1

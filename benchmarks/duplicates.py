"""How many duplicates `kill -9` of a worker makes just after the receiver answered, and how many the log prevents.

`python -m benchmarks.duplicates`: fifty times, a job comes due, the receiver takes it, and within milliseconds the
worker is killed and started again. What was cut is run again once its time limit has passed.
"""

import asyncio
import os
import random
from collections import Counter

import httpx
import msgspec
import psutil
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client

from benchmarks.stack import fresh_stack
from devstack.stack import Stack
from devstack.terminal import say
from tests.support.receiver import Received, Receiver, receiving, response
from tests.support.service import Service
from timemachine.process import exit_process

KILLS = int(os.environ.get("KILLS", "50"))

LATEST = 0.03
"""Seconds after the answer within which the worker is killed."""

SETTLED = 240.0
"""Seconds that the jobs get to end after the last kill."""


class Duplicates(msgspec.Struct, frozen=True):
    """What the kills led to."""

    jobs: int
    requests: int
    duplicates: int
    run_again: int
    """Jobs whose attempt was cut before Temporal knew its end, so that it was run again."""
    prevented: int
    """Those of them that the log kept from a second request."""


async def kill_after_answer(stack: Stack, service: Service, receiver: Receiver) -> str:
    """Deliver one job, kill the worker as soon as it was taken, and start it again."""
    answered = asyncio.Event()

    async def take(_: Received) -> bytes:
        asyncio.get_running_loop().call_later(random.uniform(0, LATEST), answered.set)  # noqa: S311 - no secret
        return response(200)

    receiver.answer = take
    job_id = await service.create(0)
    await answered.wait()
    psutil.Process(stack.parts["worker"].pid).kill()
    await stack.parts["worker"].restart()
    return job_id


async def run_again(service: Service, job_id: str, stack: Stack) -> bool:
    """Return whether the workflow task that made the first attempt was lost, as Temporal's history tells."""
    client = await Client.connect(stack.env["TEMPORAL_ADDRESS"])
    handle = client.get_workflow_handle(f"{service.db}/c/{job_id}")
    return any(
        [
            event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT
            async for event in handle.fetch_history_events()
        ]
    )


async def count(stack: Stack) -> Duplicates:
    """Kill as often as asked for, wait until every job has ended, and count."""
    async with receiving() as receiver, httpx.AsyncClient(base_url=stack.api_url, timeout=30) as api:
        service = Service(api, "duplicates")
        await service.add_route(receiver.url)
        job_ids = [await kill_after_answer(stack, service, receiver) for _ in range(KILLS)]
        for job_id in job_ids:
            await service.wait_for_state(job_id, "delivered", limit=SETTLED)
        requests = Counter(received.job_id for received in receiver.received)
        again = {job_id for job_id in job_ids if await run_again(service, job_id, stack)}
        return Duplicates(
            jobs=len(job_ids),
            requests=len(receiver.received),
            duplicates=len(receiver.received) - len(job_ids),
            run_again=len(again),
            prevented=sum(requests[job_id] == 1 for job_id in again),
        )


async def bench() -> None:
    """Count on a stack of its own."""
    async with fresh_stack() as stack:
        say(msgspec.json.encode(await count(stack)).decode())


if __name__ == "__main__":
    asyncio.run(bench())
    exit_process(0)

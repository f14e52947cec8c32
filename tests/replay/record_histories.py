"""Records the histories that `test_replay.py` replays: `pytest tests/replay/record_histories.py`.

Run it only to add a story; what is recorded stays as it is, since it stands for jobs that already wait somewhere.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from temporalio.client import Client

from tests.receiver import Received, Receiver, response
from tests.service import ROUTE, Service
from timemachine.held import ReleaseHeld
from timemachine.redelivery import redelivery_workflow_id

STACK_TRACE = re.compile(r'"stackTrace": "(?:[^"\\]|\\.)*"')
HISTORIES = Path(__file__).parent / "histories"

AT_ONCE = "at_once_"
"""Begins the names of jobs whose first attempt was made within the workflow task; those without are from before."""


async def delivered(service: Service, receiver: Receiver) -> str:
    job_id = await service.create(1, meta={"n": 1})
    await service.wait_for_state(job_id, "delivered")
    return job_id


async def changed_then_delivered(service: Service, receiver: Receiver) -> str:
    job_id = await service.create(3600)
    await service.change(job_id, 7200, meta="second")
    await service.change(job_id, 1, meta="third")
    await service.wait_for_state(job_id, "delivered")
    return job_id


async def cancelled_while_waiting(service: Service, receiver: Receiver) -> str:
    job_id = await service.create(3600)
    await service.change(job_id, 7200)
    await service.cancel(job_id)
    return job_id


async def cancelled_between_attempts(service: Service, receiver: Receiver) -> str:
    async def refuse(_: Received) -> bytes:
        return response(500)

    receiver.answer = refuse
    job_id = await service.create(0)
    while (await service.find(job_id)).get("attempts") != 1:
        await asyncio.sleep(0.05)
    await service.cancel(job_id)
    return job_id


async def cancelled_after_the_log_was_asked(service: Service, receiver: Receiver) -> str:
    """As the story before it, which is recorded from when nobody asked."""
    return await cancelled_between_attempts(service, receiver)


async def cancelled_in_flight_but_taken(service: Service, receiver: Receiver) -> str:
    answered = asyncio.Event()

    async def slow(_: Received) -> bytes:
        await answered.wait()
        return response(200)

    receiver.answer = slow
    job_id = await service.create(0)
    await receiver.wait_for(job_id)
    await service.wait_for_state(job_id, "delivering")
    delete = asyncio.create_task(service.cancel(job_id))
    await asyncio.sleep(0.3)
    answered.set()
    await delete
    return job_id


async def cancelled_while_the_task_is_held(service: Service, receiver: Receiver) -> str:
    """The server refuses the end of the workflow task in which the receiver took the job."""
    answered = asyncio.Event()

    async def slow(_: Received) -> bytes:
        await answered.wait()
        return response(200)

    receiver.answer = slow
    job_id = await service.create(0)
    await receiver.wait_for(job_id)
    delete = asyncio.create_task(service.cancel(job_id))
    asyncio.get_running_loop().call_later(0.3, answered.set)
    await delete
    return job_id


async def delivered_at_the_second_attempt(service: Service, receiver: Receiver) -> str:
    async def second_time(received: Received) -> bytes:
        return response(500 if len(receiver.of(received.job_id)) < 2 else 200)

    receiver.answer = second_time
    job_id = await service.create(0)
    await service.wait_for_state(job_id, "delivered")
    return job_id


async def redelivered_many(service: Service, receiver: Receiver, client: Client) -> str:
    async def refuse(_: Received) -> bytes:
        return response(500)

    receiver.answer = refuse
    job_id = await service.create(0, retry={"maximum_attempts": 1})
    await service.wait_for_state(job_id, "failed")
    while not (await service.api.get(f"/failed/{service.db}")).json()["failed"]:
        await asyncio.sleep(0.05)
    answer = await service.api.post(f"/route/{service.db}/{ROUTE}/redeliver", json={"since": 0})
    workflow_id = redelivery_workflow_id(service.db, ROUTE, answer.json()["id"])
    await client.get_workflow_handle(workflow_id).result()
    return workflow_id


async def released(service: Service, receiver: Receiver, client: Client) -> str:
    await service.api.post(f"/route/{service.db}/{ROUTE}/pause")
    await service.create(0)
    query = f"TimemachineRoute = '{service.db}/{ROUTE}' AND TimemachineHeld = true"
    while (await client.count_workflows(query)).count == 0:
        await asyncio.sleep(0.05)
    await service.api.post(f"/route/{service.db}/{ROUTE}/resume", json={"spread": 0.5})
    workflow_id = ReleaseHeld(db=service.db, route_id=ROUTE).workflow_id
    await client.get_workflow_handle(workflow_id).result()
    return workflow_id


async def cleaned(service: Service, receiver: Receiver, client: Client) -> str:
    workflow_id = f"clean-{service.db}"
    await client.execute_workflow("CleanAttempts", id=workflow_id, task_queue="tests")
    return workflow_id


OTHER_STORIES: list[Callable[[Service, Receiver, Client], Awaitable[str]]] = [redelivered_many, released, cleaned]
"""Stories of other workflows than jobs; each returns its workflow's id."""


async def held_then_released(service: Service, receiver: Receiver) -> str:
    route = f"/route/{service.db}/{ROUTE}"
    await service.api.post(f"{route}/pause")
    job_id = await service.create(0)
    while "held" not in await service.find(job_id):
        await asyncio.sleep(0.05)
    await service.api.post(f"{route}/resume", json={"spread": 1})
    await service.wait_for_state(job_id, "delivered", limit=30)
    return job_id


async def held_then_changed(service: Service, receiver: Receiver) -> str:
    await service.api.post(f"/route/{service.db}/{ROUTE}/pause")
    await service.add_route(receiver.url, "other")
    job_id = await service.create(0)
    while "held" not in await service.find(job_id):
        await asyncio.sleep(0.05)
    await service.change(job_id, 1, route="other")
    await service.wait_for_state(job_id, "delivered")
    return job_id


STORIES: list[Callable[[Service, Receiver], Awaitable[str]]] = [
    delivered,
    changed_then_delivered,
    cancelled_while_waiting,
    cancelled_between_attempts,
    cancelled_after_the_log_was_asked,
    cancelled_in_flight_but_taken,
    cancelled_while_the_task_is_held,
    delivered_at_the_second_attempt,
    held_then_released,
    held_then_changed,
]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
async def test_record(
    story: Callable[[Service, Receiver], Awaitable[str]], service: Service, receiver: Receiver, client: Client
) -> None:
    file = HISTORIES / f"{AT_ONCE}{story.__name__}.json"
    if file.exists():
        pytest.skip("recorded already")
    job_id = await story(service, receiver)
    await write(file, client, f"{service.db}/c/{job_id}")


@pytest.mark.parametrize("story", OTHER_STORIES, ids=lambda story: story.__name__)
async def test_record_others(
    story: Callable[[Service, Receiver, Client], Awaitable[str]], service: Service, receiver: Receiver, client: Client
) -> None:
    file = HISTORIES / f"{story.__name__}.json"
    if file.exists():
        pytest.skip("recorded already")
    await write(file, client, await story(service, receiver, client))


async def write(file: Path, client: Client, workflow_id: str) -> None:
    history = await client.get_workflow_handle(workflow_id).fetch_history()
    file.write_text(STACK_TRACE.sub('"stackTrace": ""', history.to_json()))

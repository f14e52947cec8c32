"""`kill -9` of the worker in the middle of a redelivery of many: it goes on, and nothing is started twice."""

import asyncio
from collections import Counter

import pytest
from temporalio.client import Client

from devstack.stack import Stack
from tests.e2e.test_kill import create_many, kill
from tests.support.receiver import Received, Receiver, response, take
from tests.support.service import ROUTE, Service

JOBS = 120
"""More than a page, and enough for some seconds."""


async def refuse(_: Received) -> bytes:
    return response(500)


@pytest.mark.timeout(150)
async def test_kill_of_the_worker_during_a_redelivery_of_many(
    stack: Stack, service: Service, receiver: Receiver
) -> None:
    receiver.answer = refuse
    ids = await create_many(service, JOBS, due_in=0, retry={"maximum_attempts": 1})
    client = await Client.connect(stack.env["TEMPORAL_ADDRESS"])
    runs = f"WorkflowId STARTS_WITH '{service.db}/'"
    async with asyncio.timeout(30):
        while (await client.count_workflows(f"{runs} AND ExecutionStatus = 'Failed'")).count < JOBS:
            await asyncio.sleep(0.1)
    receiver.answer = take
    base = f"/route/{service.db}/{ROUTE}/redeliver"

    redelivery_id = (await service.api.post(base, json={"since": 0})).json()["id"]
    while not (seen := (await service.api.get(f"{base}/{redelivery_id}")).json())["started"] > 20:
        await asyncio.sleep(0.1)
    kill(stack.parts["worker"])
    await stack.parts["worker"].restart()

    assert seen["started"] < JOBS
    async with asyncio.timeout(60):
        while not (seen := (await service.api.get(f"{base}/{redelivery_id}")).json())["done"]:
            await asyncio.sleep(0.2)
    assert seen == {"id": redelivery_id, "found": JOBS, "started": JOBS, "skipped": 0, "done": True}
    for job_id in ids:
        await service.wait_for_state(job_id, "delivered", limit=70)
        assert len({received.headers["webhook-id"] for received in receiver.of(job_id)}) == 1
    async with asyncio.timeout(10):
        while (await client.count_workflows(f"{runs} AND ExecutionStatus = 'Completed'")).count < JOBS:
            await asyncio.sleep(0.1)
    started = Counter([run.id async for run in client.list_workflows(runs)])
    assert set(started.values()) == {2}

"""`kill -9` of the worker in the middle of a redelivery of many: it goes on, and nothing is started twice."""

from collections import Counter
from functools import partial
from typing import Any

import pytest
from temporalio.client import Client

from devstack.parts import Part
from devstack.stack import Stack
from tests.support.kills import kill, restart
from tests.support.many_jobs import create_many
from tests.support.receiver import Received, Receiver, response, take
from tests.support.service import ROUTE, Service
from tests.support.waiting import eventually

JOBS = 30
"""Enough for some seconds."""


async def refuse(_: Received) -> bytes:
    return response(500)


async def until_listed(client: Client, query: str) -> None:
    await eventually(lambda: client.count_workflows(query), lambda found: found.count >= JOBS)


@pytest.mark.timeout(300)
async def test_kill_of_the_worker_during_a_redelivery_of_many(
    stack: Stack, workers: list[Part], service: Service, receiver: Receiver
) -> None:
    receiver.answer = refuse
    ids = await create_many(service, JOBS, due_in=0, retry={"maximum_attempts": 1})
    client = await Client.connect(stack.env["TEMPORAL_ADDRESS"], namespace=stack.env["TEMPORAL_NAMESPACE"])
    runs = f"WorkflowId STARTS_WITH '{service.db}/'"
    await until_listed(client, f"{runs} AND ExecutionStatus = 'Failed'")
    receiver.answer = take
    base = f"/route/{service.db}/{ROUTE}/redeliver"

    redelivery_id = (await service.api.post(base, json={"since": 0})).json()["id"]

    async def progress() -> dict[str, Any]:
        seen: dict[str, Any] = (await service.api.get(f"{base}/{redelivery_id}")).json()
        return seen

    seen = await eventually(progress, lambda seen: seen["started"] > 10)
    kill(*workers)
    await restart(workers)

    assert seen["started"] < JOBS
    seen = await eventually(progress, lambda seen: seen["done"], limit=90)
    assert seen == {"id": redelivery_id, "found": JOBS, "started": JOBS, "skipped": 0, "done": True}
    for job_id in ids:
        await service.wait_for_state(job_id, "delivered", limit=90)
        assert len({received.headers["webhook-id"] for received in receiver.of(job_id)}) == 1
    await until_listed(client, f"{runs} AND ExecutionStatus = 'Completed'")
    started = Counter([run.id async for run in client.list_workflows(runs)])
    assert set(started.values()) == {2}


@pytest.mark.timeout(300)
async def test_a_redelivery_that_is_stopped_while_its_worker_is_dead_keeps_its_figures(
    stack: Stack, workers: list[Part], service: Service, receiver: Receiver
) -> None:
    receiver.answer = refuse
    await create_many(service, JOBS, due_in=0, retry={"maximum_attempts": 1})
    client = await Client.connect(stack.env["TEMPORAL_ADDRESS"], namespace=stack.env["TEMPORAL_NAMESPACE"])
    await until_listed(client, f"WorkflowId STARTS_WITH '{service.db}/' AND ExecutionStatus = 'Failed'")
    receiver.answer = take
    base = f"/route/{service.db}/{ROUTE}/redeliver"
    redelivery_id = (await service.api.post(base, json={"since": 0})).json()["id"]

    async def shown(at: str) -> dict[str, Any]:
        seen: dict[str, Any] = (await service.api.get(at)).json()
        return seen

    listed = await eventually(partial(shown, f"/operation/{service.db}"), lambda seen: seen["operations"])
    path = f"/operation/{service.db}/{listed['operations'][0]['id']}"
    await eventually(partial(shown, f"{base}/{redelivery_id}"), lambda seen: seen["started"] > 10)
    kill(*workers)
    assert (await service.api.delete(path)).json() == {"status": "ok"}
    await restart(workers)

    stopped = await eventually(partial(shown, path), lambda seen: seen["state"] != "running", limit=90)
    assert (stopped["state"], stopped["matched"]) == ("stopped", JOBS)
    assert 10 < stopped["done"] < JOBS
    await receiver.wait_until(lambda: len(receiver.received) == JOBS + stopped["done"])
    assert (await service.api.delete(path)).json() == {"status": "ok"}

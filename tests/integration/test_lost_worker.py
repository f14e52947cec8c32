"""A worker that is killed while its attempt is in flight: nobody knows how it ended, and nobody says otherwise."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace
from temporalio.client import Client, WorkflowExecutionStatus

from api.app import create_app
from devstack.temporal import Temporal
from tests.conftest import delivering, serving
from tests.integration.test_cancel import MAY_BE_TAKEN
from tests.support.job_histories import wait_for_status
from tests.support.receiver import Received, Receiver, response
from tests.support.refusals import AWAY, TOO_LATE
from tests.support.service import Service, refused
from tests.support.waiting import eventually
from tests.support.worker_process import worker_process
from timemachine.settings import Settings

CLAIM_TIME = 10.5
"""Seconds that a claim holds on the route of these tests."""


@pytest.fixture
def own(settings: Settings, temporal: Temporal, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with a task queue that no other worker serves."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal.address)
    return replace(settings, task_queue=f"lost-{uuid.uuid4().hex}", request_timeout=4)


@pytest.fixture
async def lost(own: Settings, temporal: Temporal, db: str, receiver: Receiver) -> AsyncIterator[tuple[Service, str]]:
    """A service without a worker, and a job whose worker was killed while its attempt was in flight."""

    async def never(_: Received) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError

    receiver.answer = never
    async with serving(create_app(own)) as api:
        service = Service(api, db)
        await service.add_route(receiver.url, timeout=CLAIM_TIME - 10)
        async with worker_process(own, temporal.address) as process:
            job_id = await service.create(0)
            await receiver.wait_for(job_id)
            process.kill()
        yield service, job_id


async def test_another_worker_makes_the_attempt_again(
    lost: tuple[Service, str], own: Settings, client: Client, receiver: Receiver
) -> None:
    service, job_id = lost

    async def take(_: Received) -> bytes:
        return response(200)

    receiver.answer = take
    async with delivering(client, own):
        first, second = await receiver.wait_for(job_id, 2, limit=90)
        assert (await service.wait_for_state(job_id, "delivered"))["attempts"] == 1

    assert second.at_ms - first.at_ms > 1000 * CLAIM_TIME
    for name in ("webhook-id", "timemachine-attempt"):
        assert first.headers[name] == second.headers[name]


async def test_a_cancel_is_not_confirmed_and_ends_it(
    lost: tuple[Service, str], own: Settings, client: Client, receiver: Receiver
) -> None:
    service, job_id = lost

    assert refused(await service.cancel(job_id)) == AWAY
    assert (await service.find(job_id))["state"] == "delivering"

    answer = await eventually(lambda: service.cancel(job_id), lambda answer: answer.status_code != 503)
    assert refused(answer) == TOO_LATE
    assert MAY_BE_TAKEN in answer.json()["error"]

    async with delivering(client, own):
        await wait_for_status(client, service, job_id, WorkflowExecutionStatus.FAILED)
    assert (await service.find(job_id))["state"] == "failed"
    assert len(receiver.of(job_id)) == 1

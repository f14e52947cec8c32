"""Two workers on one task queue share what comes due, and neither repeats what the other has done."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from temporalio.client import Client

from devstack.temporal import Temporal
from tests.support.receiver import Received, Receiver, response
from tests.support.service import Service
from tests.support.two_workers import TwoWorkers, two_workers
from timemachine.settings import Settings


@pytest.fixture
async def pair(settings: Settings, client: Client, temporal: Temporal) -> AsyncIterator[TwoWorkers]:
    with pytest.MonkeyPatch.context() as env:
        env.setenv("TEMPORAL_ADDRESS", temporal.address)
        async with two_workers(settings) as pair:
            yield pair


@pytest.fixture
async def service(pair: TwoWorkers, receiver: Receiver, db: str) -> AsyncIterator[Service]:
    service = Service(pair.api, db)
    await service.add_route(receiver.url)
    yield service
    service.verify_all(receiver)


async def test_each_job_of_a_burst_is_delivered_once(service: Service, receiver: Receiver) -> None:
    ids = await asyncio.gather(*(service.create(1) for _ in range(40)))

    for job_id in ids:
        await service.wait_for_state(job_id, "delivered")

    assert sorted(received.job_id for received in receiver.received) == sorted(ids)


async def test_one_goes_on_when_the_other_is_stopped(pair: TwoWorkers, service: Service, receiver: Receiver) -> None:
    """What is in flight on the one that stops is not made again by the other."""
    answered = asyncio.Event()

    async def slow(_: Received) -> bytes:
        await answered.wait()
        return response(200)

    receiver.answer = slow
    ids = await asyncio.gather(*(service.create(0) for _ in range(8)))
    await receiver.wait_until(lambda: len(receiver.received) == len(ids))

    stopping = asyncio.create_task(pair.workers[0].shutdown())
    ids += [await service.create(0)]
    await receiver.wait_for(ids[-1])
    answered.set()
    await stopping

    for job_id in ids:
        await service.wait_for_state(job_id, "delivered")
    assert sorted(received.job_id for received in receiver.received) == sorted(ids)

"""Changes that race the trigger time: there are two outcomes, and the answer says which."""

import asyncio
import os
import random
from collections import Counter

import httpx
import pytest

from tests.receiver import Received, Receiver, response
from tests.service import Service, a_job, now_ms

ROUNDS = int(os.environ.get("RACES", "200"))
AT_A_TIME = 16

Outcome = tuple[int, str | None, int]


async def answer_soon(_: Received) -> bytes:
    await asyncio.sleep(random.choice([0, 0, 0.002, 0.02]))
    return response(200)


async def until_about(trigger_time: int) -> None:
    """Wait until a moment in which the job may be anywhere between waiting and delivered."""
    await asyncio.sleep(max(0.0, (trigger_time - now_ms()) / 1000 + random.uniform(-0.1, 0.4)))


def code(answer: httpx.Response) -> str | None:
    found: str | None = answer.json().get("code")
    return found


@pytest.mark.timeout(ROUNDS)
async def test_delete_races_the_trigger_time(service: Service, receiver: Receiver) -> None:
    receiver.answer = answer_soon
    limit = asyncio.Semaphore(AT_A_TIME)

    async def race() -> Outcome:
        async with limit:
            job = a_job(0.6)
            await service.api.post(service.jobs, json=job)
            await until_about(job["trigger_time"])
            answer = await service.cancel(job["id"])
            # An ended job is delivered no more, so what arrived until now is all.
            await service.wait_for_end(job["id"])
            return answer.status_code, code(answer), len(receiver.of(job["id"]))

    outcomes = Counter(await asyncio.gather(*(race() for _ in range(ROUNDS))))

    assert set(outcomes) == {(200, None, 0), (400, "E006", 1)}, outcomes


@pytest.mark.timeout(ROUNDS)
async def test_put_races_the_trigger_time(service: Service, receiver: Receiver) -> None:
    receiver.answer = answer_soon
    limit = asyncio.Semaphore(AT_A_TIME)

    async def race() -> tuple[str | None, list[bytes]]:
        async with limit:
            job = a_job(0.6, meta="old")
            await service.api.post(service.jobs, json=job)
            await until_about(job["trigger_time"])
            answer = await service.change(job["id"], 0.3, meta="new")
            await service.wait_for_end(job["id"])
            return code(answer), [received.body for received in receiver.of(job["id"])]

    outcomes = await asyncio.gather(*(race() for _ in range(ROUNDS)))

    assert all(outcome in ((None, [b'"new"']), ("E006", [b'"old"'])) for outcome in outcomes), outcomes
    assert len({outcome[0] for outcome in outcomes}) == 2

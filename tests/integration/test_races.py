"""Changes that race the trigger time: there are two outcomes, and the answer says which."""

import asyncio
import os
import random
import time
from collections import Counter

import httpx
import pytest

from tests.receiver import Received, Receiver, response
from tests.service import Service, a_job

ROUNDS = int(os.environ.get("RACES", "200"))
AT_A_TIME = 16

Outcome = tuple[int, str | None, int]


async def answer_soon(_: Received) -> bytes:
    await asyncio.sleep(random.choice([0, 0, 0.002, 0.02]))
    return response(200)


class Aim:
    """Finds the moment in which a request and the delivery are equally fast, however fast this machine is just now."""

    def __init__(self) -> None:
        self._after = 0.1

    async def wait(self, trigger_time: int) -> None:
        """Wait until about that moment."""
        moment = trigger_time / 1000 + self._after + random.uniform(-0.1, 0.1)
        await asyncio.sleep(max(0.0, moment - time.time()))

    def note(self, *, too_late: bool) -> None:
        self._after += -0.03 if too_late else 0.03


def code(answer: httpx.Response) -> str | None:
    found: str | None = answer.json().get("code")
    return found


@pytest.mark.timeout(ROUNDS)
async def test_delete_races_the_trigger_time(service: Service, receiver: Receiver) -> None:
    receiver.answer = answer_soon
    limit, aim = asyncio.Semaphore(AT_A_TIME), Aim()

    async def race() -> Outcome:
        async with limit:
            job = a_job(0.6)
            await service.api.post(service.jobs, json=job)
            await aim.wait(job["trigger_time"])
            answer = await service.cancel(job["id"])
            aim.note(too_late=code(answer) == "E006")
            # An ended job is delivered no more, so what arrived until now is all.
            await service.wait_for_end(job["id"])
            return answer.status_code, code(answer), len(receiver.of(job["id"]))

    outcomes = Counter(await asyncio.gather(*(race() for _ in range(ROUNDS))))

    assert set(outcomes) == {(200, None, 0), (400, "E006", 1)}, outcomes


@pytest.mark.timeout(ROUNDS)
async def test_put_races_the_trigger_time(service: Service, receiver: Receiver) -> None:
    receiver.answer = answer_soon
    limit, aim = asyncio.Semaphore(AT_A_TIME), Aim()

    async def race() -> tuple[str | None, list[bytes]]:
        async with limit:
            job = a_job(0.6, meta="old")
            await service.api.post(service.jobs, json=job)
            await aim.wait(job["trigger_time"])
            answer = await service.change(job["id"], 0.3, meta="new")
            aim.note(too_late=code(answer) == "E006")
            await service.wait_for_end(job["id"])
            return code(answer), [received.body for received in receiver.of(job["id"])]

    outcomes = await asyncio.gather(*(race() for _ in range(ROUNDS)))

    assert all(outcome in ((None, [b'"new"']), ("E006", [b'"old"'])) for outcome in outcomes), outcomes
    assert len({outcome[0] for outcome in outcomes}) == 2

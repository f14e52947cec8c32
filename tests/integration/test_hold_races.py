"""Changes that race the release of held jobs: there are two outcomes, and the answer says which, or that none is known.

A change needs a worker's answer, which a slow machine may not give in time: that is told, and the job is delivered once
all the same. A cancel is decided by the ledger.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx
from temporalio.client import Client

from tests.support.holds import pause, resume, wait_until_held, wait_until_listed
from tests.support.receiver import Receiver
from tests.support.service import Service

JOBS = 40
SPREAD = 1.5

Outcome = TypeVar("Outcome")


async def hold_many(service: Service, client: Client) -> list[str]:
    await pause(service)
    job_ids = [await service.create(0, meta="old") for _ in range(JOBS)]
    await asyncio.gather(*(wait_until_held(service, job_id) for job_id in job_ids))
    await wait_until_listed(client, service, JOBS)
    return job_ids


async def race_all(
    race: Callable[[str], Awaitable[Outcome]], job_ids: list[str], service: Service, receiver: Receiver
) -> list[Outcome]:
    """Release the jobs, and race each one: the first at once, each later one when one more has gone out.

    So both outcomes come about, however fast or slow the machine is. One that has gone out itself waits for no other.
    """

    async def one(turn: int, job_id: str) -> Outcome:
        await receiver.wait_until(lambda: len(receiver.received) >= turn or bool(receiver.of(job_id)), limit=60)
        return await race(job_id)

    async with asyncio.TaskGroup() as group:
        group.create_task(resume(service, SPREAD))
        outcomes = [group.create_task(one(turn, job_id)) for turn, job_id in enumerate(job_ids)]
    return [outcome.result() for outcome in outcomes]


def code(answer: httpx.Response) -> str | None:
    found: str | None = answer.json().get("code")
    return found


async def test_delete_races_the_release(service: Service, receiver: Receiver, client: Client) -> None:
    job_ids = await hold_many(service, client)

    async def race(job_id: str) -> tuple[str | None, int]:
        answer = await service.cancel(job_id)
        await service.wait_for_end(job_id, limit=60)
        return code(answer), len(receiver.of(job_id))

    outcomes = await race_all(race, job_ids, service, receiver)

    assert set(outcomes) == {(None, 0), ("E006", 1)}, outcomes


async def test_put_races_the_release(service: Service, receiver: Receiver, client: Client) -> None:
    job_ids = await hold_many(service, client)

    async def race(job_id: str) -> tuple[str | None, list[bytes]]:
        answer = await service.change(job_id, 0.2, meta="new")
        await service.wait_for_end(job_id, limit=60)
        return code(answer), [received.body for received in receiver.of(job_id)]

    outcomes = await race_all(race, job_ids, service, receiver)

    old, new = [b'"old"'], [b'"new"']
    exact = [(None, new), ("E006", old)]
    assert all(outcome in [*exact, ("E015", old), ("E015", new)] for outcome in outcomes), outcomes
    assert all(outcome in outcomes for outcome in exact), outcomes

"""Changes that race the trigger time, with two workers: there are two outcomes, and the answer says which."""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
from msgspec.structs import replace
from temporalio.client import Client

from devstack.postgres import Postgres, embedded_postgres
from devstack.temporal import Temporal
from tests.support.kills import send
from tests.support.receiver import Received, Receiver, response
from tests.support.service import Service, a_job, new_id, now_ms
from tests.support.two_workers import two_workers
from tests.support.waiting import eventually
from timemachine.postgres.migrate import migrate
from timemachine.settings import Settings

ROUNDS = int(os.environ.get("RACES", "20"))
"""Of each race; `make soak` has thousands."""
UNKNOWN = "E015"
"""On a machine with too much to do: the request may have taken effect."""
ANSWERS = (None, "E006", UNKNOWN)
AT_A_TIME = 16
CRASH_JOBS = 40

Outcome = tuple[int, str | None, int]
T = TypeVar("T")


SLOW = 1.5
"""Seconds of an attempt that outlasts the workflow task which began it."""


async def answer(_: Received) -> bytes:
    await asyncio.sleep(random.choice([0, 0.002, 0.02, SLOW, SLOW, SLOW]))
    return response(200)


@pytest.fixture
async def service(
    settings: Settings, client: Client, temporal: Temporal, receiver: Receiver, db: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Service]:
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal.address)
    async with two_workers(settings) as pair:
        service = Service(pair.api, db)
        await service.add_route(receiver.url)
        yield service
        service.verify_all(receiver)


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


async def races(race: Callable[[], Awaitable[T]], until: Callable[[list[T]], bool]) -> list[T]:
    """Return how the rounds ended: so many, and more on a machine on which only one of two has won until then."""
    outcomes: list[T] = []
    for _ in range(0, 10 * ROUNDS, AT_A_TIME):
        outcomes += await asyncio.gather(*(race() for _ in range(AT_A_TIME)))
        if len(outcomes) >= ROUNDS and until(outcomes):
            break
    return outcomes


def code(answer: httpx.Response) -> str | None:
    found: str | None = answer.json().get("code")
    return found


@pytest.mark.timeout(300 + 2 * ROUNDS)
async def test_delete_races_the_trigger_time(service: Service, receiver: Receiver) -> None:
    receiver.answer = answer
    aim = Aim()

    async def race() -> Outcome:
        job = a_job(0.6)
        await service.api.post(service.jobs, json=job)
        await aim.wait(job["trigger_time"])
        deleted = await service.cancel(job["id"])
        aim.note(too_late=code(deleted) == "E006")
        # An ended job is delivered no more, so what arrived until now is all.
        await service.wait_for_end(job["id"])
        return deleted.status_code, code(deleted), len(receiver.of(job["id"]))

    outcomes = Counter(await races(race, until=lambda outcomes: len(set(outcomes)) > 1))

    assert set(outcomes) == {(200, None, 0), (400, "E006", 1)}, outcomes


@pytest.mark.timeout(300 + 2 * ROUNDS)
async def test_put_races_the_trigger_time(service: Service, receiver: Receiver) -> None:
    receiver.answer = answer
    aim = Aim()

    async def race() -> tuple[str | None, list[bytes]]:
        job = a_job(0.6, meta="old")
        await service.api.post(service.jobs, json=job)
        await aim.wait(job["trigger_time"])
        changed = await service.change(job["id"], 0.3, meta="new")
        aim.note(too_late=code(changed) == "E006")
        await service.wait_for_end(job["id"])
        return code(changed), [received.body for received in receiver.of(job["id"])]

    def both_won(outcomes: list[tuple[str | None, list[bytes]]]) -> bool:
        return {None, "E006"} <= {changed for changed, _ in outcomes}

    outcomes = await races(race, until=both_won)

    assert all(outcome in ((None, [b'"new"']), ("E006", [b'"old"'])) for outcome in outcomes), outcomes
    assert both_won(outcomes)


@pytest.mark.timeout(300 + 2 * ROUNDS)
async def test_trigger_races_the_trigger_time(service: Service, receiver: Receiver) -> None:
    receiver.answer = answer
    aim = Aim()

    async def race() -> tuple[str | None, bool, list[bool]]:
        job = a_job(0.6)
        await service.api.post(service.jobs, json=job)
        await aim.wait(job["trigger_time"] - 100)
        triggered = await service.trigger(job["id"])
        aim.note(too_late=code(triggered) == "E006")
        shown = (await service.wait_for_end(job["id"]))["trigger_time"]
        times = [int(received.headers["timemachine-trigger-time"]) for received in receiver.of(job["id"])]
        return code(triggered), shown <= job["trigger_time"], [time == shown for time in times]

    def both_won(outcomes: list[tuple[str | None, bool, list[bool]]]) -> bool:
        return {None, "E006"} <= {triggered for triggered, _, _ in outcomes}

    outcomes = await races(race, until=both_won)

    possible = [(known, True, [True]) for known in (None, "E006", UNKNOWN)]
    assert [outcome for outcome in outcomes if outcome not in possible] == []
    assert both_won(outcomes)


@pytest.mark.timeout(300 + 3 * ROUNDS)
async def test_trigger_put_and_delete_race_each_other(service: Service, receiver: Receiver) -> None:
    """Of a job that is due much later, so that it is the trigger alone that may have it delivered."""
    receiver.answer = answer
    aim = Aim()

    async def race() -> tuple[str | None, str | None, str | None, list[bytes]]:
        job = a_job(3600, meta="old")
        await service.api.post(service.jobs, json=job)
        began = now_ms()

        async def after(wait: Awaitable[None], ask: Awaitable[httpx.Response]) -> str | None:
            await wait
            return code(await ask)

        triggered, changed, cancelled = await asyncio.gather(
            after(asyncio.sleep(0.1), service.trigger(job["id"])),
            after(aim.wait(began), service.change(job["id"], 7200, meta="new")),
            after(asyncio.sleep(0.2 * random.random()), service.cancel(job["id"]))
            if random.random() < 0.5
            else asyncio.sleep(0, "E006"),
        )
        await service.wait_for_end(job["id"])
        bodies = [received.body for received in receiver.of(job["id"])]
        if bodies:
            aim.note(too_late=changed == "E006")
        return triggered, changed, cancelled, bodies

    def both_won(outcomes: list[tuple[str | None, str | None, str | None, list[bytes]]]) -> bool:
        return {None, "E006"} <= {changed for _, changed, _, bodies in outcomes if bodies}

    outcomes = await races(race, until=both_won)

    possible = [
        (None, None, "E006", [b'"new"']),
        (None, "E006", "E006", [b'"old"']),
        *((triggered, changed, None, []) for triggered in ANSWERS for changed in ANSWERS),
    ]
    assert [outcome for outcome in outcomes if outcome not in possible] == []
    assert both_won(outcomes)


@pytest.mark.timeout(300 + 3 * ROUNDS)
async def test_many_that_put_one_job_at_once(service: Service, receiver: Receiver) -> None:
    """Clients that each set the job, one that cancels it and one that creates it: what was answered 200 is not lost."""
    receiver.answer = answer

    async def race() -> None:
        job_id, due = new_id(), now_ms(random.choice([0.3, 3600]))
        contents = [a_job(0, id=job_id, trigger_time=due, meta=number) for number in range(5)]
        puts = await asyncio.gather(
            *(service.put(job_id, content) for content in contents[:4]),
            service.api.post(service.jobs, json=contents[4]),
            service.cancel(job_id),
        )
        assert {code(put) for put in puts[:4]} <= {None, "E006", "E015"}, [put.text for put in puts]
        assert code(puts[4]) in (None, "E005", "E015"), puts[4].text
        assert code(puts[5]) in (None, "E004", "E006", "E015"), puts[5].text
        last = contents[0] | {"trigger_time": now_ms(), "meta": "last"}
        final = await repeated_until_known(lambda: service.put(job_id, last))
        while code(final) == "E006":  # one of the others is being delivered
            await service.wait_for_end(job_id)
            final = await repeated_until_known(lambda: service.put(job_id, last))
        assert code(final) is None, final.text
        assert (await service.wait_for_end(job_id))["meta"] == "last"
        bodies = Counter(received.body for received in receiver.of(job_id))
        assert bodies[b'"last"'] == 1
        assert max(bodies.values()) == 1, bodies

    for _ in range(max(1, ROUNDS // AT_A_TIME)):
        await asyncio.gather(*(race() for _ in range(AT_A_TIME)))


async def repeated_until_known(ask: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
    return await eventually(ask, lambda answer: answer.status_code != 503, limit=60)


@pytest.fixture
async def fragile(tmp_path: Path) -> AsyncIterator[Postgres]:
    """A Postgres of the test's own, to be killed."""
    async with embedded_postgres(tmp_path) as postgres:
        yield postgres


@pytest.mark.timeout(300)
async def test_delete_races_the_trigger_time_while_postgres_crashes(
    fragile: Postgres,
    settings: Settings,
    client: Client,
    temporal: Temporal,
    receiver: Receiver,
    db: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is not known yet is said to be so, what is known stays true, and nothing is made twice: no worker died."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal.address)
    receiver.answer = answer
    own = replace(settings, postgres_dsn=fragile.dsn)
    await migrate(own)
    async with two_workers(own) as pair:
        service = Service(pair.api, db)
        await service.add_route(receiver.url)
        due = time.time() + 4
        in_time, too_late, *job_ids = await asyncio.gather(
            *(service.create(due - time.time()) for _ in range(CRASH_JOBS))
        )

        async def race(job_id: str) -> tuple[str | None, str, int]:
            # Two are no race, so that both ends are seen on any machine.
            if job_id == too_late:
                await receiver.wait_for(job_id)
            elif job_id != in_time:
                await asyncio.sleep(max(0.0, due + random.uniform(-0.2, 2.5) - time.time()))
            answers = [await service.cancel(job_id)]
            while answers[-1].status_code == 503:
                await asyncio.sleep(0.1)
                answers.append(await service.cancel(job_id))
            state = (await ended(service, job_id))["state"]
            # The first of them may have cancelled the job, and then the next one comes too late.
            again = len(answers) > 1 and state == "cancelled"
            return None if again else code(answers[-1]), state, len(receiver.of(job_id))

        racing = [asyncio.create_task(race(job_id)) for job_id in (in_time, too_late, *job_ids)]
        await asyncio.sleep(max(0.0, due + 0.4 - time.time()))
        send(fragile.part, signal.SIGKILL)
        await fragile.part.restart()
        outcomes = Counter(await asyncio.gather(*racing))

    assert set(outcomes) == {(None, "cancelled", 0), ("E006", "delivered", 1)}, outcomes


async def ended(service: Service, job_id: str) -> dict[str, str]:
    """Return a job that has ended, however often the answer is that nobody knows."""

    def has_ended(found: httpx.Response) -> bool:
        return found.status_code == 200 and found.json()["state"] not in ("scheduled", "delivering")

    found = await eventually(lambda: service.api.get(f"{service.jobs}/{job_id}"), has_ended, limit=60)
    job: dict[str, str] = found.json()
    return job

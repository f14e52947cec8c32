"""Postgres dies, or ends all sessions again and again, while jobs come due, are changed and are cancelled."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import asyncpg
import pytest

from tests.soak.cluster import Cluster
from tests.soak.hook import Hook
from tests.soak.report import Row, report, summary, table
from tests.soak.size import size
from tests.soak.story import Callers, Story, now_ms

ROUNDS = size("CHAOS_ROUNDS", smoke=2, full=10)
JOBS = size("CHAOS_JOBS", smoke=40, full=40)

LATE_LIMIT = 40.0
QUIET = 5.0
"""Seconds in the end in which nothing may come any more."""

ROUTES = {
    "fast": (0.0, None),
    "slow": (1.5, None),
    "narrow-fast": (0.0, 10),
    "narrow-slow": (1.5, 10),
}
"""Seconds until the receiver answers, and `max_in_flight`."""

CHAOS_FOR = 12.0
END_SESSIONS_EVERY = 0.3
RATE = 8.0
"""Jobs a second that are created while sessions are ended."""
READS = 40.0
"""At the most, a second."""


class Round:
    """Jobs of one round, in a db of their own, with what clients do to them."""

    def __init__(self, callers: Callers, hook: Hook, db: str) -> None:
        self.stories: list[Story] = []
        self._callers = callers
        self._hook = hook
        self._db = db

    async def add_routes(self) -> None:
        for route, (delay, max_in_flight) in ROUTES.items():
            await self._callers.add_route(self._db, route, self._hook.url(delay=delay), max_in_flight=max_in_flight)

    async def live(self, number: int, trigger_time: int) -> None:
        """Create a job, and then leave it, change it before its time, or cancel it about then."""
        story = Story(db=self._db, id=str(number), route=list(ROUTES)[number // 3 % len(ROUTES)])
        self.stories.append(story)
        api = number % 2
        await self._callers.persist(lambda: self._callers.create(story, trigger_time, api=api), limit=10)
        await (self._leave, self._change, self._cancel)[number % 3](story, trigger_time, api)

    async def read(self, over: asyncio.Event) -> None:
        """Read jobs and their attempts until it is over."""
        while not over.is_set():
            await asyncio.sleep(1 / READS)
            if self.stories:
                story, api = random.choice(self.stories), random.randrange(2)
                await random.choice([self._callers.look, self._callers.list_attempts])(story, api=api)

    async def wait_for_requests(self, count: int, *, until: float) -> None:
        """Return once so many requests have come, or at a time: under load they may be late."""
        while sum(len(self._hook.arrivals[story.job]) for story in self.stories) < count and time.time() < until:
            await asyncio.sleep(0.01)

    async def _leave(self, story: Story, trigger_time: int, api: int) -> None:
        await _until(trigger_time, random.uniform(-0.5, 0.5))
        await self._callers.look(story, api=api)

    async def _change(self, story: Story, trigger_time: int, api: int) -> None:
        await _until(trigger_time, random.uniform(-1.0, -0.1))
        await self._callers.change(story, 1, trigger_time + random.randrange(500), api=api)

    async def _cancel(self, story: Story, trigger_time: int, api: int) -> None:
        await _until(trigger_time, random.uniform(-0.1, 1.0 + ROUTES[story.route][0]))
        await self._callers.cancel(story, api=api)


async def _until(trigger_time: int, plus: float) -> None:
    await asyncio.sleep(max(0.0, trigger_time / 1000 + plus - time.time()))


async def killed(cluster: Cluster, jobs: Round) -> None:
    """All jobs come due at one instant. Postgres is killed a quarter of a second after it, or once some went out."""
    instant = now_ms(3)
    async with asyncio.TaskGroup() as tasks:
        for number in range(JOBS):
            tasks.create_task(jobs.live(number, instant))
        await _until(instant, 0.25)
        await jobs.wait_for_requests(random.randrange(1, JOBS // 2), until=instant / 1000 + 3)
        await cluster.restart_postgres()


async def sessions_ended(cluster: Cluster, jobs: Round) -> None:
    """Jobs come due all the time, and all sessions are ended every now and then."""
    over = asyncio.Event()
    async with asyncio.TaskGroup() as beside:
        beside.create_task(_end_sessions(cluster, over))
        beside.create_task(jobs.read(over))
        async with asyncio.TaskGroup() as lives:
            for number in range(int(CHAOS_FOR * RATE)):
                lives.create_task(jobs.live(number, now_ms(random.uniform(1.2, 3))))
                await asyncio.sleep(1 / RATE)
        over.set()


async def _end_sessions(cluster: Cluster, over: asyncio.Event) -> None:
    while not over.is_set():
        await asyncio.sleep(END_SESSIONS_EVERY)
        with suppress(OSError, asyncpg.PostgresError):
            await cluster.end_sessions()


@pytest.mark.timeout(120 + ROUNDS * 180)
@pytest.mark.parametrize("chaos", [killed, sessions_ended])
async def test_chaos_of_postgres(
    running: Cluster, hook: Hook, callers: Callers, chaos: Callable[[Cluster, Round], Awaitable[None]]
) -> None:
    row, began = Row(name=chaos.__name__, late_limit=LATE_LIMIT), time.monotonic()
    for number in range(ROUNDS):
        jobs = Round(callers, hook, f"round-{number}")
        await jobs.add_routes()
        await chaos(running, jobs)
        await callers.settle(jobs.stories)
        row.stories += jobs.stories
        print(table(f"after {number + 1} rounds", [summary(row, hook, running.losses)]))
    await asyncio.sleep(QUIET)

    title = f"chaos of Postgres: {ROUNDS} rounds in {time.monotonic() - began:.0f} s"
    assert await report(title, [row], hook, running) == []

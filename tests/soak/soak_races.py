"""DELETE and PUT that race the trigger time, on two workers of which one is killed every ten seconds."""

import asyncio
import itertools
import random
import time

import pytest

from tests.soak.cluster import Cluster
from tests.soak.hook import Hook
from tests.soak.report import Row, report
from tests.soak.size import size
from tests.soak.story import TOO_LATE, Call, Callers, Story, now_ms

RACES = size("RACES", smoke=100, full=2000)
"""Of each kind."""

AT_A_TIME = size("RACES_AT_A_TIME", smoke=20, full=20)
KILL_EVERY = size("KILL_EVERY", smoke=10, full=10)
"""Seconds; 0 kills nothing."""
FREEZE_FOR = size("FREEZE_FOR", smoke=0, full=0)
"""Seconds that a worker stands still after each kill; 0 for not at all."""

SLOW = 1.5
LATE_LIMIT = 90.0
"""Seconds: an attempt that was cut is taken for lost only after a while."""
QUIET = 5.0
"""Seconds in the end in which nothing may come any more."""


class Aim:
    """Finds the moment in which a request and the delivery are equally fast, however fast this machine is just now."""

    def __init__(self) -> None:
        self._after = 0.0

    async def wait(self, trigger_time: int) -> None:
        """Wait until about that moment."""
        moment = trigger_time / 1000 + self._after + random.uniform(-0.06, 0.06)
        await asyncio.sleep(max(0.0, moment - time.time()))

    def note(self, *, too_late: bool) -> None:
        self._after = min(3.0, max(-0.5, self._after + (-0.03 if too_late else 0.03)))


class Races:
    """Runs races of one kind."""

    def __init__(self, callers: Callers, db: str, kind: str) -> None:
        self.row = Row(name=kind, late_limit=LATE_LIMIT)
        self._callers = callers
        self._db = db
        self._kind = kind
        self._aims = {"fast": Aim(), "slow": Aim()}

    async def race(self, number: int) -> Story:
        """Create a job, and change or cancel it at the moment at which it is due."""
        route = ("fast", "slow")[number % 2]
        story = Story(db=self._db, id=f"{self._kind}-{number}", route=route)
        self.row.stories.append(story)
        trigger_time = now_ms(random.uniform(1.0, 2.0))
        await self._callers.create(story, trigger_time, api=random.randrange(2))
        await self._aims[route].wait(trigger_time)
        answer = await self._send(story)
        if answer.code == TOO_LATE or answer.took:
            self._aims[route].note(too_late=answer.code == TOO_LATE)
        return story

    async def _send(self, story: Story) -> Call:
        if self._kind == "DELETE":
            return await self._callers.cancel(story, api=random.randrange(2))
        return await self._callers.change(story, 1, now_ms(0.5), api=random.randrange(2))


async def kill_in_turns(cluster: Cluster) -> None:
    """Kill one of the workers and start it again, and freeze it for a while, for ever."""
    if KILL_EVERY:
        for number in itertools.cycle(range(len(cluster.workers))):
            await asyncio.sleep(KILL_EVERY)
            cluster.kill_worker(number)
            await cluster.start_worker(number)
            if FREEZE_FOR:
                cluster.freeze_worker(number)
                await asyncio.sleep(FREEZE_FOR)
                cluster.thaw_worker(number)


@pytest.mark.timeout(300 + RACES)
async def test_races(running: Cluster, hook: Hook, callers: Callers) -> None:
    db = "races"
    await callers.add_route(db, "fast", hook.url())
    await callers.add_route(db, "slow", hook.url(delay=SLOW))
    kinds = [Races(callers, db, "DELETE"), Races(callers, db, "PUT")]
    turns = asyncio.Semaphore(AT_A_TIME)

    async def one(kind: Races, number: int) -> None:
        async with turns:
            story = await kind.race(number)
        await callers.settle([story])

    began = time.monotonic()
    async with asyncio.TaskGroup() as beside:
        killing = beside.create_task(kill_in_turns(running))
        async with asyncio.TaskGroup() as tasks:
            for number, kind in itertools.product(range(RACES), kinds):
                tasks.create_task(one(kind, number))
        killing.cancel()
    await asyncio.sleep(QUIET)

    took, kills = time.monotonic() - began, len(running.losses)
    wrong = await report(f"races: {took:.0f} s, {kills} workers killed", [kind.row for kind in kinds], hook, running)
    assert wrong == []

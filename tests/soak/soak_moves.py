"""Jobs that are moved thousands of times before they are due, as time-outs of sessions are: the last move counts."""

import asyncio
import itertools
import random
import time
from collections.abc import Iterator, Sequence

import msgspec
import pytest

from tests.soak.cluster import Cluster, kill
from tests.soak.hook import Arrival, Hook
from tests.soak.promises import Check
from tests.soak.report import Row, report
from tests.soak.size import size
from tests.soak.story import Callers, Story, now_ms

JOBS = size("MOVED_JOBS", smoke=4, full=20)
"""Of each kind."""

LATE_LIMIT = 5.0
GIVE_UP = 30.0
"""Seconds after a job's time at which it is taken for lost: the wrong time may be hours away."""
LAST = 5.0
"""How far ahead the last move is, in seconds."""
HELD_AFTER = 2.5
"""Seconds after which a job that is due on a paused route is held."""
CUT_WITHIN = 100
"""Moves within which a history is cut."""
CUT_AFTER = 0.03
"""Seconds that a cut may come after the answer."""
STALL = size("STALL", smoke=15, full=25)
"""Seconds for which all workers are frozen while small jobs are moved. Each has its workflow task lost meanwhile."""
LONGEST_GAP = 60.0
"""Seconds, besides a stall, within which each job has to take another move."""
QUIET = 5.0
"""Seconds in the end in which nothing may come any more."""


class AttemptKind(msgspec.Struct, frozen=True, kw_only=True):
    """How a job is moved."""

    name: str
    moves: int
    meta_bytes: int = 0
    held: bool = False
    """Whether its route is paused, and its time came once already."""
    stalled: bool = False
    """Whether all workers are frozen for a while, when half of the moves are made."""


KINDS = (
    AttemptKind(name="small", moves=size("MOVES", smoke=100, full=5000), stalled=True),
    AttemptKind(name="large", moves=size("LARGE_MOVES", smoke=6, full=500), meta_bytes=250_000),
    AttemptKind(name="held", moves=size("HELD_MOVES", smoke=10, full=5000), held=True),
)


class Mover:
    """Moves one job through one API, and last of all to a time that is near."""

    def __init__(self, callers: Callers, kind: AttemptKind, story: Story, api: int) -> None:
        self._callers = callers
        self._kind = kind
        self._story = story
        self._api = api
        self._version = 0

    async def prepare(self) -> None:
        """Create the job and move it to and fro, always to a time that is far ahead."""
        first = now_ms(3600)
        await self._callers.persist(lambda: self._callers.create(self._story, first, api=self._api, pad=self._pad))
        if self._kind.held:
            await self.move(1)
            await asyncio.sleep(HELD_AFTER)
        for _ in range(self._kind.moves - 1):
            await self.move(random.uniform(1800, 7200))

    @property
    def moves_made(self) -> int:
        return self._version

    async def move(self, ahead: float) -> None:
        self._version += 1
        moved = now_ms(ahead)
        await self._callers.persist(
            lambda: self._callers.change(self._story, self._version, moved, api=self._api, pad=self._pad)
        )

    async def stop_at_a_cut(self, cluster: Cluster) -> None:
        """Move on until Temporal has cut the job's history and begun a new one, and not once more.

        The new one has to know of the last move by itself: nothing comes any more that might tell it.
        """
        run = await cluster.run_of(self._story.job)
        for _ in range(CUT_WITHIN):
            await self.move(LAST)
            await asyncio.sleep(CUT_AFTER)
            if await cluster.run_of(self._story.job) != run:
                return

    @property
    def _pad(self) -> str:
        return "x" * self._kind.meta_bytes


def each_move_is_taken(story: Story, _: Sequence[Arrival]) -> Iterator[str]:
    """A job that waits can be moved, however often it was."""
    for call in story.of("PUT"):
        if call.status == 400:
            yield f"version {call.version} was refused"


def none_hangs(moves: int) -> Check:
    """Return the check that a job takes moves again soon after its workers were frozen.

    Args:
        moves: How many of its moves follow each other without a wait.
    """

    def check(story: Story, _: Sequence[Arrival]) -> Iterator[str]:
        taken = [call.done_ms for call in story.of("PUT") if call.took and (call.version or 0) < moves]
        for before, after in itertools.pairwise(taken):
            if (gap := (after - before) / 1000) > STALL + LONGEST_GAP:
                yield f"took no move for {gap:.0f} s"

    return check


async def stall(cluster: Cluster, movers: Sequence[Mover], moves: int) -> None:
    """Freeze all workers for a while, once each job was moved so often."""
    while min(mover.moves_made for mover in movers) < moves:
        await asyncio.sleep(0.1)
    numbers = range(len(cluster.workers))
    for number in numbers:
        cluster.freeze_worker(number)
    try:
        await asyncio.sleep(STALL)
    finally:
        for number in numbers:
            cluster.thaw_worker(number)


async def move_all(kind: AttemptKind, cluster: Cluster, callers: Callers, hook: Hook) -> Row:
    """Move jobs of a kind, and wait until they have ended.

    The first API dies as soon as it has confirmed its last moves. The jobs of the second one stop at a cut.
    """
    row = Row(
        name=f"{kind.name}, {kind.moves} moves",
        late_limit=LATE_LIMIT,
        also=(each_move_is_taken, none_hangs(kind.moves)),
    )
    route = f"/route/moves/{kind.name}"
    await callers.add_route("moves", kind.name, hook.url())
    if kind.held:
        (await callers.clients[0].post(f"{route}/pause")).raise_for_status()
    row.stories = [Story(db="moves", id=f"{kind.name}-{number}", route=kind.name) for number in range(JOBS)]
    movers = [Mover(callers, kind, story, number % 2) for number, story in enumerate(row.stories)]

    preparing = [mover.prepare() for mover in movers]
    if kind.stalled:
        preparing.append(stall(cluster, movers, kind.moves // 2))
    await asyncio.gather(*preparing)
    stopping = asyncio.gather(*(mover.stop_at_a_cut(cluster) for mover in movers[1::2]))
    await asyncio.gather(*(mover.move(LAST) for mover in movers[::2]))
    kill(cluster.apis[0])
    await cluster.apis[0].restart()
    await stopping

    if kind.held:
        await asyncio.sleep(LAST + HELD_AFTER)
        (await callers.clients[1].post(f"{route}/resume", json={"spread": 0})).raise_for_status()
        row.late_limit = LATE_LIMIT + (now_ms() - min(_confirmed(story) for story in row.stories)) / 1000
    await callers.settle(row.stories, limit=GIVE_UP)
    return row


def _confirmed(story: Story) -> int:
    """Return the time that the last move set."""
    return story.versions[max(story.versions)].trigger_time or 0


@pytest.mark.timeout(600 + JOBS * sum(kind.moves for kind in KINDS) // 5)
async def test_moves(running: Cluster, hook: Hook, callers: Callers) -> None:
    began = time.monotonic()
    rows = [await move_all(kind, running, callers, hook) for kind in KINDS]
    await asyncio.sleep(QUIET)

    assert await report(f"moves: {time.monotonic() - began:.0f} s", rows, hook, running) == []

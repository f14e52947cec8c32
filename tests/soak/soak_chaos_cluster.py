"""A cluster as in production, whose processes are killed or frozen in turn under a load of all that clients do."""

import asyncio
import itertools
import operator
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec
import pytest

from devstack.parts import Part
from tests.soak.cluster import Cluster, freeze, kill, production
from tests.soak.hook import Answer, Arrival, Hook
from tests.soak.promises import ANSWERED_WELL, PUT_OFF, is_created, most_at_once
from tests.soak.report import Row, report, summary, table
from tests.soak.size import size
from tests.soak.story import Call, Callers, Listing, Story, calling, now_ms
from tests.support.waiting import eventually

ROUNDS = size("CLUSTER_ROUNDS", smoke=4, full=15)
LOAD_FOR = float(size("CLUSTER_LOAD_FOR", smoke=15, full=25))
"""Seconds in which jobs are created: half of them before a process dies, half of them once it is there again."""
RATE = 30.0
"""Requests a second: a job's create, what is done to it, and a look at it or a list."""
LONG_FREEZE = float(size("CLUSTER_LONG_FREEZE", smoke=20, full=70))
HERD = size("CLUSTER_HERD", smoke=300, full=1000)

DOWN = 3.0
"""Seconds between the kill of a process and its start."""
LATE_LIMIT = 40.0
"""Seconds that a job may be late beyond the time in which a process was down: two time-outs of tasks, and a backlog."""
HERD_RATE = 25.0
"""Jobs a second of a herd that two processors deliver at least, beside the load."""
LATE = 2.0
"""Seconds after which a job counts as late, by which it is told when all was well again."""
QUIET = 5.0

MAX_IN_FLIGHT = 3
"""Of the limited route, over all workers."""

ROUTES: dict[str, tuple[str, int | None]] = {
    "healthy": ("0", None),
    "slow": ("1.5", None),
    "failing-once": ("fail-once", None),
    "limited": ("0.3", MAX_IN_FLIGHT),
}
"""What the receiver is asked for, and `max_in_flight`."""

RETRY = {"waits": [0.5, 1, 2, 4, 8]}


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """What is done to the cluster in a round."""

    name: str
    strike: Callable[[Cluster], Awaitable[None]]
    down: float = DOWN
    """Seconds in which a process does nothing."""
    herd: bool = False
    """Many jobs come due in the instant in which it is done."""

    @property
    def late_limit(self) -> float:
        """Seconds that a job of the round may be late."""
        return LATE_LIMIT + self.down + (HERD / HERD_RATE if self.herd else 0)


def killed(part_of: Callable[[Cluster], Part]) -> Callable[[Cluster], Awaitable[None]]:
    async def strike(cluster: Cluster) -> None:
        part = part_of(cluster)
        kill(part)
        await asyncio.sleep(DOWN)
        await part.restart()

    return strike


async def kill_worker(cluster: Cluster) -> None:
    cluster.kill_worker(0)
    await asyncio.sleep(DOWN)
    await cluster.start_worker(0)


async def freeze_worker(cluster: Cluster) -> None:
    cluster.freeze_worker(1)
    try:
        await asyncio.sleep(LONG_FREEZE)
    finally:
        cluster.thaw_worker(1)


async def restart_all(cluster: Cluster) -> None:
    """Stop and start one process after the other, as an upgrade does: Temporal's, then ours."""
    for part in cluster.services.values():
        await part.restart()
    for worker in cluster.workers:  # loses nothing: attempts in flight are finished
        await worker.restart()
    for number in range(len(cluster.apis)):
        await cluster.restart_api(number)


def service(name: str) -> Callable[[Cluster], Part]:
    return lambda cluster: cluster.services[f"temporal-{name}"]


def frozen(part_of: Callable[[Cluster], Part], seconds: float) -> Callable[[Cluster], Awaitable[None]]:
    return lambda cluster: freeze(part_of(cluster), seconds)


FAULTS = (
    Fault(name="kill a worker", strike=kill_worker),
    Fault(name="kill a history", strike=killed(service("history-1"))),
    Fault(name="herd, kill a worker", strike=kill_worker, herd=True),
    Fault(name="kill an API", strike=lambda cluster: cluster.kill_api(0, down=DOWN)),
    Fault(name="kill the frontend", strike=killed(service("frontend"))),
    Fault(name="kill matching", strike=killed(service("matching"))),
    Fault(name="kill Temporal's worker", strike=killed(service("worker"))),
    Fault(name="kill Postgres", strike=killed(lambda cluster: cluster.postgres)),
    Fault(name=f"freeze a worker {LONG_FREEZE:g} s", strike=freeze_worker, down=LONG_FREEZE),
    Fault(name="freeze an API 10 s", strike=lambda cluster: cluster.freeze_api(1, 10), down=10),
    Fault(
        name=f"freeze a history {LONG_FREEZE:g} s", strike=frozen(service("history-2"), LONG_FREEZE), down=LONG_FREEZE
    ),
    Fault(name="freeze matching 20 s", strike=frozen(service("matching"), 20), down=20),
    Fault(name="freeze Postgres 10 s", strike=frozen(lambda cluster: cluster.postgres, 10), down=10),
    Fault(name="rolling restart", strike=restart_all, down=10),
    Fault(name="herd, kill a history", strike=killed(service("history-2")), herd=True),
)


class Load:
    """Jobs of one round, in a db of their own, with what clients do to them."""

    def __init__(self, callers: Callers, hook: Hook, db: str, *, patience: float) -> None:
        self.stories: list[Story] = []
        self.listings: list[Listing] = []
        self.db = db
        self._callers = callers
        self._hook = hook
        self._patience = patience
        """Seconds in which a create is repeated: as long as it may be put off."""

    async def add_routes(self) -> None:
        for route, (path, max_in_flight) in ROUTES.items():
            url = f"http://127.0.0.1:{self._hook.port}/{path}"
            await self._callers.add_route(self.db, route, url, max_in_flight=max_in_flight, retry=RETRY)

    async def run(self, over: asyncio.Event) -> None:
        """Create jobs at a steady pace until it is over, do something to most of them, and look at them meanwhile."""
        async with asyncio.TaskGroup() as lives:
            for number in itertools.takewhile(lambda _: not over.is_set(), itertools.count()):
                lives.create_task(self._live(number, now_ms(random.uniform(1, 10))))
                lives.create_task(self._look())
                await asyncio.sleep(3 / RATE)

    async def herd(self, trigger_time: int) -> None:
        """Create jobs that all come due at one instant."""
        stories = [self._story(f"herd-{number}", "healthy") for number in range(HERD)]
        await self._callers.create_many(stories, [trigger_time] * HERD, label="herd")
        assert now_ms() < trigger_time, "the herd was not created in time"

    def _story(self, job_id: str, route: str) -> Story:
        story = Story(db=self.db, id=job_id, route=route)
        self.stories.append(story)
        return story

    async def _live(self, number: int, trigger_time: int) -> None:
        story = self._story(str(number), list(ROUTES)[number % len(ROUTES)])
        api = random.randrange(2)
        await self._callers.persist(lambda: self._callers.create(story, trigger_time, api=api), limit=self._patience)
        about_due = trigger_time / 1000 + random.uniform(-1, 0.2) - time.time()
        await asyncio.sleep(max(0.0, random.choice([about_due, random.uniform(0, about_due) if about_due > 0 else 0])))
        match number // len(ROUTES) % 4:
            case 0:
                await self._callers.look(story, api=api)
            case 1:
                await self._callers.change(story, 1, now_ms(random.uniform(0.5, 8)), api=api)
            case 2:
                await self._callers.cancel(story, api=api)
            case _:
                await self._callers.trigger(story, api=api)

    async def _look(self) -> None:
        api = random.randrange(2)
        if self.stories and random.random() < 0.7:
            await self._callers.look(random.choice(self.stories), api=api)
        else:
            self.listings.append(await self._callers.list_jobs(self.db, api=api))


def _answer(arrival: Arrival, path: str) -> Answer:
    if path == "/fail-once":
        return Answer(status=200 if arrival.attempt > 1 else 503)
    return Answer(delay=float(path.removeprefix("/")))


@pytest.fixture
async def cluster(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with production(tmp_path_factory.mktemp("data"), logs=tmp_path) as found:
        yield found


@pytest.mark.timeout(600 + ROUNDS * 300)
async def test_chaos_of_a_cluster(cluster: Cluster, hook: Hook) -> None:
    hook.answer = _answer
    rows, began = list[Row](), time.monotonic()
    try:
        async with calling(cluster.urls) as callers:
            for number in range(ROUNDS):
                fault = FAULTS[number % len(FAULTS)]
                rows.append(Row(name=fault.name, late_limit=fault.late_limit))
                await _round(f"round-{number}", fault, rows[-1], cluster, hook, callers)
        await asyncio.sleep(QUIET)
    finally:  # what was seen is told also where a process does not come back
        title = f"chaos of a cluster: {len(rows)} of {len(FAULTS)} faults in {time.monotonic() - began:.0f} s"
        broken = await report(title, rows, hook, cluster)
    assert broken == []


async def _round(db: str, fault: Fault, row: Row, cluster: Cluster, hook: Hook, callers: Callers) -> None:
    load = Load(callers, hook, db, patience=fault.late_limit)
    row.stories = load.stories
    await load.add_routes()
    struck, ended = await _strike_under_load(fault, cluster, load)
    await callers.settle(load.stories, limit=180)
    lists = [listing.call for listing in load.listings]
    calls = [*lists, *(call for story in load.stories for call in story.calls)]
    cluster.excuse(calls)

    peak = most_at_once(hook.arrivals[story.job] for story in load.stories if story.route == "limited")
    row.wrong += _wrong_pages(load) + await _wrong_lists(load, callers)
    row.wrong += _put_off_for_too_long(load, calls, until=ended + int(1000 * (fault.late_limit - fault.down)))
    row.wrong += [f"{peak} requests at a time, with a limit of {MAX_IN_FLIGHT}"] if peak > MAX_IN_FLIGHT else []
    answers = Counter(call.status for call in lists)
    row.more = {
        "lists": " ".join(f"{status or 'none'}:{count}" for status, count in answers.items()),
        "at once": str(peak),
        "healed s": _healed(load.stories, hook, struck),
    }
    print(table(f"after {db}", [summary(row, hook, cluster.losses)]), *row.wrong, sep="\n")


async def _strike_under_load(fault: Fault, cluster: Cluster, load: Load) -> tuple[int, int]:
    """Strike in the midst of the load, and return when, and when the process was there again."""
    over = asyncio.Event()
    instant = now_ms(LOAD_FOR / 2 + (HERD / HERD_RATE if fault.herd else 0))
    if fault.herd:
        await load.herd(instant)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(load.run(over))
        await asyncio.sleep(instant / 1000 - time.time())
        struck = now_ms()
        await fault.strike(cluster)
        ended = now_ms()
        await asyncio.sleep(LOAD_FOR / 2 + (HERD / HERD_RATE if fault.herd else 0))
        over.set()
    return struck, ended


def _put_off_for_too_long(load: Load, calls: Sequence[Call], *, until: int) -> list[str]:
    """Return which requests were put off without a cause: a process that is away, or a herd."""
    late = [call for call in calls if call.status in PUT_OFF and call.sent_ms > until]
    missing = [story.id for story in load.stories if not is_created(story)]
    wrong = [f"{len(late)} requests were put off after {until}, the last at {late[-1].sent_ms}"] if late else []
    return wrong + ([f"never created: {missing}"] if missing else [])


def _wrong_pages(load: Load) -> list[str]:
    """Return what was wrong with lists while jobs came and went: they lag, but list each job once, and no other's."""
    known, wrong = {story.id for story in load.stories}, list[str]()
    for listing in load.listings:
        call, ids = listing.call, [job["id"] for job in listing.jobs]
        if call.status not in ANSWERED_WELL and not call.excused:
            wrong.append(f"a list was answered {call.status or 'nothing'} {call.text}")
        if len(set(ids)) < len(ids) or not known.issuperset(ids):
            wrong.append(f"a list has jobs twice, or of others: {ids}")
    return wrong


async def _wrong_lists(load: Load, callers: Callers) -> list[str]:
    """Return how the lists of the APIs differ from what GET said of each job, once they had time to follow."""

    async def differ(api: int) -> list[tuple[str, str]]:
        listed = sorted((job["id"], job["state"]) for job in await callers.list_all(load.db, api=api))
        # A job that failed, as far as anybody knew, is delivered when a worker that was frozen says so.
        for story in load.stories:
            if story.state == "failed" and (story.id, "failed") not in listed:
                await callers.look(story, api=api)
        wanted = sorted((story.id, story.state) for story in load.stories if story.state)
        return sorted(set(listed) ^ set(wanted)) if set(listed) != set(wanted) else listed[len(wanted) :]

    wrong = list[str]()
    for api in range(len(callers.clients)):
        try:
            await eventually(partial(differ, api), operator.not_)
        except AssertionError as error:
            wrong.append(f"the list of API {api} differs from its jobs: {error}")
    return wrong


def _healed(stories: list[Story], hook: Hook, struck: int) -> str:
    """Return how many seconds after the strike the last late job was due; with `>` where none came in time after it."""
    firsts = [first for story in stories for first in hook.arrivals[story.job][:1]]
    late = [first.trigger_time for first in firsts if first.arrived_ms - first.trigger_time > LATE * 1000]
    if not late:
        return "-"
    is_over = any(first.trigger_time > max(late) for first in firsts)
    return f"{'' if is_over else '>'}{max(0, max(late) - struck) / 1000:.0f}"

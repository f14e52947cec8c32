"""What very many waiting jobs of ours take, and what they make slower: on one stack, at one level after the other."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from itertools import repeat

import msgspec

from api.job_lists import COUNTS_KEPT
from benchmarks import scenarios
from benchmarks.implementations import COLLECTION, JobBody, Ours
from benchmarks.load import due_in, timed_all
from benchmarks.meter import Meter
from benchmarks.restarts import restarts
from benchmarks.results import AMONG, WAITING, Measurement, Memory, TableSize, grown, spread
from benchmarks.run import begun
from benchmarks.scenarios import FAR
from benchmarks.sizes import Size
from benchmarks.testbed import Testbed
from devstack.terminal import say

FILL_BATCH, FILL_IN_FLIGHT = 1_000, 4
"""Jobs of a batch, and batches at a time, while waiting jobs are filled up."""

FILL_TRIES, FILL_PAUSE = 20, 1.0
"""Times that a batch is sent at most until all of its jobs are there, and seconds between them."""

GROUPS = 10
"""Collections that waiting jobs are in, and routes that they are on."""

FIRST_DUE_MS, DUE_WITHIN_MS = 2 * 86_400_000, 30 * 86_400_000
"""From when on waiting jobs are due, after the beginning, and within which time from then: none while we measure."""

LABEL, LABELED = "one-of-hundred", 100
"""A label, and how many jobs have it."""

BATCHES, BATCH_IN_FLIGHT = 3, 16
"""In how many batches creates are measured at each level, and so many of them at a time."""

READS, CHANGES, LISTS = 100, 50, 200
"""GETs, PUTs and lists of each kind that are measured at each level, one at a time."""

_SAY_EVERY = 50_000
_TEMPORALS_SIZE = "SELECT sum(pg_database_size(datname)) FROM pg_database WHERE datname LIKE 'temporal%'"

# Far from any fraction of that time, so that jobs created one after the other are due far from each other.
_STRIDE_MS = 1_601_944_099


def check_levels(levels: Sequence[int], batch: int) -> None:
    """See to it that each level is above what waits by then.

    Args:
        batch: Creates of a batch that is measured at each level.

    Raises:
        ValueError: One is not.
    """
    there = LABELED + CHANGES
    for level in levels:
        if level < there:
            raise ValueError(f"a level of {level:,} waiting jobs: {there:,} wait by then already")
        there = level + BATCHES * batch


async def waiting(testbed: Testbed, round_: int, size: Size) -> AsyncIterator[Measurement]:
    """Fill up with waiting jobs, and at each level measure creates, reads, changes, lists, counts, and what is held.

    On a cluster also a burst, and restarts.
    """
    empty = await testbed.tables()
    filler = await _prepared(testbed)
    changing = await _changing(testbed, round_)
    filler.waiting += len(changing)
    for level in size.waiting:
        fill_per_second = await filler.fill(level)
        await testbed.quiet()
        memory = await _held(testbed, empty)
        created = await _batches(testbed, level, round_, size.batch)
        filler.waiting += BATCHES * size.batch
        notes = {"waiting": float(level), "fill_per_second": fill_per_second}
        notes |= await _latencies(testbed.ours, changing)
        notes |= await _lists(testbed.ours, size.counts)
        yield msgspec.structs.replace(created, memory=memory, notes=notes)
        if testbed.cluster:
            yield await _burst(testbed, created, level, size.burst_among)
            async for one in restarts(testbed, round_, level):
                yield one


class Filler:
    """Fills up with waiting jobs, by batches, in several collections and on several routes."""

    def __init__(self, ours: Ours) -> None:
        """Begin with none."""
        self._ours, self._first_due = ours, due_in(FIRST_DUE_MS / 1000)
        self._made = 0
        self.waiting = 0
        """How many wait, those included that others have created."""

    async def fill(self, level: int) -> float:
        """Create jobs until so many wait, and return how many that were a second."""
        count, began = level - self.waiting, time.time()
        numbers = range(self._made, self._made + count)
        batches = (numbers[first : first + FILL_BATCH] for first in range(0, count, FILL_BATCH))
        await timed_all((partial(self._fill, batch) for batch in batches), FILL_IN_FLIGHT)
        self._made = numbers.stop
        return round(count / (time.time() - began), 2)

    async def _fill(self, numbers: range) -> None:
        group = group_of(numbers.start)
        await self.create([waiting_job(number, group, self._first_due) for number in numbers], group)
        if numbers.start // _SAY_EVERY < numbers.stop // _SAY_EVERY:
            say(f"  {self.waiting:,} jobs wait")

    async def create(self, batch: Sequence[JobBody], collection: str) -> None:
        """Create a batch; again where some of it was refused for load, or its answer was cut.

        Raises:
            RuntimeError: After some tries not all of its jobs are there.
        """
        for _ in range(FILL_TRIES):
            with suppress(OSError):
                if await self._ours.create_batch(batch, collection=collection) == len(batch):
                    self.waiting += len(batch)
                    return
            await asyncio.sleep(FILL_PAUSE)
        raise RuntimeError(f"a batch of {len(batch)} waiting jobs was not created in {FILL_TRIES} tries")


def group_of(number: int) -> str:
    """Return the collection and the route of the batch that begins with a job."""
    return f"waiting-{number // FILL_BATCH % GROUPS}"


def waiting_job(number: int, route: str, first_due: int) -> JobBody:
    """Return a job that is due at a time of its own, far from that of the next one."""
    due = first_due + number * _STRIDE_MS % DUE_WITHIN_MS
    return JobBody(id=f"waiting-{number}", trigger_time=due, route=route)


async def _prepared(testbed: Testbed) -> Filler:
    """Create the routes of waiting jobs, and those that have a label."""
    ours, filler = testbed.ours, Filler(testbed.ours)
    for group in sorted({group_of(number * FILL_BATCH) for number in range(GROUPS)}):
        await ours.add_route(testbed.sink.url, group)
    due = due_in(FAR)
    labeled = [JobBody(id=f"{LABEL}-{n}", trigger_time=due + n, labels=(LABEL,)) for n in range(LABELED)]
    await filler.create(labeled, COLLECTION)
    return filler


async def _changing(testbed: Testbed, round_: int) -> list[str]:
    """Create the jobs that are changed at each level, and change them: the worker then has them from the start."""
    run = await begun(testbed, testbed.ours, "waiting", round_)
    job_ids = [await run.create_in(FAR) for _ in range(CHANGES)]
    for job_id in job_ids:
        await _changed(testbed.ours, job_id)
    return job_ids


async def _batches(testbed: Testbed, level: int, round_: int, batch: int) -> Measurement:
    """Create some batches of jobs, and return the one with the median rate."""
    found = []
    for _ in range(BATCHES):
        run = await begun(testbed, testbed.ours, f"{WAITING}{level} jobs", round_)
        found.append(await scenarios.creates(run, in_flight=BATCH_IN_FLIGHT, count=batch))
    return sorted(found, key=_rate)[BATCHES // 2]


def _rate(one: Measurement) -> float:
    return one.per_second


async def _latencies(ours: Ours, job_ids: Sequence[str]) -> dict[str, float]:
    """Read and change jobs, one at a time, and return how long that took."""
    again = list(job_ids) * (READS // CHANGES)
    read = await timed_all([partial(_read, ours, job_id) for job_id in again], 1)
    changed = await timed_all([partial(_changed, ours, job_id) for job_id in job_ids], 1)
    return latency_notes("read", read, "p50", "p99") | latency_notes("change", changed, "p50", "p99")


def latency_notes(name: str, took_ms: Sequence[float], *parts: str) -> dict[str, float]:
    """Return some parts of a spread as notes of a measurement."""
    found = spread(took_ms)
    return {f"{name}_{part}_ms": getattr(found, part) for part in parts} if found else {}


async def _read(ours: Ours, job_id: str) -> None:
    _check(await ours.read(job_id))


async def _changed(ours: Ours, job_id: str) -> None:
    _check(await ours.change(job_id, due_in(FAR)))


def _check(status: int, *allowed: int) -> None:
    if status not in (HTTPStatus.OK, *allowed):
        raise RuntimeError(f"answered {status} among waiting jobs")


async def _lists(ours: Ours, counts: int) -> dict[str, float]:
    """Ask for first pages and counts, one at a time, and return how long that took, and how many could not be had."""
    statuses = Counter[int]()

    async def ask(asked: Callable[[], Awaitable[int]]) -> None:
        status = await asked()
        _check(status, HTTPStatus.SERVICE_UNAVAILABLE)
        statuses[status] += 1

    pages = await timed_all(repeat(partial(ask, ours.first_page), LISTS), 1)
    labeled = await timed_all(repeat(partial(ask, partial(ours.first_page, LABEL)), LISTS), 1)
    counted: list[float] = []
    for _ in range(counts):
        counted += await timed_all([partial(ask, ours.count)], 1)
        await asyncio.sleep(COUNTS_KEPT)  # until then it is answered as before
    took = {"list": pages, "label": labeled, "count": counted}
    parts = [latency_notes(name, of_one, "p50", "p95") for name, of_one in took.items()]
    return {name: ms for part in parts for name, ms in part.items()} | {
        "lists_unavailable": float(statuses[HTTPStatus.SERVICE_UNAVAILABLE])
    }


async def _burst(testbed: Testbed, created: Measurement, level: int, count: int) -> Measurement:
    """Let jobs come due at one instant among those that wait, with time enough to create them at half of that rate."""
    run = await begun(testbed, testbed.ours, f"{AMONG}{level} waiting jobs, a burst of {count:,}", created.round)
    measured = await scenarios.burst(run, count=count, creates_per_second=created.per_second / 2)
    return msgspec.structs.replace(measured, notes=measured.notes | {"waiting": float(level)})


async def _held(testbed: Testbed, empty: Sequence[TableSize]) -> Memory:
    """Return what is held in memory and on disk now."""
    stack = testbed.stack
    if testbed.cluster:
        temporal = int(await testbed.sql(_TEMPORALS_SIZE))
    else:
        temporal = await asyncio.to_thread(
            lambda: sum(file.stat().st_size for file in stack.folder.glob("temporal.db*"))
        )
    postgres = int(await testbed.sql("SELECT pg_database_size(current_database())"))
    each = {name: [part.pid] for name, part in stack.parts.items()}
    together = {name: testbed.pids(part) for name, part in testbed.ours.parts.items()}
    return Memory(
        resident=Meter(each | together).resident(),
        disk={"temporal": temporal, "postgres": postgres},
        tables=grown(await testbed.tables(), empty),
    )

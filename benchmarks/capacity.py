"""What only our own is measured at: very many waiting jobs, and far more work than can be done."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from http import HTTPStatus
from itertools import repeat

import msgspec

from benchmarks.load import at_rate, due_in, timed_all
from benchmarks.results import Measurement, Memory, spread
from benchmarks.run import SETTLE, ScenarioRun, begun
from benchmarks.scenarios import FAR, creates
from benchmarks.testbed import Testbed

FILLERS = 64
"""Creates in flight while waiting jobs are filled up."""

BATCHES, BATCH_IN_FLIGHT = 3, 16
"""In how many batches creates are measured at each level, and so many of them at a time."""

READS, CHANGES = 100, 50
"""GETs and PUTs that are measured at each level, one at a time."""

_TEMPORALS_SIZE = "SELECT sum(pg_database_size(datname)) FROM pg_database WHERE datname LIKE 'temporal%'"

_SAMPLE_EVERY = 2.0
_UNANSWERED = 0
_ANSWERS = {
    HTTPStatus.OK.value: "accepted",
    HTTPStatus.TOO_MANY_REQUESTS.value: "refused",
    HTTPStatus.SERVICE_UNAVAILABLE.value: "unavailable",
    _UNANSWERED: "unanswered",
}


async def waiting(testbed: Testbed, round_: int, *, levels: Iterable[int], batch: int) -> AsyncIterator[Measurement]:
    """Fill up with waiting jobs, and at each level measure creates, reads, changes and what is held.

    Args:
        batch: Creates in each of the batches of which the median counts.
    """
    changing = await _changing(testbed, round_)
    there = CHANGES
    for level in levels:
        run = await begun(testbed, testbed.ours, f"waiting, {level} jobs", round_)
        await timed_all(repeat(partial(run.create_in, FAR), level - there), FILLERS)
        filled = run.result(level - there, until=time.time())
        await testbed.quiet()
        memory = await _held(run)
        created = await _batches(testbed, level, round_, batch)
        notes = {"waiting": float(level), "fill_per_second": filled.per_second} | await _latencies(testbed, changing)
        yield msgspec.structs.replace(created, memory=memory, notes=notes)
        there = level + BATCHES * batch


async def _changing(testbed: Testbed, round_: int) -> list[str]:
    """Create the jobs that are changed at each level, and change them: the worker then has them from the start."""
    run = await begun(testbed, testbed.ours, "waiting", round_)
    job_ids = [await run.create_in(FAR) for _ in range(CHANGES)]
    for job_id in job_ids:
        await _changed(testbed, job_id)
    return job_ids


async def _batches(testbed: Testbed, level: int, round_: int, batch: int) -> Measurement:
    """Create some batches of jobs, and return the one with the median rate."""
    found = []
    for _ in range(BATCHES):
        run = await begun(testbed, testbed.ours, f"waiting, {level} jobs", round_)
        found.append(await creates(run, in_flight=BATCH_IN_FLIGHT, count=batch))
    return sorted(found, key=_rate)[BATCHES // 2]


def _rate(one: Measurement) -> float:
    return one.per_second


async def _latencies(testbed: Testbed, job_ids: Sequence[str]) -> dict[str, float]:
    """Read and change jobs, one at a time, and return how long that took."""
    again = list(job_ids) * (READS // CHANGES)
    took = {
        "read": spread(await timed_all([partial(_read, testbed, job_id) for job_id in again], 1)),
        "change": spread(await timed_all([partial(_changed, testbed, job_id) for job_id in job_ids], 1)),
    }
    return {
        f"{name}_{part}_ms": ms
        for name, found in took.items()
        if found
        for part, ms in (("p50", found.p50), ("p99", found.p99))
    }


async def _read(testbed: Testbed, job_id: str) -> None:
    _check(await testbed.ours.read(job_id))


async def _changed(testbed: Testbed, job_id: str) -> None:
    _check(await testbed.ours.change(job_id, due_in(FAR)))


def _check(status: int) -> None:
    if status != HTTPStatus.OK:
        raise RuntimeError(f"answered {status} among waiting jobs")


async def _held(run: ScenarioRun) -> Memory:
    """Return what is held in memory and on disk now."""
    stack = run.testbed.stack
    if "temporal" in stack.parts:
        temporal = await asyncio.to_thread(
            lambda: sum(file.stat().st_size for file in stack.folder.glob("temporal.db*"))
        )
    else:
        temporal = int(await run.testbed.sql(_TEMPORALS_SIZE))
    postgres = await run.testbed.sql("SELECT pg_database_size(current_database())")
    return Memory(resident=run.resident(), disk={"temporal": temporal, "postgres": int(postgres)})


class Asked:
    """Creates due at once that nobody waits for, and what became of each."""

    def __init__(self, run: ScenarioRun) -> None:
        """Begin with none."""
        self._run = run
        self.took: defaultdict[int, list[float]] = defaultdict(list)
        """Milliseconds to the answer, by its status."""
        self.accepted: set[str] = set()

    async def create(self) -> None:
        """Create a job, and note the answer, or that there was none."""
        job_id, began, status = self._run.new_id(), time.perf_counter(), _UNANSWERED
        with suppress(OSError, asyncio.IncompleteReadError):
            status = await self._run.implementation.create(job_id, due_in(0))
        self.took[status].append((time.perf_counter() - began) * 1000)
        if status == HTTPStatus.OK:
            self.accepted.add(job_id)

    async def lost(self) -> int:
        """Wait until all that was accepted is taken, or none comes any more, and return how many are missing."""
        taken, asked = self._run.sink.taken, time.time()
        while missing := self.accepted - taken.keys():
            if time.time() - max([asked, *taken.values()]) > SETTLE:
                return len(missing)
            await asyncio.sleep(0.5)
        return 0

    def notes(self) -> dict[str, float]:
        """Return how many answers there were of each kind, and how long those that say no took."""
        counts = {name: len(self.took.get(status, ())) for status, name in _ANSWERS.items()}
        others = sum(len(took) for status, took in self.took.items() if status not in _ANSWERS)
        refused, away = (
            spread(self.took[HTTPStatus.TOO_MANY_REQUESTS]),
            spread(self.took[HTTPStatus.SERVICE_UNAVAILABLE]),
        )
        times = {"refused_p99_ms": refused.p99 if refused else 0.0, "unavailable_p99_ms": away.p99 if away else 0.0}
        return {**counts, "otherwise": others, **times}


async def overload(testbed: Testbed, round_: int, *, rate: float, seconds: float) -> Measurement:
    """Ask for far more than can be done, without waiting for answers, and see what becomes of what was accepted."""
    run = await begun(testbed, testbed.ours, "overload", round_)
    asked, before = Asked(run), run.resident()
    async with _peak_memory(run.resident) as peak:
        await at_rate(rate, int(rate * seconds), asked.create)
        ended = time.time()
        lost = await asked.lost()
    if not lost:
        await run.all_closed()
    after, last = run.resident(), max(run.sink.taken.values())
    measured = run.result(len(run.sink.taken), until=last)
    notes = asked.notes() | {"asked": rate * seconds, "lost": lost, "drain_seconds": round(last - ended, 1)}
    for name in ("worker", "api", "temporal"):
        notes |= {f"{name}_before": before[name], f"{name}_peak": peak[name], f"{name}_after": after[name]}
    return msgspec.structs.replace(measured, answers=spread(asked.took[HTTPStatus.OK]), notes=notes)


@asynccontextmanager
async def _peak_memory(resident: Callable[[], dict[str, int]]) -> AsyncIterator[dict[str, int]]:
    """Look at the memory of each process now and then; what is yielded holds the most of each."""
    peak = resident()

    async def watch() -> None:
        while True:
            await asyncio.sleep(_SAMPLE_EVERY)
            for name, held in (await asyncio.to_thread(resident)).items():
                peak[name] = max(peak[name], held)

    watching = asyncio.create_task(watch())
    try:
        yield peak
    finally:
        watching.cancel()

"""What only our own is measured at: far more work than can be done."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus

import msgspec

from benchmarks.load import at_rate, due_in
from benchmarks.results import Measurement, spread
from benchmarks.run import SETTLE, ScenarioRun, begun
from benchmarks.testbed import Testbed

_SAMPLE_EVERY = 2.0
_UNANSWERED = 0
_ANSWERS = {
    HTTPStatus.OK.value: "accepted",
    HTTPStatus.TOO_MANY_REQUESTS.value: "refused",
    HTTPStatus.SERVICE_UNAVAILABLE.value: "unavailable",
    _UNANSWERED: "unanswered",
}


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

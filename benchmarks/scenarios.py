"""What the implementations are measured at side by side. Each scenario takes an implementation's run to its end."""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice, permutations, repeat

import msgspec

from benchmarks.implementations import JobBody, Ours
from benchmarks.load import at_rate, due_in, timed_all
from benchmarks.results import Measurement, spread, together
from benchmarks.run import SETTLE, ScenarioRun

FAR = 86_400.0
"""Seconds to the trigger time of jobs that are to wait."""

AHEAD = 1.5
"""Seconds to the trigger time of jobs that are created at an even rate."""

ANSWER_AFTER = 1.5
"""Seconds that the slow receiver takes to answer."""

SLOW_RATE = 15.0
"""Jobs a second that the slow receiver gets."""

CLIENTS = 64
"""Clients of the sustained scenario, each with one job at a time."""

# The jobs of a burst are created so many at a time, and come due a moment after.
_BURST_IN_FLIGHT, _BURST_AHEAD = 32, 3.0


async def creates(run: ScenarioRun, *, in_flight: int, count: int) -> Measurement:
    """Create jobs of the far future, so many at a time."""
    answers = await timed_all(repeat(partial(run.create_in, FAR), count), in_flight)
    return msgspec.structs.replace(run.result(count, until=time.time()), answers=spread(answers))


async def creates_by_turns(
    ways: Sequence[Callable[[], ScenarioRun]], *, pieces: int, in_flight: int, count: int
) -> list[Measurement]:
    """Create jobs of the far future, each way a piece of them by turns, so that what varies over seconds meets all.

    Args:
        ways: Each begins a run of its own for each piece.
        pieces: A multiple of the orders that there are of the ways, so that each follows each as often.
        count: Jobs of each way.
    """
    measured: list[list[Measurement]] = [[] for _ in ways]
    answers: list[list[float]] = [[] for _ in ways]
    for order in islice(cycle(permutations(range(len(ways)))), pieces):
        for n in order:
            run = ways[n]()
            answers[n] += await timed_all(repeat(partial(run.create_in, FAR), count // pieces), in_flight)
            measured[n].append(run.result(count // pieces, until=time.time()))
    return [
        msgspec.structs.replace(together(of_way), answers=spread(took))
        for of_way, took in zip(measured, answers, strict=True)
    ]


async def batch(run: ScenarioRun, ours: Ours, *, count: int) -> Measurement:
    """Create jobs of the far future in one batch.

    Raises:
        RuntimeError: Not all of them were created.
    """
    due = due_in(FAR)
    created = await ours.create_batch(JobBody(id=run.new_id(), trigger_time=due) for _ in range(count))
    if created != count:
        raise RuntimeError(f"{created} of {count} jobs of a batch were created")
    return run.result(count, until=time.time())


async def burst(run: ScenarioRun, *, count: int, creates_per_second: float = 80.0) -> Measurement:
    """Let jobs come due at one instant: rates count from there, CPU from before the creates until all are closed.

    Args:
        creates_per_second: How fast the jobs are created at least.

    Raises:
        RuntimeError: They were not created so fast.
    """
    due = due_in(_BURST_AHEAD + count / creates_per_second)
    await timed_all(repeat(partial(run.create, due), count), _BURST_IN_FLIGHT)
    if due_in(0) >= due:
        raise RuntimeError("the jobs of the burst were not created in time")
    await asyncio.sleep(due / 1000 - time.time())
    before = run.cpu_per_job(count)
    if run.implementation.calls:
        await run.all_taken(count)
        measured = await run.delivered(since=due / 1000)
    else:
        measured = await run.closed(count, since=due / 1000)
    waited = {f"{name}_until_due": before[name] for name in ("worker", "temporal")}
    return msgspec.structs.replace(measured, notes=measured.notes | waited)


async def steady(run: ScenarioRun, *, rate: float, seconds: float) -> Measurement:
    """Create jobs at an even rate a second, each due a moment later."""
    count = int(rate * seconds)
    await at_rate(rate, count, partial(run.create_in, AHEAD))
    await run.all_taken(count)
    measured = await run.delivered()
    return msgspec.structs.replace(measured, notes=measured.notes | {"rate": rate})


async def sustained(run: ScenarioRun, *, seconds: float, clients: int = CLIENTS) -> Measurement:
    """Create jobs that are due at once, each client waiting for its job's delivery before the next."""
    end = time.time() + seconds
    async with asyncio.timeout(seconds + SETTLE), asyncio.TaskGroup() as at_once:
        for _ in range(clients):
            at_once.create_task(_client(run, end))
    return await run.delivered()


async def _client(run: ScenarioRun, end: float) -> None:
    while time.time() < end:
        await run.sink.wait_for(await run.create_in(0))


async def failing(run: ScenarioRun, *, seconds: float) -> Measurement:
    """As sustained, with a receiver that refuses each job once; both try again after a second."""
    run.sink.refusals = 1
    try:
        return await sustained(run, seconds=seconds)
    finally:
        run.sink.refusals = 0


async def slow(run: ScenarioRun, *, seconds: float) -> Measurement:
    """As steady, with a receiver that takes its time to answer."""
    run.sink.answer_after = ANSWER_AFTER
    try:
        return await steady(run, rate=SLOW_RATE, seconds=seconds)
    finally:
        run.sink.answer_after = 0.0

"""What a job costs Temporal and its database by numbers of nodes: each beside one of each, at once on one machine."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack

import msgspec

from benchmarks import scenarios
from benchmarks.results import NODE_COUNTS, Measurement, Run, nodes_scenario, one_of_each_scenario
from benchmarks.run import ScenarioRun
from benchmarks.sizes import Size
from benchmarks.stack import Nodes
from benchmarks.testbed import Testbed, testbed

CREATES_PER_SECOND = 40.0
"""How fast each of two bursts is created at least, by one machine for both."""


async def by_nodes(n: int, size: Size, run: Run) -> AsyncIterator[Measurement]:
    """Have the same burst done by more nodes and by one of each, in turns of which each counts as a round.

    A machine's rate, and the CPU that the same work takes on it, vary from one burst to the next by more than nodes can
    cost. At once, both meet the same. What a cluster uses without a job changes in its first minutes: for each burst it is
    the mean of before and after.

    Args:
        n: The round, from 0. Each has new clusters, of which another one is the first to be started and asked.
        run: Is told of the versions of the servers.
    """
    for histories, workers in NODE_COUNTS:
        names = {
            one_of_each_scenario(histories, workers): Nodes(histories=1, workers=1),
            nodes_scenario(histories, workers): Nodes(histories=histories, workers=workers),
        }
        async with AsyncExitStack() as opened:
            both = {
                name: await opened.enter_async_context(testbed(nodes))
                for name, nodes in list(names.items())[:: 1 if n % 2 == 0 else -1]
            }
            for place in both.values():
                run.versions.update(await place.versions())
            await _bursts(both, n, size.nodes_burst // 6)
            before = await _idle(both, size.idle_seconds)
            for turn in range(n * size.nodes_turns, (n + 1) * size.nodes_turns):
                bursts = await _bursts(both, turn, size.nodes_burst)
                after = await _idle(both, size.idle_seconds)
                for name, measured in bursts.items():
                    yield beyond_idle(measured, idle_ms=(before[name] + after[name]) / 2)
                before = after


async def _bursts(places: Mapping[str, Testbed], turn: int, count: int) -> dict[str, Measurement]:
    """Have a burst done in each place at once, and return what each took until the last one had ended.

    So all had the same seconds to use some CPU without a job.
    """
    runs = await _begun(places, turn)
    async with asyncio.TaskGroup() as at_once:
        bursts = [
            at_once.create_task(scenarios.burst(run, count=count, creates_per_second=CREATES_PER_SECOND))
            for run in runs.values()
        ]
    return {
        name: run.with_cpu_until_now(burst.result()) for (name, run), burst in zip(runs.items(), bursts, strict=True)
    }


async def _idle(places: Mapping[str, Testbed], seconds: float) -> dict[str, float]:
    """Return the CPU milliseconds that Temporal and the database of each use in a second without a job."""
    runs = await _begun(places, 0)
    await asyncio.sleep(seconds)
    return {name: sum(run.cpu_per_second()[part] for part in ("temporal", "postgres")) for name, run in runs.items()}


async def _begun(places: Mapping[str, Testbed], turn: int) -> dict[str, ScenarioRun]:
    """Wait until all places are quiet, and begin a run in each."""
    async with asyncio.TaskGroup() as at_once:
        for place in places.values():
            at_once.create_task(place.quiet())
    return {name: ScenarioRun(place, place.ours, name, turn) for name, place in places.items()}


def beyond_idle(measured: Measurement, idle_ms: float) -> Measurement:
    """Note what Temporal and the database would have used meanwhile without a job.

    Args:
        idle_ms: CPU milliseconds that they use in a second then.
    """
    per_job = idle_ms * measured.cpu_seconds / measured.jobs
    notes = {"idle_ms_per_second": idle_ms, "idle_ms_per_job": per_job}
    return msgspec.structs.replace(measured, notes=measured.notes | notes)

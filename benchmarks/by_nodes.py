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

RATE = 10.0
"""Jobs a second that each of two clusters gets, which leaves a machine of two processors some room.

In bursts, one cluster would be done before the other, which would then have the machine to itself.
"""


async def by_nodes(n: int, size: Size, run: Run) -> AsyncIterator[Measurement]:
    """Give more nodes and one of each the same jobs at an even rate, in turns of which each counts as a round.

    The CPU that the same work takes on a machine varies from one minute to the next by more than nodes can cost. At
    once, both meet the same. What a cluster uses without a job is the mean of before and after each turn.

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
            await _turn(both, n, size.nodes_seconds / 4)
            before = await _idle(both, size.idle_seconds)
            for turn in range(n * size.nodes_turns, (n + 1) * size.nodes_turns):
                done = await _turn(both, turn, size.nodes_seconds)
                after = await _idle(both, size.idle_seconds)
                for name, measured in done.items():
                    yield beyond_idle(measured, idle_ms=(before[name] + after[name]) / 2)
                before = after


async def _turn(places: Mapping[str, Testbed], turn: int, seconds: float) -> dict[str, Measurement]:
    """Have jobs done in each place at once, and return what they took there until the last one of all had ended.

    So all had the same seconds to use some CPU without a job.
    """
    runs = await _begun(places, turn)
    async with asyncio.TaskGroup() as at_once:
        done = [at_once.create_task(scenarios.steady(run, rate=RATE, seconds=seconds)) for run in runs.values()]
    return {name: run.with_cpu_until_now(one.result()) for (name, run), one in zip(runs.items(), done, strict=True)}


async def _idle(places: Mapping[str, Testbed], seconds: float) -> dict[str, float]:
    """Return the CPU milliseconds that Temporal and the database of each use in a second without a job.

    Some timers of the last jobs fire meanwhile: those of their workflow tasks come 10 s after these.
    """
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

"""What a job costs Temporal and its database by numbers of nodes: each beside one of each, at once on one machine."""

import asyncio
from collections.abc import AsyncIterator

from benchmarks import scenarios
from benchmarks.results import NODE_COUNTS, Measurement, Run, nodes_scenario, one_of_each_scenario
from benchmarks.run import ScenarioRun, begun
from benchmarks.sizes import Size
from benchmarks.stack import Nodes
from benchmarks.testbed import Testbed, testbed

CREATES_PER_SECOND = 40.0
"""How fast each of two bursts is created at least, by one machine for both."""


async def by_nodes(n: int, size: Size, run: Run) -> AsyncIterator[Measurement]:
    """Have the same burst done by more nodes and by one of each, in turns of which each counts as a round.

    A machine's rate, and the CPU that the same work takes on it, vary from one burst to the next by more than nodes can
    cost. At once, both meet the same.

    Args:
        n: The round, from 0. Each has new clusters, which have done a little before.
        run: Is told of the versions of the servers.
    """
    for histories, workers in NODE_COUNTS:
        more = Nodes(histories=histories, workers=workers)
        async with testbed(Nodes(histories=1, workers=1)) as one_of_each, testbed(more) as more_of_some:
            run.versions.update(await one_of_each.versions())
            both = {
                one_of_each_scenario(histories, workers): one_of_each,
                nodes_scenario(histories, workers): more_of_some,
            }
            await asyncio.gather(*(_warmed(place, name, n, size.nodes_burst // 6) for name, place in both.items()))
            resting = [await begun(place, place.ours, name, n) for name, place in both.items()]
            idle_ms = await asyncio.gather(*(scenarios.idle(one, seconds=size.idle_seconds) for one in resting))
            for turn in range(n * size.nodes_turns, (n + 1) * size.nodes_turns):
                await asyncio.gather(*(place.quiet() for place in both.values()))
                bursts = [
                    scenarios.burst_beyond_idle(
                        ScenarioRun(place, place.ours, name, turn),
                        count=size.nodes_burst,
                        creates_per_second=CREATES_PER_SECOND,
                        idle_ms=of_it,
                    )
                    for (name, place), of_it in zip(both.items(), idle_ms, strict=True)
                ]
                for measured in await asyncio.gather(*bursts):
                    yield measured


async def _warmed(place: Testbed, name: str, n: int, count: int) -> None:
    warming = await begun(place, place.ours, name, n)
    await scenarios.burst(warming, count=count, creates_per_second=CREATES_PER_SECOND)

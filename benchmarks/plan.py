"""In what order all is measured: in rounds, by turns, so that the first in one round is the last in the next."""

from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from statistics import median

from benchmarks import capacity, scenarios
from benchmarks.by_nodes import by_nodes
from benchmarks.implementations import Implementation
from benchmarks.keyed import keyed
from benchmarks.observed import observed
from benchmarks.results import BATCH, BURST, HALF, OURS, SINGLE, Measurement, Run
from benchmarks.run import ScenarioRun, begun
from benchmarks.scenarios import SLOW_RATE
from benchmarks.sizes import Size
from benchmarks.stack import Nodes
from benchmarks.testbed import Testbed, testbed
from benchmarks.waiting import waiting
from devstack.terminal import say

_PIECES = {1: 12, 16: 24, 64: 6}
"""Parts in which creates are made by turns, by how many are in flight: a part must be longer than its beginning.

With 16 in flight, for which there is a target, they are of twice as many jobs: else rounds differ by a twentieth.
"""

OVERLOAD = 4.0
"""How many times as much as we sustain is asked for in the overload."""


class Round:
    """One round of the scenarios that implementations have in common, in an testbed that all share."""

    def __init__(self, place: Testbed, n: int, size: Size) -> None:
        """Take the testbed, the number of the round from 0, and how much is done."""
        self._place, self._n, self._size = place, n, size
        self._rate: float | None = None
        order = 1 if n % 2 == 0 else -1
        self._both: Sequence[Implementation] = (place.straightforward, place.ours)[::order]
        # Ours comes next to those that it is compared with: a machine may be slower for some minutes.
        empty, others = place.peers[:1], place.peers[1:]
        self._with_peers: Sequence[Implementation] = (*others, place.straightforward, place.ours, *empty)

    async def creates(self) -> AsyncIterator[Measurement]:
        """Creates alone, with few and many in flight, and of ours in a batch."""
        place, n = self._place, self._n
        for in_flight, pieces in _PIECES.items():
            scenario = f"creates, {in_flight} in flight"
            count = self._size.creates if in_flight > 1 else self._size.creates // 4
            run = await begun(place, place.straightforward, scenario, n)
            yield await scenarios.creates(run, in_flight=in_flight, count=count)
            await place.quiet()
            # These leave the same work to Temporal, so that one may follow the other at once.
            begins = [partial(ScenarioRun, place, one, scenario, n) for one in (place.raw, place.same_raw, place.ours)]
            count = count * 2 if scenario == SINGLE else count
            for measured in await scenarios.creates_by_turns(begins, pieces=pieces, in_flight=in_flight, count=count):
                yield measured
        ours = self._place.ours
        run = await begun(self._place, ours, BATCH, self._n)
        yield await scenarios.batch(run, ours, count=self._size.creates // 2)

    async def burst(self) -> AsyncIterator[Measurement]:
        """Many jobs due at one instant; the smaller ones several times, of which each counts as a round."""
        for count in self._size.bursts:
            turns = max(self._size.bursts) // count
            for turn in range(self._n * turns, (self._n + 1) * turns):
                for implementation in self._with_peers[:: 1 if turn % 2 == 0 else -1]:
                    run = await begun(self._place, implementation, f"{BURST} {count:,}", turn)
                    yield await scenarios.burst(run, count=count)

    async def sustained(self) -> AsyncIterator[Measurement]:
        """As many jobs as can be delivered."""
        for implementation in self._both:
            run = await begun(self._place, implementation, "sustained", self._n)
            measured = await scenarios.sustained(run, seconds=self._size.sustained_seconds)
            if implementation is self._place.straightforward:
                self._rate = measured.per_second
            yield measured

    async def steady(self) -> AsyncIterator[Measurement]:
        """Even rates that both can keep up with."""
        rates = {f"steady, {rate:g} jobs/s": rate for rate in self._size.rates}
        if self._rate is not None:
            rates[HALF] = round(self._rate / 2, 1)
        for scenario, rate in rates.items():
            for implementation in self._both:
                run = await begun(self._place, implementation, scenario, self._n)
                yield await scenarios.steady(run, rate=rate, seconds=self._size.steady_seconds)

    async def failing(self) -> AsyncIterator[Measurement]:
        """A receiver that refuses each job once."""
        for implementation in self._both:
            run = await begun(self._place, implementation, "failing receiver", self._n)
            yield await scenarios.failing(run, seconds=self._size.sustained_seconds)

    async def slow(self) -> AsyncIterator[Measurement]:
        """A receiver that is slow to answer."""
        for implementation in self._both:
            run = await begun(self._place, implementation, f"slow receiver, {SLOW_RATE:g} jobs/s", self._n)
            yield await scenarios.slow(run, seconds=self._size.steady_seconds)

    async def keyed(self) -> AsyncIterator[Measurement]:
        """Creates alone, of ours, with keys and without."""
        turns, count = self._size.keyed_turns, self._size.keyed_creates
        async for one in keyed(self._place, self._n, turns, count):
            yield one

    async def observed(self) -> AsyncIterator[Measurement]:
        """As many jobs as can be delivered, by ours alone, with metrics, with traces, and without."""
        turns, seconds = self._size.observed_turns, self._size.observed_seconds
        async for one in observed(self._place, self._n, turns, seconds):
            yield one


CONTESTED: dict[str, Callable[[Round], AsyncIterator[Measurement]]] = {
    "creates": Round.creates,
    "burst": Round.burst,
    "sustained": Round.sustained,
    "steady": Round.steady,
    "failing": Round.failing,
    "slow": Round.slow,
    "keys": Round.keyed,
    "observed": Round.observed,
}
"""What is measured in each round, in this order."""

BY_NODES = "nodes"
"""What is measured of ours alone in each round, and on a cluster only."""

ALONE = ("waiting", "overload")
"""What is measured of ours alone, once."""

NEEDS = {"steady": "sustained", "overload": "sustained"}
"""Scenarios whose rate is that which was sustained."""

Keep = Callable[[Measurement], None]
"""Takes what was measured, at once, so that nothing is lost when something fails later."""


async def measure(size: Size, wanted: set[str], run: Run, keep: Keep) -> None:
    """Measure what is wanted, and add the versions of the servers to the run."""
    wanted = wanted | {NEEDS[name] for name in wanted & NEEDS.keys()}
    cluster = Nodes() if run.on_cluster else None
    for n in range(run.rounds):
        if wanted & CONTESTED.keys():
            async with testbed(cluster) as place:
                run.versions.update(await place.versions())
                this = Round(place, n, size)
                for name in CONTESTED:
                    if name in wanted:
                        await _collect(CONTESTED[name](this), keep)
        if BY_NODES in wanted:
            await _collect(by_nodes(n, size, run), keep)
    for name in ALONE:
        if name in wanted:
            async with testbed(cluster) as place:
                run.versions.update(await place.versions())
                await _collect(_alone(name, place, size, run.measurements), keep)


async def _alone(name: str, place: Testbed, size: Size, found: Sequence[Measurement]) -> AsyncIterator[Measurement]:
    if name == "waiting":
        async for one in waiting(place, 0, size):
            yield one
    else:
        rate = OVERLOAD * sustained_rate(found, OURS)
        yield await capacity.overload(place, 0, rate=round(rate), seconds=size.overload_seconds)


def sustained_rate(found: Sequence[Measurement], implementation: str) -> float:
    """Return how many jobs a second an implementation sustained, as the median of its rounds."""
    return median(
        one.per_second for one in found if (one.scenario, one.implementation) == ("sustained", implementation)
    )


async def _collect(measured: AsyncIterator[Measurement], keep: Keep) -> None:
    async for one in measured:
        say(told(one))
        keep(one)


def told(one: Measurement) -> str:
    """Return a measurement as a line for the terminal."""
    parts = [f"{one.round + 1} {one.scenario:26} {one.implementation:20} {one.per_second:7.1f}/s"]
    if late := one.lateness:
        parts.append(f"late min {late.min:.0f} p50 {late.p50:.0f} p99 {late.p99:.0f} ms")
    parts.append("CPU ms/job: " + " ".join(f"{name} {ms:.1f}" for name, ms in one.cpu_ms_per_job.items()))
    if one.events:
        parts.append(f"{one.events:.0f} events")
    return "; ".join(parts)

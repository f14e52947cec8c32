"""What this project is to reach against the others, and whether it does."""

from collections.abc import Callable, Iterable
from functools import partial
from statistics import median

import msgspec

from benchmarks.results import (
    BATCH,
    BURST,
    EMPTY,
    HALF,
    KEYED,
    METRICS,
    NODE_COUNTS,
    OBSERVED,
    OURS,
    RAW,
    SAME_RAW,
    SINGLE,
    STRAIGHTFORWARD,
    TRACES,
    UNKEYED,
    UNOBSERVED,
    WAITING,
    Measurement,
    Run,
    nodes_scenario,
    one_of_each_scenario,
)
from timemachine.settings import Settings

LISTED = 100_000
"""Waiting jobs up to which lists and counts are to be answered in the times of their targets."""

Figure = Callable[[Measurement], float | None]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A figure of ours, mostly a ratio to another's in the same round, and what it is to be."""

    what: str
    values: tuple[float, ...]
    """Of each round; none where it was not measured."""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def middle(self) -> float | None:
        """The median over the rounds."""
        return median(self.values) if self.values else None

    @property
    def reached(self) -> bool | None:
        """Whether the median is as it is to be; None where it was not measured."""
        if self.middle is None:
            return None
        above = self.at_least is None or self.middle >= self.at_least
        return above and (self.at_most is None or self.middle <= self.at_most)


def targets(run: Run) -> list[Target]:
    """Return all targets with what a run has reached."""
    if run.on_cluster:
        return [*_cluster(run), *_lateness(run), _keyed(run), *_observed(run), *_lists(run)]
    return [*_rates(run), *_costs(run), *_lateness(run), _keyed(run), *_observed(run), *_lists(run), *_limits(run)]


def _cluster(run: Run) -> list[Target]:
    """Return what is to be reached on Temporal's own server and Postgres, where its part of a job is larger."""
    bursts = _bursts(run)
    return [
        *(
            Target(
                what=f"{burst}, jobs closed a second / empty workflow",
                values=_ratios(run, burst, EMPTY, _closed),
                at_least=0.75,
            )
            for burst in bursts
        ),
        *(
            Target(
                what=f"{burst}, CPU of API and worker per job, ms",
                values=tuple(_cpu("api", one) + _cpu("worker", one) for one in run.of(burst, OURS)),
                at_most=8,
            )
            for burst in bursts
        ),
        *(
            Target(
                what=f"{burst}, arrivals a second / straightforward",
                values=_ratios(run, burst, STRAIGHTFORWARD, _per_second),
                at_least=1.0 if burst == bursts[0] else 1.6,
            )
            for burst in bursts
        ),
        Target(
            what="creates a second, 16 in flight / raw with the same arguments",
            values=_ratios(run, SINGLE, SAME_RAW, _per_second),
            at_least=0.9,
        ),
        Target(
            what="creates a second, in a batch / 16 in flight",
            values=_between(run.of(SINGLE, OURS), run.of(BATCH, OURS), _per_second),
            at_least=1.3,
        ),
        *_nodes(run),
    ]


def _nodes(run: Run) -> list[Target]:
    """Return that no number of nodes makes a job cost more. What processes use without a job is no job's cost."""
    pairs = [(one_of_each_scenario(*counts), nodes_scenario(*counts)) for counts in NODE_COUNTS]
    return [
        Target(
            what=f"{nodes}, CPU of Temporal and database per job beyond idle / one of each",
            values=_between(run.of(one_of_each, OURS), run.of(nodes, OURS), server_cpu_beyond_idle),
            at_most=1.1,
        )
        for one_of_each, nodes in pairs
    ]


def _keyed(run: Run) -> Target:
    """Return that it costs next to nothing to look for keys."""
    return Target(
        what="creates a second, with keys / without",
        values=_between(run.of(UNKEYED, OURS), run.of(KEYED, OURS), _per_second),
        at_least=0.97,
    )


def _observed(run: Run) -> list[Target]:
    """Return that it costs next to nothing to look inside."""
    alone = run.of(f"{OBSERVED}{UNOBSERVED}", OURS)
    return [
        Target(
            what=f"observed {way}, {what} / {UNOBSERVED}",
            values=_between(alone, run.of(f"{OBSERVED}{way}", OURS), figure),
            at_least=least,
        )
        for way, least in ((METRICS, 0.98), (TRACES, 0.95))
        for what, figure in (("jobs a second", _per_second), ("jobs for a second of CPU", _per_cpu_second))
    ]


def _lists(run: Run) -> list[Target]:
    """Return how soon lists and counts are to be answered while many jobs wait."""
    levels = [scenario for scenario in run.starting(WAITING) if _level(scenario) <= LISTED]
    most = max(levels, key=_level, default="")
    where = f"{_level(most):,} waiting" if most else "many waiting"
    return [
        Target(
            what=f"{what}, p95, {where}, ms",
            values=tuple(one.notes[note] for one in run.of(most, OURS) if note in one.notes),
            at_most=limit,
        )
        for what, note, limit in (
            ("first page of a list", "list_p95_ms", 150),
            ("first page of a label", "label_p95_ms", 150),
            ("count of a db", "count_p95_ms", 300),
        )
    ]


def _rates(run: Run) -> list[Target]:
    def versus(scenario: str, other: str) -> tuple[float, ...]:
        return _ratios(run, scenario, other, _per_second)

    return [
        *(
            Target(
                what=f"creates a second, {in_flight} in flight / raw",
                values=versus(f"creates, {in_flight} in flight", RAW),
                at_least=0.9,
            )
            for in_flight in (16, 64)
        ),
        Target(
            what="creates a second, in a batch / 16 in flight",
            values=_between(run.of(SINGLE, OURS), run.of(BATCH, OURS), _per_second),
            at_least=1.3,
        ),
        *(
            Target(
                what=f"{burst}, {what} a second / straightforward",
                values=_ratios(run, burst, STRAIGHTFORWARD, figure),
                at_least=1.6,
            )
            for burst in _bursts(run)
            for what, figure in (("jobs closed", _closed), ("arrivals", _per_second))
        ),
        Target(
            what="sustained, jobs a second / straightforward", values=versus("sustained", STRAIGHTFORWARD), at_least=1.5
        ),
    ]


def _costs(run: Run) -> list[Target]:
    limits = {"worker": 0.5, "temporal": 0.7}
    names = {"worker": "worker", "temporal": "Temporal with its database"}
    return [
        Target(
            what=f"{scenario}, CPU of {names[process]} per job / straightforward",
            values=_ratios(run, scenario, STRAIGHTFORWARD, partial(_cpu, process)),
            at_most=limit,
        )
        for process, limit in limits.items()
        for scenario in (*_bursts(run), "sustained")
    ]


def _lateness(run: Run) -> list[Target]:
    ours = [one.lateness.min for one in run.measurements if one.implementation == OURS and one.lateness]
    return [
        Target(
            what="p99 lateness at half of sustained / straightforward",
            values=_ratios(run, HALF, STRAIGHTFORWARD, lambda one: one.lateness.p99 if one.lateness else None),
            at_most=0.7,
        ),
        Target(what="smallest lateness of all, ms", values=(min(ours),) if ours else (), at_least=0),
    ]


def _limits(run: Run) -> list[Target]:
    levels = run.starting(WAITING)
    first, last = (min(levels, key=_level, default=""), max(levels, key=_level, default=""))
    where = f"{_level(last):,} / {_level(first):,} waiting" if levels else "most / fewest waiting"
    overloads = run.of("overload", OURS)
    return [
        Target(
            what=f"memory of the worker, {where}",
            values=_between(levels.get(first, []), levels.get(last, []), _worker_memory),
            at_most=1.1,
        ),
        Target(
            what=f"creates a second, {where}",
            values=_between(levels.get(first, []), levels.get(last, []), _per_second),
            at_least=0.9,
        ),
        Target(what="jobs lost in the overload", values=tuple(one.notes["lost"] for one in overloads), at_most=0),
        Target(
            what="answer to an accepted create in the overload, p99, ms",
            values=tuple(one.answers.p99 for one in overloads if one.answers),
            at_most=1_000 * Settings().request_timeout,
        ),
    ]


def _ratios(run: Run, scenario: str, other: str, figure: Figure) -> tuple[float, ...]:
    return _between(run.of(scenario, other), run.of(scenario, OURS), figure)


def _between(others: Iterable[Measurement], ours: Iterable[Measurement], figure: Figure) -> tuple[float, ...]:
    """Return ours / theirs of each round that has both."""
    theirs = {one.round: figure(one) for one in others}
    pairs = [(figure(one), theirs.get(one.round)) for one in ours]
    return tuple(mine / other for mine, other in pairs if mine is not None and other)


def _bursts(run: Run) -> list[str]:
    """Return the names of the bursts that were measured, or one for none."""
    return list(run.starting(BURST)) or ["burst"]


def _per_second(one: Measurement) -> float:
    return one.per_second


def _per_cpu_second(one: Measurement) -> float | None:
    """Return jobs by the CPU of all processes but the benchmark's own."""
    used = sum(ms for name, ms in one.cpu_ms_per_job.items() if name != "load")
    return 1000 / used if used else None


def _closed(one: Measurement) -> float | None:
    return one.notes.get("closed_per_second")


def server_cpu(one: Measurement) -> float:
    """Return the CPU milliseconds per job of Temporal and of the database."""
    return _cpu("temporal", one) + _cpu("postgres", one)


def server_cpu_beyond_idle(one: Measurement) -> float | None:
    """Return the same without what they use when there is no job, where that was measured."""
    idle = one.notes.get("idle_ms_per_job")
    return None if idle is None else server_cpu(one) - idle


def _cpu(process: str, one: Measurement) -> float:
    return one.cpu_ms_per_job.get(process, 0.0)


def _level(scenario: str) -> int:
    return int(scenario.split()[1])


def _worker_memory(one: Measurement) -> float | None:
    return one.memory.resident["worker"] if one.memory else None

"""What a benchmark run leaves behind, as it is written to JSON, and how its figures are summed up."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import msgspec

BUCKETS_MS = (
    *(2, 5, 10, 15, 20, 30, 40, 50, 75, 100, 150, 200, 300, 400, 500, 750, 1_000),
    *(1_500, 2_000, 3_000, 5_000, 7_500, 10_000, 15_000, 20_000, 30_000, 60_000),
)
"""Upper bounds of the histograms, in milliseconds; one bucket more holds what is above."""

RAW, SAME_RAW, STRAIGHTFORWARD, OURS = "raw", "raw, same arguments", "straightforward", "timemachine"
"""The implementations' names."""

EMPTY, STANDALONE = "empty workflow", "standalone activity"
"""Those of Temporal's that are measured on a cluster only."""

BURST = "burst of"
"""How the names of scenarios begin in which so many jobs come due at one instant."""

SINGLE, BATCH = "creates, 16 in flight", "creates, in a batch"
"""The scenarios in which single creates are compared with those of a batch."""

UNKEYED, KEYED = "creates, without keys", "creates, with keys"
"""The scenarios in which the API wants no keys, and in which it does."""

HALF = "steady, half of sustained"
"""The scenario at half the rate that the straightforward implementation sustains."""

NODES = "nodes, "
"""How the names of scenarios begin in which the same is done by more processes."""

NODE_COUNTS = ((2, 1), (1, 2), (2, 2))
"""Processes of Temporal's history and of our worker in these. Each is compared with one of each, at once."""

OBSERVED = "observed, "
"""How the names of scenarios begin in which the same is done while somebody looks inside, or nobody does."""
UNOBSERVED, METRICS, TRACES = "by nobody", "by metrics", "by traces of 10 %"
"""The rest of these."""

WAITING, AMONG, RESTART = "waiting, ", "among ", "restart of "
"""How the names of scenarios begin that are measured with many waiting jobs: the jobs, a burst, restarts."""


class Spread(msgspec.Struct, frozen=True):
    """How values are spread, in milliseconds."""

    count: int
    min: float
    p50: float
    p99: float
    max: float
    histogram: tuple[int, ...]
    """Counts by `BUCKETS_MS`."""
    p95: float | None = None
    """None in results of an earlier version."""


class TableSize(msgspec.Struct, frozen=True, kw_only=True):
    """What a table of a database takes on disk, in bytes."""

    database: str
    table: str
    rows: int
    indexes: int


class Memory(msgspec.Struct, frozen=True):
    """What is held, in bytes."""

    resident: dict[str, int]
    """Of each process, its children included; and of all processes of a part, where it has several."""
    disk: dict[str, int]
    """Of each store."""
    tables: tuple[TableSize, ...] = ()
    """By how much each table has grown since the databases were empty; on a cluster only."""


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One implementation in one scenario in one round."""

    scenario: str
    implementation: str
    round: int
    jobs: int
    seconds: float
    per_second: float
    cpu_ms_per_job: dict[str, float]
    """CPU milliseconds of each process per job; `load` is the benchmark itself with its receiver."""
    cpu_seconds: float = 0
    """Time in which that was used. 0 in results of an earlier version."""
    lateness: Spread | None = None
    """Trigger time to arrival at the receiver."""
    answers: Spread | None = None
    """Time that creates took."""
    events: float | None = None
    """History events of a job."""
    history_bytes: float | None = None
    memory: Memory | None = None
    notes: dict[str, float] = {}
    """What only this scenario has."""


def together(pieces: Sequence[Measurement]) -> Measurement:
    """Return the pieces of one round as one measurement, without what cannot be added up."""
    jobs, seconds, first = sum(one.jobs for one in pieces), sum(one.seconds for one in pieces), pieces[0]
    return Measurement(
        scenario=first.scenario,
        implementation=first.implementation,
        round=first.round,
        jobs=jobs,
        seconds=round(seconds, 3),
        per_second=round(jobs / seconds, 2),
        cpu_ms_per_job={
            name: round(sum(one.cpu_ms_per_job[name] * one.jobs for one in pieces) / jobs, 3)
            for name in first.cpu_ms_per_job
        },
        cpu_seconds=round(sum(one.cpu_seconds for one in pieces), 3),
    )


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run."""

    at: str
    """When it began, in UTC."""
    machine: dict[str, str]
    versions: dict[str, str]
    quick: bool
    rounds: int
    on_cluster: bool = False
    """Whether it was on Temporal's own server and Postgres, as `make cluster` runs them."""
    measurements: list[Measurement]

    def of(self, scenario: str, implementation: str) -> list[Measurement]:
        """Return what an implementation did in a scenario, by round."""
        found = [one for one in self.measurements if (one.scenario, one.implementation) == (scenario, implementation)]
        return sorted(found, key=lambda one: one.round)

    def starting(self, prefix: str) -> dict[str, list[Measurement]]:
        """Return what was measured in the scenarios whose names begin so, by scenario, in the order of the run."""
        found = defaultdict(list)
        for one in self.measurements:
            if one.scenario.startswith(prefix):
                found[one.scenario].append(one)
        return found


def spread(values_ms: Iterable[float]) -> Spread | None:
    """Summarise, or return None where there is nothing."""
    ordered = sorted(values_ms)
    if not ordered:
        return None
    counts = [0] * (len(BUCKETS_MS) + 1)
    for value in ordered:
        counts[sum(value > bound for bound in BUCKETS_MS)] += 1
    last = len(ordered) - 1
    return Spread(
        count=len(ordered),
        min=round(ordered[0], 2),
        p50=round(ordered[last // 2], 2),
        p99=round(ordered[min(last, int(len(ordered) * 0.99))], 2),
        max=round(ordered[-1], 2),
        histogram=tuple(counts),
        p95=round(ordered[min(last, int(len(ordered) * 0.95))], 2),
    )


def grown(now: Sequence[TableSize], before: Sequence[TableSize]) -> tuple[TableSize, ...]:
    """Return by how much tables have grown; one that was not there before by all that it has."""
    earlier = {(one.database, one.table): one for one in before}
    none = TableSize(database="", table="", rows=0, indexes=0)
    return tuple(
        msgspec.structs.replace(one, rows=one.rows - then.rows, indexes=one.indexes - then.indexes)
        for one in now
        for then in [earlier.get((one.database, one.table), none)]
    )


def bytes_per_job(tables: Sequence[TableSize], jobs: float) -> dict[str, float]:
    """Return the bytes for each job in the rows and in the indexes of each database, as `database rows`, and in all."""
    found: defaultdict[str, float] = defaultdict(float)
    for one in tables:
        found[f"{one.database} rows"] += one.rows / jobs
        found[f"{one.database} indexes"] += one.indexes / jobs
    return found | {"all": sum(found.values())} if found else {}


def nodes_scenario(histories: int, workers: int) -> str:
    """Return the name of the scenario with so many processes."""
    return f"{NODES}{histories} x history and {workers} x worker"


def one_of_each_scenario(histories: int, workers: int) -> str:
    """Return the name of the scenario with one process of each, while so many do the same."""
    return f"{NODES}one of each, at once with {histories} x history and {workers} x worker"


def shorter(scenario: str) -> str:
    """Return a scenario's name without its family's."""
    return scenario.rpartition(", ")[2]


def merged(runs: Sequence[Run]) -> Run:
    """Return several runs as one, the rounds of each after those of the one before; the last says where it was.

    Raises:
        ValueError: Some were on a cluster and some were not.
    """
    if len({run.on_cluster for run in runs}) > 1:
        raise ValueError("results of a cluster and others cannot be one report")
    measurements, before = [], 0
    for run in runs:
        measurements += [msgspec.structs.replace(one, round=one.round + before) for one in run.measurements]
        before = max((one.round + 1 for one in measurements), default=0)
    rounds = Counter((one.scenario, one.implementation) for one in measurements)
    return msgspec.structs.replace(
        runs[-1],
        quick=any(run.quick for run in runs),
        rounds=max(rounds.values(), default=0),
        measurements=measurements,
    )


def problems(run: Run) -> list[str]:
    """Return what must never be and was: a job delivered early, or one that was accepted and lost."""
    found = []
    for one in run.measurements:
        where = f"{one.scenario}, {one.implementation}, round {one.round + 1}"
        if one.lateness and one.lateness.min < 0:
            found.append(f"{where}: a job was {-one.lateness.min:g} ms early")
        if lost := one.notes.get("lost"):
            found.append(f"{where}: {lost:.0f} jobs were lost")
    return found

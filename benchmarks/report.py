"""What a run found, as the generated part of a page and as lines for the terminal.

The page of a cluster is docs/scale.md, and docs/performance.md that of all else.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import msgspec

from benchmarks.results import AMONG, BURST, NODES, OBSERVED, RESTART, WAITING, Measurement, Run, Spread, bytes_per_job
from benchmarks.targets import Target, server_cpu, server_cpu_beyond_idle, targets
from devstack.children import ROOT
from devstack.postgres import DATABASE
from devstack.temporal_cluster import DATABASES

BEGIN = "<!-- Begin of what `make bench` writes: changes in here are lost. -->"
END = "<!-- End of what `make bench` writes. -->"

_MIB = 2**20


class Column(msgspec.Struct, frozen=True):
    """One column of figures."""

    heading: str
    figure: Callable[[Measurement], float | None]


def page_of(run: Run) -> Path:
    """Return the page that a run is reported on. Its plots are in a folder of the same name."""
    return ROOT / "docs" / ("scale.md" if run.on_cluster else "performance.md")


def plots_of(run: Run) -> list[str]:
    """Return the names of a run's plots."""
    side_by_side = [] if run.on_cluster else ["lateness", "throughput", "cpu"]
    return [*side_by_side, *(["waiting"] if run.starting(WAITING) else [])]


def with_report(page: str, run: Run) -> str:
    """Return a page with what stands between the two markers replaced.

    Raises:
        ValueError: A marker is missing.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("the page has lost a marker of its generated part")
    return f"{before}{BEGIN}\n\n{report(run)}\n{END}{after}"


def report(run: Run) -> str:
    """Return the whole generated part, in Markdown."""
    sections = {
        "Targets": [_targets(run)],
        "Creates": [_creates(run)],
        "Burst": [_table(run, BURST, [*_RATES, *_LATENESS]), _table(run, BURST, [*_CPU, *_HISTORY])],
        "Sustained": [_table(run, "sustained", [*_RATES, *_LATENESS]), _table(run, "sustained", [*_CPU, *_HISTORY])],
        "Steady": [
            *_plots(run, lateness="How many jobs arrived how late"),
            _table(run, "steady, ", [*_LATENESS, *_CPU]),
        ],
        "A receiver that fails once": [_table(run, "failing receiver", [*_RATES, *_CPU, *_HISTORY])],
        "A slow receiver": [_table(run, "slow receiver", [*_LATENESS, *_CPU])],
        "Metrics and traces": [_table(run, OBSERVED, [*_RATES, *_LATENESS]), _table(run, OBSERVED, _CPU)],
        "All side by side": _plots(run, throughput="Jobs a second", cpu="CPU of each process per job"),
        "Waiting jobs": [*_plots(run, waiting="Creates a second over waiting jobs"), _waiting(run)],
        "Lists and counts among waiting jobs": [_table(run, WAITING, _LISTS)],
        "Disk of a waiting job": [_table(run, WAITING, _DISK)],
        "Memory of Temporal's processes": [_table(run, WAITING, _TEMPORALS_MEMORY)],
        "A burst among waiting jobs": [_table(run, AMONG, [*_RATES, *_LATENESS])],
        "Restarts among waiting jobs": [_table(run, RESTART, _RESTARTS)],
        "Cost of a job by nodes": [_table(run, NODES, _BY_NODES)],
        "Overload": [_overload(run)],
    }
    measured = {name: found for name, found in sections.items() if found and not found[-1].startswith(_NOT_MEASURED)}
    parts = [_about(run), *(part for name, found in measured.items() for part in (f"### {name}", *found))]
    return "\n\n".join(parts) + "\n"


def summary(run: Run) -> str:
    """Return what was reached of the targets, as lines for the terminal."""
    return "\n".join(
        f"{_REACHED[one.reached].strip('*'):12} {_wanted(one):8} {_cell(one.values):28} {one.what}"
        for one in targets(run)
    )


def number(value: float) -> str:
    """Return a figure with as many digits as mean something."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


_NOT_MEASURED = "Not measured."

_REACHED = {True: "yes", False: "**no**", None: "not measured"}


def _about(run: Run) -> str:
    rounds = f"{run.rounds} round" + ("s" if run.rounds > 1 else "")
    kind = ", `QUICK=1`: too little to go by" if run.quick else ""
    facts = [f"- {name}: {value}" for name, value in run.machine.items()]
    versions = ", ".join(f"{name} {value}" for name, value in run.versions.items())
    return "\n".join(
        [f"{run.at}, {rounds}{kind}. Figures are medians of the rounds (least to most).", "", *facts, f"- {versions}"]
    )


def _targets(run: Run) -> str:
    """Return all targets; of a cluster those that were measured, since all of it takes hours."""
    shown = [one for one in targets(run) if one.values or not run.on_cluster]
    rows = [[one.what, _cell(one.values), _wanted(one), _REACHED[one.reached]] for one in shown]
    return _markdown(["", "measured", "target", "reached"], rows) if rows else _NOT_MEASURED


def _wanted(target: Target) -> str:
    return f">= {target.at_least:g}" if target.at_least is not None else f"<= {target.at_most:g}"


def _creates(run: Run) -> str:
    columns = [
        Column("creates/s", lambda one: one.per_second),
        *_spread("answer", lambda one: one.answers, ("p50", "p99")),
        *_cpu("api", "temporal", "load"),
    ]
    return _table(run, "creates, ", columns)


def _waiting(run: Run) -> str:
    columns = [
        Column("creates/s", lambda one: one.per_second),
        *_spread("create", lambda one: one.answers, ("p50", "p99")),
        *_took({"GET": "read", "PUT": "change"}, ("p50", "p99")),
        *(Column(f"{name}, MiB", _resident(name)) for name in ("api", "worker", "temporal", "postgres")),
        Column("Temporal's disk, MiB", lambda one: one.memory.disk["temporal"] / _MIB if one.memory else None),
    ]
    return _table(run, WAITING, columns)


def _overload(run: Run) -> str:
    columns = [
        *(Column(heading, note_of(name)) for name, heading in _ANSWERED.items()),
        *_spread("accepted", lambda one: one.answers, ("p50", "p99")),
        Column("429 p99, ms", note_of("refused_p99_ms")),
        Column("503 p99, ms", note_of("unavailable_p99_ms")),
        Column("lost", note_of("lost")),
        Column("drained after, s", note_of("drain_seconds")),
        Column("delivered/s", lambda one: one.per_second),
    ]
    memory = [
        Column(f"{name} {when}, MiB", _scaled(note_of(f"{name}_{when}"), 1 / _MIB))
        for name in ("api", "worker", "temporal")
        for when in ("before", "peak", "after")
    ]
    return "\n\n".join(_table(run, "overload", some) for some in (columns, memory))


def _table(run: Run, prefix: str, columns: Sequence[Column]) -> str:
    """Return a table with a row for each scenario that begins so and each implementation, without empty columns."""
    rows = []
    for scenario, found in run.starting(prefix).items():
        for implementation in dict.fromkeys(one.implementation for one in sorted(found, key=_in_first_round)):
            of_it = [one for one in found if one.implementation == implementation]
            rows.append([scenario, implementation, *(_cell(_values(of_it, column)) for column in columns)])
    headings = ["scenario", "implementation", *(column.heading for column in columns)]
    kept = [n for n in range(len(headings)) if n < 2 or any(row[n] for row in rows)]
    if len(kept) == 2:
        return _NOT_MEASURED
    return _markdown([headings[n] for n in kept], [[row[n] for n in kept] for row in rows])


def _in_first_round(one: Measurement) -> int:
    return one.round


def _values(found: Sequence[Measurement], column: Column) -> list[float]:
    return [value for value in map(column.figure, found) if value is not None]


def _cell(values: Sequence[float]) -> str:
    """Return the median, and the least and the most where they are not the same; nothing for nothing."""
    if not values:
        return ""
    middle, least, most = number(median(values)), number(min(values)), number(max(values))
    return middle if least == most else f"{middle} ({least} to {most})"


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def _plots(run: Run, **whats: str) -> list[str]:
    """Return the links to those of the plots, each with what it shows, that the run has."""
    folder = page_of(run).stem
    return [f"![{what}]({folder}/{name}.svg)" for name, what in whats.items() if name in plots_of(run)]


def note_of(name: str) -> Callable[[Measurement], float | None]:
    """Return what takes a note from a measurement, where it has that."""
    return lambda one: one.notes.get(name)


def _resident(name: str) -> Callable[[Measurement], float | None]:
    return _scaled(lambda one: one.memory.resident.get(name) if one.memory else None, 1 / _MIB)


def _disk(name: str) -> Callable[[Measurement], float | None]:
    return lambda one: bytes_per_job(one.memory.tables, one.notes["waiting"]).get(name) if one.memory else None


def _took(notes: Mapping[str, str], parts: Sequence[str]) -> list[Column]:
    """Return columns of how long requests took: by what they are called here, what notes call them."""
    return [
        Column(f"{name} {part}, ms", note_of(f"{note}_{part}_ms")) for name, note in notes.items() for part in parts
    ]


def _scaled(figure: Callable[[Measurement], float | None], by: float) -> Callable[[Measurement], float | None]:
    def scaled(one: Measurement) -> float | None:
        value = figure(one)
        return None if value is None else value * by

    return scaled


def _cpu(*names: str) -> list[Column]:
    return [Column(f"{name}, CPU ms", _cpu_of(name)) for name in names]


def _cpu_of(name: str) -> Callable[[Measurement], float | None]:
    return lambda one: one.cpu_ms_per_job.get(name)


def _spread(name: str, of: Callable[[Measurement], Spread | None], parts: Sequence[str]) -> list[Column]:
    return [Column(f"{name} {part}, ms", _part(of, part)) for part in parts]


def _part(of: Callable[[Measurement], Spread | None], part: str) -> Callable[[Measurement], float | None]:
    def figure(one: Measurement) -> float | None:
        found = of(one)
        return None if found is None else float(getattr(found, part))

    return figure


def services_cpu(cpu_ms_per_job: Mapping[str, float]) -> dict[str, float]:
    """Return the CPU of what is compared, without that of the load."""
    return {name: ms for name, ms in cpu_ms_per_job.items() if name != "load"}


_RATES = [
    Column("jobs/s", lambda one: one.per_second),
    Column("closed/s", note_of("closed_per_second")),
]
_LATENESS = _spread("late", lambda one: one.lateness, ("min", "p50", "p99", "max"))
_CPU = [
    *_cpu("worker", "temporal", "api", "postgres"),
    Column("all, CPU ms", lambda one: sum(services_cpu(one.cpu_ms_per_job).values())),
    Column("worker until due", note_of("worker_until_due")),
    Column("temporal until due", note_of("temporal_until_due")),
]
_LISTS = [
    *_took({"list": "list", "list by label": "label", "count": "count"}, ("p50", "p95")),
    Column("503", note_of("lists_unavailable")),
]
_DISK = [
    Column(f"{name}, bytes", _disk(name))
    for name in (*(f"{database} {kind}" for database in (*DATABASES, DATABASE) for kind in ("rows", "indexes")), "all")
]
_TEMPORALS_MEMORY = [
    Column(f"{name}, MiB", _resident(f"temporal-{name.replace(' ', '-')}"))
    for name in ("frontend", "history 1", "history 2", "matching", "worker")
]
_RESTARTS = [
    Column("stopped after, s", note_of("stopped_seconds")),
    Column("create accepted after, s", note_of("accepted_seconds")),
    Column("delivered after, s", note_of("arrived_seconds")),
]
_BY_NODES = [
    *_cpu("temporal", "postgres", "api", "worker"),
    Column("temporal and postgres, CPU ms", server_cpu),
    Column("of it beyond idle", server_cpu_beyond_idle),
    Column("idle, CPU ms per second", note_of("idle_ms_per_second")),
    Column("all, CPU ms", lambda one: sum(services_cpu(one.cpu_ms_per_job).values())),
]
_ANSWERED = {
    "asked": "asked",
    "accepted": "accepted",
    "refused": "429",
    "unavailable": "503",
    "unanswered": "unanswered",
    "otherwise": "answered otherwise",
}
_HISTORY = [
    Column("events", lambda one: one.events),
    Column("bytes of history", lambda one: one.history_bytes),
]

"""What a run found, as drawings: small, the same for the same results, legible on dark and light."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate, chain
from pathlib import Path
from statistics import median

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.report import note_of, plots_of, services_cpu
from benchmarks.results import (
    AMONG,
    BUCKETS_MS,
    BURST,
    HALF,
    OURS,
    RAW,
    SAME_RAW,
    STRAIGHTFORWARD,
    WAITING,
    Measurement,
    Run,
    Spread,
    shorter,
)

_INK = "#808890"
"""Seen on white and on black; the style has it too."""

_COLOURS = {RAW: "#9aa5b1", SAME_RAW: "#6b7a8c", STRAIGHTFORWARD: "#e0873a", OURS: "#2f8fd8"}
_PROCESSES = {"worker": "#2f8fd8", "temporal": "#8a6fd1", "api": "#3aa676", "postgres": "#c9a227"}
_REQUESTS = {
    "GET": ("read", "#2f8fd8"),
    "PUT": ("change", "#3aa676"),
    "list": ("list", "#8a6fd1"),
    "list by label": ("label", "#c9a227"),
    "count": ("count", "#e0873a"),
}
"""What is asked for among waiting jobs, with its name in the notes of measurements."""

_STYLE = Path(__file__).with_suffix(".mplstyle")


def draw(run: Run, folder: Path) -> None:
    """Draw all plots of a run into a folder, one file each."""
    folder.mkdir(parents=True, exist_ok=True)
    drawings: dict[str, Callable[[Run], Figure]] = {
        "lateness": _lateness,
        "throughput": _throughput,
        "cpu": _cpu,
        "waiting": _waiting_on_cluster if run.on_cluster else _waiting,
    }
    for name in plots_of(run):
        with style.context(_STYLE):
            nothing_to_date = {"Date": None, "Creator": None}
            drawings[name](run).savefig(folder / f"{name}.svg", transparent=True, metadata=nothing_to_date)


def _lateness(run: Run) -> Figure:
    """Draw, for some scenarios, how large a part of the jobs arrived within how many milliseconds."""
    names = [name for name in (HALF, *run.starting(BURST), "slow receiver, 15 jobs/s") if run.of(name, OURS)]
    figure, plots = _figure(len(names), height=3.0)
    for name, axes in zip(names, plots, strict=False):
        for implementation in (STRAIGHTFORWARD, OURS):
            found = [one.lateness for one in run.of(name, implementation) if one.lateness]
            axes.step(
                (1, *BUCKETS_MS),
                (0.0, *_shares(found)),
                where="post",
                color=_COLOURS[implementation],
                label=implementation,
            )
        axes.set(title=name, xscale="log", xlabel="at most so many ms late", xlim=(2, 60_000), ylim=(0, 1.02))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(visible=True)
    _legend(figure, plots[:1])
    plots[0].set_ylabel("part of the jobs")
    return figure


def _shares(found: Sequence[Spread]) -> list[float]:
    """Return, for each bucket's bound, the part of all jobs that were not later."""
    counts = [sum(counted) for counted in zip(*(one.histogram for one in found), strict=True)]
    total = max(sum(counts), 1)
    return [so_far / total for so_far in accumulate(counts)][: len(BUCKETS_MS)] or [0.0] * len(BUCKETS_MS)


def _throughput(run: Run) -> Figure:
    """Draw the rates of creates, and of deliveries, as bars with the span of the rounds."""
    deliveries = [name for name in (*run.starting(BURST), "sustained", "failing receiver") if run.starting(name)]
    groups = {"creates a second": [*run.starting("creates, ")], "deliveries a second": deliveries}
    figure, plots = _figure(2, height=3.4)
    for axes, (title, names) in zip(plots, groups.items(), strict=True):
        there = [implementation for implementation in _COLOURS if any(run.of(name, implementation) for name in names)]
        for place, implementation in enumerate(there):
            _bars(
                axes, [run.of(name, implementation) for name in names], implementation, (place + 0.5) / len(there) - 0.5
            )
        axes.set_title(title)
        axes.set_xticks(range(len(names)), [shorter(name) for name in names])
        axes.grid(visible=True, axis="y")
    _legend(figure, plots)
    return figure


def _bars(axes: Axes, measured: Sequence[Sequence[Measurement]], implementation: str, place: float) -> None:
    """Draw one implementation's bars, each at its place, from -0.5 to 0.5, within a group."""
    rates = {n: [one.per_second for one in found] for n, found in enumerate(measured) if found}
    middles = [median(values) for values in rates.values()]
    below = [middle - min(values) for middle, values in zip(middles, rates.values(), strict=True)]
    above = [max(values) - middle for middle, values in zip(middles, rates.values(), strict=True)]
    axes.bar(
        [n + 0.8 * place for n in rates],
        middles,
        0.16,
        yerr=[below, above],
        color=_COLOURS[implementation],
        ecolor=_INK,
        label=implementation,
    )


def _cpu(run: Run) -> Figure:
    """Draw the CPU of each process per job, one bar for each scenario and implementation."""
    names = [name for name in (*run.starting(BURST), "sustained", HALF, "failing receiver") if run.of(name, OURS)]
    rows = [(name, implementation) for name in names for implementation in (STRAIGHTFORWARD, OURS)][::-1]
    figure, (axes,) = _figure(1, height=0.6 + 0.38 * max(len(rows), 2))
    used = [_median_cpu(run.of(*row)) for row in rows]
    left = [0.0] * len(rows)
    for process, colour in _PROCESSES.items():
        widths = [one.get(process, 0.0) for one in used]
        axes.barh(range(len(rows)), widths, 0.7, left=left, color=colour, label=process)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(rows)), [f"{shorter(name)}: {implementation}" for name, implementation in rows])
    axes.set_xlabel("CPU milliseconds per job")
    axes.grid(visible=True, axis="x")
    _legend(figure, [axes])
    return figure


def _median_cpu(found: Sequence[Measurement]) -> Mapping[str, float]:
    each = [services_cpu(one.cpu_ms_per_job) for one in found]
    return {name: median(one[name] for one in each) for name in (each[0] if each else {})}


def _waiting(run: Run) -> Figure:
    """Draw the rate of creates, and what each process holds, over the number of waiting jobs."""
    figure, (rates, memory) = _figure(2, height=3.0)
    _over_levels(rates, run, WAITING, _per_second, color=_COLOURS[OURS])
    rates.set_title("creates a second")
    _memory(memory, run)
    for axes in (rates, memory):
        _set_levels(axes, run)
    _legend(figure, [memory])
    return figure


def _waiting_on_cluster(run: Run) -> Figure:
    """Draw rates, the times that requests take, and what each process holds, over the number of waiting jobs."""
    figure, (rates, times, memory) = _figure(3, height=3.4)
    _over_levels(rates, run, WAITING, _per_second, color=_COLOURS[OURS], label="creates")
    _over_levels(rates, run, AMONG, _per_second, color=_COLOURS[STRAIGHTFORWARD], label="arrivals of a burst")
    rates.set_title("jobs a second")
    for request, (name, colour) in _REQUESTS.items():
        _over_levels(times, run, WAITING, note_of(f"{name}_p50_ms"), color=colour, label=request)
    times.set_title("answered after, ms (p50)")
    _memory(memory, run)
    for axes in (rates, times, memory):
        _set_levels(axes, run, room=1.5)
        axes.legend(loc="upper left")
    times.set(yscale="log", ylim=(1, 20 * times.get_ylim()[1]))
    times.yaxis.set_minor_locator(NullLocator())
    return figure


def _memory(axes: Axes, run: Run) -> None:
    for process, colour in _PROCESSES.items():
        _over_levels(axes, run, WAITING, partial(_resident, process), color=colour, label=process)
    axes.set_title("memory, MiB")


def _over_levels(
    axes: Axes, run: Run, prefix: str, figure: Callable[[Measurement], float | None], *, color: str, label: str = ""
) -> None:
    """Draw the median of a figure at each level at which it was measured."""
    at = defaultdict[float, list[float]](list)
    for one in chain.from_iterable(run.starting(prefix).values()):
        if (value := figure(one)) is not None:
            at[_level(one)].append(value)
    axes.plot(sorted(at), [median(at[level]) for level in sorted(at)], "o-", color=color, label=label)


def _set_levels(axes: Axes, run: Run, *, room: float = 1.08) -> None:
    """Make the levels those of the x axis, and the y axis so many times as high as what is drawn."""
    levels = sorted({_level(one) for one in chain.from_iterable(run.starting(WAITING).values())})
    axes.set(xlabel="waiting jobs", xscale="log", ylim=(0, room * axes.get_ylim()[1]))
    axes.set_xticks(levels, [f"{level:,.0f}" for level in levels])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(visible=True)


def _level(one: Measurement) -> float:
    return one.notes["waiting"]


def _per_second(one: Measurement) -> float:
    return one.per_second


def _resident(process: str, one: Measurement) -> float | None:
    return one.memory.resident[process] / 2**20 if one.memory else None


def _figure(count: int, *, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many plots side by side."""
    figure = Figure(figsize=(9.0, height), layout="constrained")
    return figure, list(figure.subplots(1, max(count, 1), squeeze=False)[0])


def _legend(figure: Figure, plots: Sequence[Axes]) -> None:
    """Name each colour once, above the plots."""
    named = {name: handle for axes in plots for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=max(len(named), 1))

"""`make bench`: this project beside the straightforward implementation and raw Temporal, in one run on one machine."""

import argparse
import asyncio
import os
import platform
import signal
import traceback
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import msgspec
import psutil
import uvloop

from benchmarks.plan import ALONE, BY_NODES, CONTESTED, measure
from benchmarks.report import page_of, summary, with_report
from benchmarks.results import Measurement, Run, merged, problems
from benchmarks.sizes import FULL, ON_CLUSTER, QUICK, Size
from benchmarks.waiting import check_levels
from devstack.children import ROOT
from devstack.terminal import say
from timemachine.process import exit_process

RESULTS = ROOT / "build" / "bench"

ROUNDS = 3

EVERYTHING = (*CONTESTED, *ALONE, BY_NODES)

_LIBRARIES = ("temporalio", "litestar", "msgspec", "httpx", "asyncpg", "uvicorn", "uvloop")


def everything(*, cluster: bool) -> set[str]:
    """Return all that can be measured."""
    return set(EVERYTHING) if cluster else set(EVERYTHING) - {BY_NODES}


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line asks for; `only` is what is to be measured, and `size` how much of it."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of little, in under three minutes")
    parser.add_argument(
        "--cluster", action="store_true", help="on Temporal's own server and Postgres, beside Temporal's own ways"
    )
    parser.add_argument(
        "--only", type=_scenarios, help=f"some of {','.join(EVERYTHING)}; {BY_NODES} with --cluster only"
    )
    parser.add_argument(
        "--rounds", type=int, help=f"rounds with the implementations in turns (default: {ROUNDS}; quick: 1)"
    )
    parser.add_argument(
        "--waiting",
        type=_levels,
        metavar="JOBS,...",
        help=f"levels of waiting jobs, from few to many (default: {_shown(FULL)}; on a cluster: {_shown(ON_CLUSTER)}; "
        f"quick: {_shown(QUICK)}); a level of 1000000 takes hours to fill",
    )
    parser.add_argument(
        "--report", nargs="+", type=Path, metavar="FILE", help="measure nothing: write the report from these results"
    )
    asked = parser.parse_args(argv)
    asked.only, asked.size = asked.only or everything(cluster=asked.cluster), _size(asked)
    if asked.only - everything(cluster=asked.cluster):
        parser.error(f"{BY_NODES} can be measured with --cluster only")
    try:
        check_levels(asked.size.waiting, asked.size.batch)
    except ValueError as error:
        parser.error(str(error))
    return asked


def _scenarios(text: str) -> set[str]:
    names = set(text.split(","))
    if unknown := names - set(EVERYTHING):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
    return names


def _levels(text: str) -> tuple[int, ...]:
    return tuple(int(level) for level in text.split(","))


def _shown(size: Size) -> str:
    return ",".join(map(str, size.waiting))


def _size(asked: argparse.Namespace) -> Size:
    whole = ON_CLUSTER if asked.cluster else FULL
    size = QUICK if asked.quick else whole
    return msgspec.structs.replace(size, waiting=asked.waiting) if asked.waiting else size


def measured(asked: argparse.Namespace) -> tuple[Run, bool]:
    """Measure, write each result to a file as soon as it is there, and return them and whether all went well."""
    run = Run(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=_machine(),
        versions={"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES},
        quick=asked.quick,
        rounds=asked.rounds or (1 if asked.quick else ROUNDS),
        on_cluster=asked.cluster,
        measurements=[],
    )
    path = RESULTS / f"{run.at.replace(':', '')}.json"

    def keep(one: Measurement) -> None:
        run.measurements.append(one)
        write(run, path)

    say(f"results: {path.relative_to(ROOT)}")
    try:
        uvloop.run(_until_stopped(measure(asked.size, asked.only, run, keep)))
    except (Exception, asyncio.CancelledError, KeyboardInterrupt):
        traceback.print_exc()
        return run, False
    return run, True


async def _until_stopped(measuring: Coroutine[None, None, None]) -> None:
    """Let SIGTERM cancel what runs, so that no server is left behind; asyncio does so for SIGINT itself."""
    task = asyncio.create_task(measuring)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await task


def _machine() -> dict[str, str]:
    return {
        "processors": f"{os.cpu_count()} x {_processor()}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
    }


def _processor() -> str:
    """Return the processor's name, or its architecture where Linux does not tell."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write(run: Run, path: Path) -> None:
    """Write results to a file, which is whole at any time, also while it is written anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".new")
    unfinished.write_bytes(msgspec.json.format(msgspec.json.encode(run)))
    unfinished.replace(path)


def report(run: Run) -> None:
    """Write the generated part of the page that the run belongs to, and its plots."""
    # Only here, as it is installed by `make bench` alone.
    from benchmarks.plots import draw

    page = page_of(run)
    page.write_text(with_report(page.read_text(encoding="utf-8"), run), encoding="utf-8")
    draw(run, page.with_suffix(""))
    say(f"report: {page.relative_to(ROOT)}")


def main() -> int:
    """Measure, or only report, and return the exit status: 1 when something failed, or must never be and was."""
    asked = arguments()
    if asked.report:
        run, whole = merged([msgspec.json.decode(file.read_bytes(), type=Run) for file in asked.report]), True
        report(run)
    else:
        run, whole = measured(asked)
        say(summary(run))
        if whole and not asked.quick and asked.only == everything(cluster=asked.cluster):
            report(run)
    for problem in problems(run):
        say(f"FAILED: {problem}")
    return 0 if whole and not problems(run) else 1


if __name__ == "__main__":
    exit_process(main())

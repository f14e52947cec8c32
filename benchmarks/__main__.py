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

from benchmarks.plan import ALONE, CONTESTED, FULL, ON_CLUSTER, QUICK, measure
from benchmarks.report import PAGE, summary, with_report
from benchmarks.results import Measurement, Run, merged, problems
from devstack.children import ROOT
from devstack.terminal import say
from timemachine.process import exit_process

RESULTS = ROOT / "build" / "bench"

ROUNDS = 3

EVERYTHING = (*CONTESTED, *ALONE)

_LIBRARIES = ("temporalio", "litestar", "msgspec", "httpx", "asyncpg", "uvicorn", "uvloop")


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of little, in under three minutes")
    parser.add_argument(
        "--cluster", action="store_true", help="on Temporal's own server and Postgres, beside Temporal's own ways"
    )
    parser.add_argument("--only", type=_scenarios, default=set(EVERYTHING), help=f"some of {','.join(EVERYTHING)}")
    parser.add_argument(
        "--rounds", type=int, help=f"rounds with the implementations in turns (default: {ROUNDS}; quick: 1)"
    )
    parser.add_argument(
        "--report", nargs="+", type=Path, metavar="FILE", help="measure nothing: write the report from these results"
    )
    return parser.parse_args(argv)


def _scenarios(text: str) -> set[str]:
    names = set(text.split(","))
    if unknown := names - set(EVERYTHING):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
    return names


def measured(asked: argparse.Namespace) -> tuple[Run, bool]:
    """Measure, write the results to a file, and return them and whether all went well."""
    whole_size = ON_CLUSTER if asked.cluster else FULL
    size, rounds = (QUICK, asked.rounds or 1) if asked.quick else (whole_size, asked.rounds or ROUNDS)
    found: list[Measurement] = []
    servers: dict[str, str] = {}
    whole = True
    try:
        servers = uvloop.run(_until_stopped(measure(size, asked.only, rounds, found, cluster=asked.cluster)))
    except (Exception, asyncio.CancelledError, KeyboardInterrupt):
        traceback.print_exc()
        whole = False
    run = Run(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=_machine(),
        versions=servers | {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES},
        quick=asked.quick,
        rounds=rounds,
        on_cluster=asked.cluster,
        measurements=found,
    )
    _write(run)
    return run, whole


async def _until_stopped(measuring: Coroutine[None, None, dict[str, str]]) -> dict[str, str]:
    """Let SIGTERM cancel what runs, so that no server is left behind; asyncio does so for SIGINT itself."""
    task = asyncio.create_task(measuring)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


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


def _write(run: Run) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{run.at.replace(':', '')}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(run)))
    say(f"results: {path.relative_to(ROOT)}")


def report(run: Run) -> None:
    """Write the generated part of the page, and its plots."""
    # Only here, as it is installed by `make bench` alone.
    from benchmarks.plots import FOLDER, draw

    PAGE.write_text(with_report(PAGE.read_text(encoding="utf-8"), run), encoding="utf-8")
    draw(run, FOLDER)
    say(f"report: {PAGE.relative_to(ROOT)}")


def main() -> int:
    """Measure, or only report, and return the exit status: 1 when something failed, or must never be and was."""
    asked = arguments()
    if asked.report:
        run, whole = merged([msgspec.json.decode(file.read_bytes(), type=Run) for file in asked.report]), True
        report(run)
    else:
        run, whole = measured(asked)
        say(summary(run))
        if whole and not asked.quick and not asked.cluster and asked.only == set(EVERYTHING):
            report(run)
    for problem in problems(run):
        say(f"FAILED: {problem}")
    return 0 if whole and not problems(run) else 1


if __name__ == "__main__":
    exit_process(main())

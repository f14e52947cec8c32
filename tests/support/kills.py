"""Parts that are killed or frozen, with the processes that they have started: Postgres puts its own into groups."""

import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from devstack.parts import Part

STOP_LIMIT = 20.0
"""Seconds that a process gets to stop."""


def tree(part: Part) -> list[psutil.Process]:
    process = psutil.Process(part.pid)
    return [process, *process.children(recursive=True)]


def send(part: Part, how: signal.Signals) -> None:
    """Send a signal to a part. When this returns, one that is to be frozen does nothing any more."""
    processes = tree(part)
    if how is signal.SIGSTOP:
        stop(processes)
    else:
        for process in processes:
            process.send_signal(how)


def stop(processes: Iterable[psutil.Process]) -> None:
    """Have processes do nothing from now on.

    The kernel stops the threads of a process when one of them has run to take the signal. On a busy machine the others
    answer requests until then.
    """
    stopping = list(processes)
    until = time.monotonic() + STOP_LIMIT
    for process in stopping:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    while not all(_is_stopped(process) for process in stopping):
        assert time.monotonic() < until, f"not stopped: {stopping}"
        time.sleep(0.001)


def _is_stopped(process: psutil.Process) -> bool:
    threads = Path(f"/proc/{process.pid}/task").glob("*/stat")
    try:
        return all(map(_is_thread_stopped, threads)) and process.status() in (
            psutil.STATUS_STOPPED,
            psutil.STATUS_ZOMBIE,
        )
    except (FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):  # a thread of it, or all of it, has ended
        return not process.is_running()


def _is_thread_stopped(stat: Path) -> bool:
    """Return what Linux shows of a thread: in the field after its name, which may have brackets and blanks."""
    return stat.read_text().rpartition(")")[2].split()[0] in ("T", "Z", "X")


def kill(*parts: Part) -> None:
    """Kill parts. Some of their processes end by themselves once their parent has."""
    for process in [process for part in parts for process in tree(part)]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


async def restart(parts: Iterable[Part]) -> None:
    """Start parts that have ended, one after the other."""
    for part in parts:
        await part.restart()

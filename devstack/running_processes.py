"""Which processes the stack has started: so that the next run can stop what a killed one left behind."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil

# Set in the environment of every child, so that its own children can be told from other programs. Postgres overwrites
# its environment's memory with its title; its children end by themselves when it does.
_MARK = "_TIMEMACHINE_LOCAL_STACK"

# Seconds by which two readings of one process's start may differ: it is reckoned from the wall clock, which moves.
_CLOCK_SLACK = 2.0


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One started process. A pid alone is not enough: the kernel gives it to another program later."""

    name: str
    pid: int
    created: float
    stop_signal: int
    stop_limit: float = 75.0
    """Seconds that it may take to stop; where an older version did not note them, as many as a worker may need."""

    def process(self) -> psutil.Process | None:
        """Return the process, if it still runs and is the one that was started."""
        with suppress(psutil.Error):
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.created) < _CLOCK_SLACK and _runs(process):
                return process
        return None


class RunningProcesses:
    """The list of started processes, in a file of the data folder. Only the holder of the folder's lock uses it."""

    def __init__(self, folder: Path) -> None:
        """Read the list that the last run left, if any."""
        self._file = folder / "running.json"
        self.mark = {_MARK: str(folder)}
        self._entries = self._read()

    def add(self, name: str, pid: int, stop_signal: int, stop_limit: float) -> None:
        """Remember a process that has just been started.

        Args:
            stop_limit: Seconds that it may take to stop before it is killed.
        """
        with suppress(psutil.NoSuchProcess):
            created = psutil.Process(pid).create_time()
            self._entries.append(
                Entry(name=name, pid=pid, created=created, stop_signal=stop_signal, stop_limit=stop_limit)
            )
            self._write()

    def remove(self, pid: int) -> None:
        """Forget a process that has ended."""
        self._entries = [entry for entry in self._entries if entry.pid != pid]
        self._write()

    async def stop_leftovers(self) -> list[str]:
        """Stop what still runs of an earlier run, last started first, and return the names."""
        stopped = []
        for entry in reversed(self._entries):
            if process := entry.process():
                stopped.append(entry.name)
                await _stop(process, entry.stop_signal, entry.stop_limit)
        for process in list(self._marked()):
            await _stop(process, signal.SIGKILL, 0)
        self._entries = []
        self._write()
        return stopped

    def _marked(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().items() >= self.mark.items() and process.pid != os.getpid():
                    yield process

    def _read(self) -> list[Entry]:
        # Written by an older version, or not at all: then there is nothing that we can know to be ours.
        with suppress(FileNotFoundError, msgspec.DecodeError):
            return msgspec.json.decode(self._file.read_bytes(), type=list[Entry])
        return []

    def _write(self) -> None:
        new = self._file.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(self._entries))
        new.replace(self._file)


def _runs(process: psutil.Process) -> bool:
    """Say whether a process runs; one that has ended and waits to be reaped (a zombie) does not."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


async def _stop(process: psutil.Process, stop_signal: int, limit: float) -> None:
    deadline = time.monotonic() + limit
    with suppress(psutil.Error):
        process.send_signal(stop_signal)
        while _runs(process):
            if time.monotonic() > deadline:
                process.kill()
            await asyncio.sleep(0.05)

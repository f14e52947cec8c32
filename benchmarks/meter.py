"""What processes cost: CPU time and memory."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import psutil


class Meter:
    """Reads what the processes of each name have used, their children included."""

    def __init__(self, pids: Mapping[str, Sequence[int]]) -> None:
        """Watch the given processes, and the benchmark itself as `load`."""
        self._processes = {name: [psutil.Process(pid) for pid in of_one] for name, of_one in pids.items()}

    def cpu_seconds(self) -> dict[str, float]:
        """Return the CPU seconds of each so far."""
        cpu = {name: sum(map(_cpu, _trees(processes))) for name, processes in self._processes.items()}
        return cpu | {"load": time.process_time()}

    def resident(self) -> dict[str, int]:
        """Return the bytes of memory that each holds now. What children share is counted once."""
        return {name: sum(map(_resident, _trees(processes))) for name, processes in self._processes.items()}


def ms_per(units: float, before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Return the CPU milliseconds between two readings for each of so many jobs or seconds."""
    return {name: round((after[name] - before[name]) * 1000 / units, 3) for name in after}


def _trees(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    return [part for process in processes for part in (process, *process.children(recursive=True))]


def _cpu(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        # Children that have ended are in their parent's account.
        return float(times.user + times.system + times.children_user + times.children_system)
    return 0.0


def _resident(process: psutil.Process) -> int:
    with suppress(psutil.NoSuchProcess):
        return int(process.memory_full_info().pss)
    return 0

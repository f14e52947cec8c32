"""The clock by which a process knows how long it has been doing something."""

import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_time() -> float:
    """Return seconds since some moment, with those in which the machine was suspended, where the system counts them.

    `time.monotonic` does not count them on Linux, so that a worker on a suspended machine would think itself in time.
    """
    return time.clock_gettime(_CLOCK)

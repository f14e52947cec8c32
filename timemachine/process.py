"""How every program of this project runs its loop, and how it ends."""

import gc
import logging
import os
import sys
from contextlib import suppress
from typing import NoReturn

from timemachine import tracing

if sys.platform == "win32":  # uvloop is not made for it
    from asyncio import run
else:
    import resource

    from uvloop import run

__all__ = ["collect_garbage_seldom", "exit_process", "raise_file_limit", "run"]

NEW_OBJECTS = 5_000
"""Objects more than before that Python's collection of the newest ones waits for, in place of 700."""


def raise_file_limit() -> None:
    """Let this process have as many files and connections open as the system allows it, and not only the usual 1024."""
    if sys.platform == "win32":  # it has no such limit
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS says "unlimited" and takes less
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def collect_garbage_seldom() -> None:
    """Let Python's garbage collection leave out what has been loaded until now, and come later.

    A request makes little garbage that only it could find. To look through all that a program has loaded costs the API
    some hundredths of its CPU.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, *gc.get_threshold()[1:])


def exit_process(status: int) -> NoReturn:
    """End the process at once, after everything has been closed and flushed, the last traces within their time.

    About one process in fifteen that used the Temporal client crashes while the interpreter shuts down
    (temporalio/sdk-python issue 300), which would turn a clean stop into a failure; so the interpreter's own
    shutdown is skipped.
    """
    tracing.stop()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

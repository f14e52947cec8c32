"""Parts that are killed or frozen, with the processes that they have started: Postgres puts its own into groups."""

import signal
from contextlib import suppress

import psutil

from devstack.parts import Part


def tree(part: Part) -> list[psutil.Process]:
    process = psutil.Process(part.pid)
    return [process, *process.children(recursive=True)]


def send(part: Part, how: signal.Signals) -> None:
    for process in tree(part):
        process.send_signal(how)


def kill(*parts: Part) -> None:
    """Kill parts. Some of their processes end by themselves once their parent has."""
    for process in [process for part in parts for process in tree(part)]:
        with suppress(psutil.NoSuchProcess):
            process.kill()

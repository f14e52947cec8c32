"""What `make run` and `make demo` tell the person at the terminal."""

import sys


def say(text: str) -> None:
    """Write a line to standard output at once, also where that is a pipe."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def show(text: str) -> None:
    """Put text in the place of what was shown before, on a terminal; the next line said takes its place."""
    if sys.stdout.isatty():
        sys.stdout.write(f"\r\x1b[K{text}")
        sys.stdout.flush()

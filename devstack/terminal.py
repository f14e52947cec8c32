"""What `make run` and `make demo` tell the person at the terminal."""

import sys


def say(text: str) -> None:
    """Write a line to standard output at once, also where that is a pipe."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()

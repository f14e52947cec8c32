"""Looks for what is secret in whatever the programs write while the tests run."""

import base64
import logging
import re

from timemachine.domain.keys import KEY_PATTERN
from timemachine.telemetry import JsonFormatter

PAYLOAD = "only-the-receiver-reads-this"
"""In the `meta` of the jobs of tests, which is for their receiver only."""

_WEBHOOK_SECRET = re.compile(r"whsec_([A-Za-z0-9+/]{32,}={0,2})")
_OTHERS = re.compile(rf"{KEY_PATTERN}|{PAYLOAD}|[Bb]earer \S+|://[^\s/@]*:[^\s/@*]+@")


def leaks_in(text: str) -> list[str]:
    """Return the secrets of routes, keys of the API, passwords in addresses and payloads that a text has."""
    secrets = [match[0] for match in _WEBHOOK_SECRET.finditer(text) if not _is_example(match[1])]
    return secrets + [match[0] for match in _OTHERS.finditer(text)]


def _is_example(secret: str) -> bool:
    return b"not a real one" in base64.b64decode(secret + "=" * (-len(secret) % 4))


class LogWatch(logging.Handler):
    """Looks into each line of the logs of this process, as a program would write it."""

    def __init__(self) -> None:
        """Begin with none found."""
        super().__init__(logging.INFO)
        self.setFormatter(JsonFormatter())
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Look into a line."""
        self.found += leaks_in(self.format(record))

    def taken(self) -> list[str]:
        """Return what was found since the last time."""
        found, self.found = self.found, []
        return found

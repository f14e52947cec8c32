"""Looks for what is secret in whatever the programs write while the tests run."""

import base64
import binascii
import logging
import re
from urllib.parse import unquote

from timemachine.domain.keys import KEY_PATTERN
from timemachine.telemetry import JsonFormatter

PAYLOAD = "only-the-receiver-reads-this"
"""In the `meta` of the jobs of tests, which is for their receiver only."""

_WEBHOOK_SECRET = re.compile(r"whsec_((?:[A-Za-z0-9+/]|%2[BbFf]){32,}={0,2})")

_PAYLOADS = "|".join([PAYLOAD, *(base64.b64encode(bytes(at) + PAYLOAD.encode())[4:-4].decode() for at in range(3))])
"""In text, and in the base64 of bytes that begin with it or have it anywhere, but for its ends."""

_NO_TOKEN = r"""tokens?(?:\.*[^\w.~+/=%-]|\.*$)|(?:realm|error)=\\*\""""
_TOKEN = rf"""(?i:bearer(?:\s|\+|%20|%09|\\[nt])+\\*["']?(?!{_NO_TOKEN}))[\w.~+/=%-]{{3,}}"""
_PASSWORD = (
    r"""://(?!\[[\da-fA-F:.]+(?:%\w+)?\])[^\s/@:"]{0,200}:(?!\*{3}@|xxxxx@|\d{1,5}[]"'\\?#;,}])[^\s/@]{1,200}@"""
)
_PARAMETER = r"""(?:[?&;]|u0026)password=(?!\*{3}(?![\w*]))[^\s&"'\\]+"""
_OTHERS = re.compile(f"{KEY_PATTERN}|{_PAYLOADS}|{_TOKEN}|{_PASSWORD}|{_PARAMETER}")


def leaks_in(text: str) -> list[str]:
    """Return the secrets of routes, keys of the API, passwords in addresses and payloads that a text has."""
    secrets = [match[0] for match in _WEBHOOK_SECRET.finditer(text) if not _is_example(match[1])]
    return secrets + [match[0] for match in _OTHERS.finditer(text)]


def _is_example(secret: str) -> bool:
    text = unquote(secret).rstrip("=")
    try:
        return b"not a real one" in base64.b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        return False  # cut off


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

"""Links to traces: which requests led to a job, as W3C Trace Context names them."""

import re

MAX_LINKS = 4

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_FLAGS = 0b11
"""Those that are defined: `sampled`, and since level 2 of the standard `random`."""


def read_traceparent(header: str) -> str | None:
    """Return a header `traceparent` in the form of version 00, or None where it is malformed or names no request."""
    found = _TRACEPARENT.fullmatch(header)
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    is_of_version = version != "ff" and not (version == "00" and more)
    if not is_of_version or not trace_id.strip("0") or not span_id.strip("0"):
        return None
    return f"00-{trace_id}-{span_id}-{int(flags, 16) & _FLAGS:02x}"


def trace_id_of(traceparent: str) -> str:
    """Return the id of the trace that a `traceparent` belongs to."""
    return traceparent.split("-")[1]


def with_links(links: tuple[str, ...], newer: tuple[str, ...]) -> tuple[str, ...]:
    """Return a job's links and newer ones, each once: the first, which is its creator's, and of the others the newest.

    A job whose creator had none keeps the first that there was.
    """
    first = (links or newer)[:1]
    older = (link for link in links if link not in newer)
    others = [link for link in (*older, *newer) if link not in first]
    return (*first, *others[1 - MAX_LINKS :])

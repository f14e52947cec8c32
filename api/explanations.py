"""What is wrong with a body or a parameter, in words that say what is expected."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec

from api.schemas import MAX_TIME
from timemachine.domain.events import EventKind
from timemachine.domain.job_filter import ListedState
from timemachine.domain.jobs import to_ms

MAX_EXPLANATION = 300
"""Characters of an explanation; what a client sent may stand in it, and be long."""

TIMES = frozenset({"trigger_time", "deadline", "since", "until", "due_from", "due_to", "expires_at"})
"""Fields and parameters that are a time in milliseconds since the epoch."""

_CHOICES = {
    "type": 'it must be "REST"',
    "kind": "it must be `taken` or `failed`",
    "on": f"it must be a list of one or more of {', '.join(f'`{kind}`' for kind in EventKind)}",
    "force": "it must be `true` or `false`",
    "reason": "it must be a string of at most 200 characters, without the null character",
}


def _one_of(states: Iterable[ListedState]) -> str:
    return f"state: it must be one of {', '.join(f'`{state}`' for state in states)}"


_STATE_IN_BODY = _one_of(state for state in ListedState if state.is_open)
_STATE_IN_QUERY = _one_of(ListedState)

_INTEGER = re.compile(r"-?[0-9]{1,1000}")
"""A number of no more digits than Python reads."""

_AT_FIELD = re.compile(r" - at `\$\.(\w+)(?:\[(?:\.\.\.|\d+)\])?`\Z")


def explain_body(error: Exception, body: bytes) -> str:
    """Return what is wrong with a body that could not be decoded."""
    at = _AT_FIELD.search(str(error))
    if at and at[1] == "state":
        return _STATE_IN_BODY
    return (at and explain(at[1], _given(body, at[1]))) or _short(f"the body is malformed: {error}")


def explain_parameter(name: str, message: str, given: str | None) -> str:
    """Return what is wrong with a parameter of a query, of which the framework gives a message."""
    if name == "state":
        return _STATE_IN_QUERY
    number = int(given) if given and _INTEGER.fullmatch(given) else None
    return explain(name, given if number is None else number) or _short(f"{name}: {message}")


def explain(field: str, given: object) -> str | None:
    """Return what a field takes, where there is more to say than its type.

    Args:
        given: What was sent in its place.
    """
    if field in _CHOICES:
        return f"{field}: {_CHOICES[field]}"
    if field in TIMES:
        if isinstance(given, int) and not isinstance(given, bool):
            return f"{field}: it must be between 0 and {MAX_TIME}, in milliseconds since the epoch"
        return f"{field}: it must be an integer, in milliseconds since the epoch{_as_number(given)}"
    return None


def _as_number(given: object) -> str:
    """Return which number a date in ISO 8601 is; nothing for what is no such date."""
    if not isinstance(given, str) or given.isdecimal():
        return ""
    try:
        at = datetime.fromisoformat(given)
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        return f"; {at.isoformat()} is {to_ms(at)}"
    except (ValueError, OverflowError):
        return ""


def _given(body: bytes, field: str) -> object:
    """Return the value of a field of a body that is JSON, or else None."""
    try:
        return msgspec.json.decode(msgspec.json.decode(body, type=dict[str, msgspec.Raw])[field])
    except (msgspec.DecodeError, KeyError, RecursionError):
        return None


def _short(text: str) -> str:
    return text if len(text) <= MAX_EXPLANATION else text[:MAX_EXPLANATION] + "…"

"""Delivery: what an attempt is given and leaves behind, and how long to wait for the next one."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime

import msgspec

from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.jobs import Job, to_ms
from timemachine.domain.retry import MAX_WAIT, Retry
from timemachine.domain.routes import RouteNews
from timemachine.domain.stored_names import EVENTS_COLLECTION

GONE = 410
THROTTLING = frozenset({429, 502, 504})
EXCERPT = 200
"""Characters of an answer's body that are put into an error."""

SLOWDOWN = 4
"""By how much the wait is longer after an answer, or a silence, that says that the receiver is overloaded."""


class FirstAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """How the attempt within the workflow task ended. Stored in histories: fields may only be added, with defaults."""

    reason: str
    type: str
    """The error's type: `OUTCOME_UNKNOWN` when its end was not known yet."""
    next_at: int
    """When the next attempt may be made, in milliseconds since the epoch."""


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """What the `deliver` activity is asked to do. Stored in histories: fields may only be added, with defaults."""

    job: Job
    message_id: str
    """The `webhook-id`: the same for all attempts, so that the receiver can drop a duplicate."""
    attempts_made: int = msgspec.field(default=0, name="made")
    """Attempts made before this activity was started: the first one, or those before the job was held."""
    first: FirstAttempt | None = None
    """How the first attempt ended, where it did not deliver the job; in runs from before the ledger."""
    run_id: str = ""
    """The first run id of the workflow, by which the ledger knows it."""
    holds: int | None = None
    """Number of the last hold that the workflow knew of when it asked for the attempt. The job may be changed after
    each hold, so an attempt that does not know of the last one sends nothing. None where holds are not counted."""


class AttemptsMade(msgspec.Struct, frozen=True, kw_only=True):
    """How many attempts have reached out to the receiver so far: the activity's heartbeat detail.

    Temporal's own count also holds the runs that never got that far, because Postgres did not answer or the worker
    was killed; they must not use up the receiver's attempts.
    """

    made: int = 0


class HoldReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the error of an attempt carries whose job is to be held: the fields of `Held` of these names.

    Stored in histories: fields may only be added, with defaults.
    """

    attempts_made: int = msgspec.field(default=0, name="made")
    holds: int = 0
    is_over: bool = False


class RequestResult(msgspec.Struct, frozen=True, kw_only=True):
    """How an attempt ended, as far as it decides what comes next."""

    kind: AttemptKind
    status: int | None = None
    retry_after: str | None = None
    """The header's value, as the receiver gave it."""


def wait_after(result: RequestResult, retry: Retry, attempt: int, *, now: datetime, jitter: float) -> timedelta | None:
    """Return how long to wait after a failed attempt, or None when there is to be no other.

    A receiver may ask for a longer wait by `Retry-After`, up to the longest of the schedule, but not for a shorter one:
    proxies send it by themselves, and know nothing of our schedule. One that is overloaded without saying for how long
    is given four times the wait.

    Args:
        attempt: Number of the failed attempt, from 1.
        jitter: Between 0 and 1; adds up to a fifth, so that jobs that failed together do not come back together.
    """
    planned = retry.wait_after(attempt)
    if planned is None or result.status == GONE or result.kind is AttemptKind.BLOCKED:
        return None
    asked = _asked(result.retry_after, now)
    if asked > 0:
        planned = max(planned, asked)
    elif result.status in THROTTLING or result.kind is AttemptKind.TIMEOUT:
        planned *= SLOWDOWN
    return timedelta(seconds=min(planned, retry.longest) * (1 + jitter / 5))


def route_news(result: RequestResult, *, is_failing: bool) -> RouteNews | None:
    """Return what an attempt means for its route, other than one failure more.

    Args:
        is_failing: Whether attempts on the route had failed since the last success, when this one was begun.
    """
    if result.status == GONE:
        return RouteNews.GONE
    return RouteNews.RECOVERED if is_failing and result.kind is AttemptKind.TAKEN else None


def longest_retry_after(headers: Iterable[str], now: datetime) -> str | None:
    """Return, in plain form, the longest wish of an answer's: a proxy on the way may add one to the receiver's own."""
    plain = [wish for header in headers if (wish := plain_retry_after(header))]
    return max(plain, key=lambda wish: _asked(wish, now), default=None)


def plain_retry_after(header: str | None) -> str | None:
    """Return a `Retry-After` in a form of our own: it is kept, and must hold no other text of the receiver's."""
    wish = _read(header or "")
    if isinstance(wish, datetime):
        return format_datetime(wish)
    return None if wish is None else f"{wish:.0f}"


def _asked(retry_after: str | None, now: datetime) -> float:
    """Return the seconds that a `Retry-After` asks for: 0 or less where it is no wish, or over."""
    wish = _read(retry_after or "")
    return (wish - now).total_seconds() if isinstance(wish, datetime) else wish or 0.0


def _read(retry_after: str) -> float | datetime | None:
    """Return a number of seconds, no longer than any wait may be, or a date (RFC 9110, 10.2.3), or None for neither."""
    number = retry_after.strip()
    if number.isascii() and number.isdigit():
        return min(float(number), MAX_WAIT)
    try:
        at = parsedate_to_datetime(retry_after)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def expired(job: Job, at: datetime) -> bool:
    """Return whether a job is no longer worth delivering at a time."""
    return job.deadline is not None and to_ms(at) > job.deadline


def has_lateness(job: Job, number: int) -> bool:
    """Return whether it tells something of the service how late an attempt began.

    Only of a first one. The job of an event is created after its trigger time, and one that is redelivered may have
    been due weeks ago.

    Args:
        number: Of the attempt, from 1.
    """
    return number == 1 and not job.message_id and job.collection != EVENTS_COLLECTION


def attempt_headers(delivery: Delivery, number: int, timestamp: int) -> dict[str, str]:
    """Return the headers of an attempt but for its signature; the `webhook-*` ones as Standard Webhooks 1.0.0 says.

    Args:
        number: Of the attempt, from 1.
        timestamp: Of the attempt, in seconds since the epoch.
    """
    job = delivery.job
    return {
        "content-type": "application/json",
        "webhook-id": delivery.message_id,
        "webhook-timestamp": str(timestamp),
        "timemachine-db": job.db,
        "timemachine-collection": job.collection,
        "timemachine-job-id": job.id,
        "timemachine-trigger-time": str(job.trigger_time),
        "timemachine-attempt": str(number),
    }


def describe(status: int, body: bytes) -> str:
    """Return a refusal as one readable line: the status, then the first characters of the body."""
    excerpt = body.decode("utf-8", "replace")[:EXCERPT].strip()
    return f"{status} from the receiver: {excerpt}" if excerpt else f"{status} from the receiver"


def without(body: bytes, secrets: Iterable[str]) -> bytes:
    """Return what is kept of an answer's body: nothing, where the request had values of extra headers.

    A receiver may echo them to whoever reads the log: whole or in part, in other case, escaped for JSON, HTML or a URL,
    decoded from base64. To find every form is not possible; to keep nothing is.
    """
    return b"" if any(secrets) else body

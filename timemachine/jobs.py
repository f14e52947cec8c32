"""Jobs: what a client asks for, its identity in Temporal, and the rules it must keep. Pure."""

import hashlib
import re
from datetime import UTC, datetime, timedelta

import msgspec

from timemachine.errors import ForbiddenNameError, MalformedError, TooLargeError, TriggerTimeError
from timemachine.retry import Retry

MAX_NAME = 64
MAX_JOB_ID = 120
MAX_META_BYTES = 256 * 1024
MAX_META_DEPTH = 128
MAX_FAIRNESS_KEY = 64
PAST_GRACE = timedelta(seconds=60)
FAR_LIMIT = timedelta(days=36_500)

NAME_PATTERN = r"^(?!\.{1,2}$)[A-Za-z0-9_.:~@+-]+$"

_NAME = re.compile(NAME_PATTERN.removesuffix("$") + r"\Z")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_BRACKET = re.compile(rb"[\[\]{}]")

# Values between these are times from 2001 to 2286 in seconds; in milliseconds they would lie in early 1970.
_SECONDS_FROM, _SECONDS_TO = 1_000_000_000, 10_000_000_000


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One call to be made once, at a time.

    Stored in Temporal's histories, which outlive this code: fields may only be added, with defaults.
    """

    db: str
    collection: str
    id: str
    trigger_time: int
    """Milliseconds since the epoch."""
    route: str
    meta: msgspec.Raw
    """Any JSON value, byte for byte as the client wrote it."""
    retry: Retry | None = None
    """The job's own retry, in place of its route's."""
    deadline: int | None = None
    """Milliseconds since the epoch after which the job is no longer worth delivering."""
    message_id: str | None = None
    """The `webhook-id` of an earlier run that this one delivers once more; a new one without it."""
    at_once: bool = False
    """Whether the first attempt is made within the workflow task. Set at the start of a run, for all that it does; runs
    from before there was such an attempt are without it."""
    made: int = 0
    """Attempts made in the runs that this one continues with a short history."""
    ledger: bool = False
    """Whether the ledger decides what becomes of the run. Set at its start; runs from before the ledger are without."""

    @property
    def workflow_id(self) -> str:
        """The id of the workflow that is this job."""
        return workflow_id(self.db, self.collection, self.id)

    @property
    def trigger_at(self) -> datetime:
        """The trigger time as an aware datetime."""
        return from_ms(self.trigger_time)

    @property
    def route_key(self) -> str:
        """The route's name across databases, as the search attribute holds it."""
        return f"{self.db}/{self.route}"

    @property
    def fairness_key(self) -> str:
        """What Temporal shares its turns by: one key per route, of at most 64 bytes."""
        key = self.route_key
        return key if len(key) <= MAX_FAIRNESS_KEY else hashlib.blake2b(key.encode(), digest_size=32).hexdigest()


def workflow_id(db: str, collection: str, job_id: str) -> str:
    """Return the Temporal workflow id of a job: at most 250 characters, below the 255 that visibility stores take."""
    return f"{db}/{collection}/{job_id}"


def split_workflow_id(workflow_id: str) -> tuple[str, str, str]:
    """Return the db, collection and id of a job's workflow id; none of them holds a slash."""
    db, collection, job_id = workflow_id.split("/")
    return db, collection, job_id


def message_id(first_run_id: str) -> str:
    """Return the `webhook-id` of a job's deliveries: that of the run that it was created as, without a dot in it."""
    return f"msg_{first_run_id.replace('-', '')}"


def from_ms(ms: int) -> datetime:
    """Return the aware UTC datetime of a number of milliseconds since the epoch, exactly."""
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=ms)


def to_ms(at: datetime) -> int:
    """Return an aware datetime as whole milliseconds since the epoch, rounded down."""
    return (at - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1)


def check_name(kind: str, name: str, *, limit: int = MAX_NAME) -> None:
    """Refuse a db, collection, route or job name that could not stand in a path or a workflow id.

    Raises:
        ForbiddenNameError: Empty, longer than `limit`, `.` or `..`, or with other characters than `A-Za-z0-9_-.:~@+`.
    """
    if len(name) > limit:
        raise ForbiddenNameError(f"{kind}: at most {limit} characters are allowed, this has {len(name)}")
    if not _NAME.match(name):
        raise ForbiddenNameError(
            f"{kind}: a name needs 1 to {limit} characters of A-Z a-z 0-9 _ - . : ~ @ + and must not be . or .."
        )


def check_not_too_far(time: int, now: datetime, *, field: str = "trigger_time") -> None:
    """Refuse a time beyond the far limit.

    Raises:
        TriggerTimeError: More than 100 years (36,500 days) ahead.
    """
    if time > to_ms(now + FAR_LIMIT):
        raise TriggerTimeError(f"{field}: more than 100 years in the future; it is in milliseconds since the epoch")


def check_not_past(trigger_time: int, now: datetime) -> None:
    """Refuse a trigger time that is past. Up to a minute is let through, because clocks differ.

    Raises:
        TriggerTimeError: More than 60 s in the past; the message says so when the value looks like seconds.
    """
    if trigger_time >= to_ms(now - PAST_GRACE):
        return
    if _SECONDS_FROM <= trigger_time <= _SECONDS_TO:
        raise TriggerTimeError("trigger_time: this looks like seconds; it must be in milliseconds since the epoch")
    raise TriggerTimeError("trigger_time: more than 60 seconds in the past")


def check_meta(meta: bytes) -> None:
    """Refuse a meta that is too large, or nested so deeply that a JSON parser down the line could give up on it.

    Raises:
        TooLargeError: More than 256 KiB.
        MalformedError: Nested more than 128 levels deep.
    """
    if len(meta) > MAX_META_BYTES:
        raise TooLargeError(f"meta: at most {MAX_META_BYTES} bytes are allowed, this has {len(meta)}")
    if meta.count(b"[") + meta.count(b"{") > MAX_META_DEPTH and _depth(meta) > MAX_META_DEPTH:
        raise MalformedError(f"meta: nested more than {MAX_META_DEPTH} levels deep")


def _depth(document: bytes) -> int:
    """Return how deeply a well-formed JSON document is nested."""
    depth = deepest = 0
    for bracket in _BRACKET.finditer(_STRING.sub(b"", document)):
        depth += 1 if bracket[0] in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest

"""Jobs: what a client asks for, its identity in Temporal, and the rules it must keep."""

import hashlib
import operator
import re
from datetime import UTC, datetime, timedelta
from itertools import accumulate

import msgspec

from timemachine.domain.errors import ForbiddenNameError, MalformedError, TooLargeError, TriggerTimeError
from timemachine.domain.retry import Retry
from timemachine.domain.stored_names import EVENTS_COLLECTION

EPOCH = datetime.fromtimestamp(0, UTC)

MAX_NAME = 64
MAX_JOB_ID = 120
MAX_META_BYTES = 256 * 1024
MAX_META_DEPTH = 128
MAX_FAIRNESS_KEY = 64
MAX_LABELS = 8
MAX_LABEL = 64
# Temporal's stores of visibility in SQL do not find quotes and backslashes, which they escape as the databases do not.
# The one in SQLite takes a heart for the end of a label, those in PostgreSQL and MySQL a question mark for the place of
# a value (decision 24).
UNSEARCHABLE = frozenset("'\"\\?\u2661")
PAST_GRACE = timedelta(seconds=60)
FAR_LIMIT = timedelta(days=36_500)
HISTORY_LIMIT = 500
"""Events of its history after which a job goes on as a new run: some 70 changes. A worker that does not have the job in
its cache has to replay all of them within one workflow task (decision 27)."""

NAME_PATTERN = r"^(?!\.{1,2}$)[A-Za-z0-9_.:~@+-]+$"

_NAME = re.compile(NAME_PATTERN.removesuffix("$") + r"\Z")

# A bit for each bracket, 1 where one opens. Of a byte, which is eight of them, the tables say by how much the nesting
# is deeper after it (in two's complement), and by how much at its deepest.
_AS_BITS = bytes.maketrans(b"[{]}", b"1100")
_NO_BRACKET = bytes(set(range(256)) - set(b'[]{}"'))
_DEEPER = bytes((2 * eight.bit_count() - 8) & 0xFF for eight in range(256))
_DEEPEST = bytes(
    max(accumulate((1 if bit == "1" else -1 for bit in f"{eight:08b}"), initial=0)) for eight in range(256)
)

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
    attempt_in_task: bool = msgspec.field(default=False, name="at_once")
    """Whether the first attempt is made within the workflow task. Set at the start of a run, for all that it does; runs
    from before there was such an attempt are without it."""
    attempts_made: int = msgspec.field(default=0, name="made")
    """Attempts made in the runs that this one continues with a short history."""
    ledger: bool = False
    """Whether the ledger decides what becomes of the run. Set at its start; runs from before the ledger are without."""
    labels: tuple[str, ...] = ()
    """What the client finds the job by, beside its names: up to 8 of up to 64 characters, each once."""
    planned_time: int | None = None
    """The trigger time that was asked for, of a job that was triggered before it; None when it never was."""
    history_limit: int = 0
    """Events of its history after which the job goes on as a new run, unless Temporal suggests that earlier. Set at its
    start and by each change, and stored, so that a later version's limit does not change what a replay does; 0, in
    older runs, leaves it to Temporal alone."""
    hold_checks: int = 0
    """Looks at its paused route that a held job has made in the runs that this one continues."""
    trace_links: tuple[str, ...] = ()
    """The `traceparent` of the request that created the job, and of the last ones that changed it or had it sent, as
    `traces.with_links` keeps them. Of a change, that of its own request."""

    @property
    def workflow_id(self) -> str:
        """The id of the workflow that is this job."""
        return workflow_id(self.db, self.collection, self.id)

    @property
    def trigger_at(self) -> datetime:
        """The trigger time as an aware datetime."""
        return from_ms(self.trigger_time)

    @property
    def as_asked(self) -> "Job":
        """The job as a client asks for it, without what the service adds."""
        return msgspec.structs.replace(
            self,
            message_id=None,
            attempt_in_task=False,
            attempts_made=0,
            ledger=False,
            planned_time=None,
            history_limit=0,
            hold_checks=0,
            trace_links=(),
        )

    @property
    def as_planned(self) -> "Job":
        """The same, at the time that it had before it was triggered."""
        planned = self.trigger_time if self.planned_time is None else self.planned_time
        return msgspec.structs.replace(self.as_asked, trigger_time=planned)

    @property
    def with_history_limit(self) -> "Job":
        """The job with the limit that holds today, as it is handed to Temporal."""
        return msgspec.structs.replace(self, history_limit=HISTORY_LIMIT)

    @property
    def route_key(self) -> str:
        """The route's name across databases, as the search attribute holds it."""
        return f"{self.db}/{self.route}"

    @property
    def collection_key(self) -> str:
        """The collection's name across databases, as the search attribute holds it."""
        return f"{self.db}/{self.collection}"

    @property
    def log_fields(self) -> dict[str, str]:
        """The fields of a log line by which operators find the job."""
        return {"db": self.db, "collection": self.collection, "job_id": self.id, "route": self.route}

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


def log_fields_of(workflow_id: str) -> dict[str, str]:
    """Return the fields of a log line by which operators find the job of a workflow."""
    return dict(zip(("db", "collection", "job_id"), split_workflow_id(workflow_id), strict=True))


def message_id(first_run_id: str) -> str:
    """Return the `webhook-id` of a job's deliveries: that of the run that it was created as, without a dot in it."""
    return f"msg_{first_run_id.replace('-', '')}"


def from_ms(ms: int) -> datetime:
    """Return the aware UTC datetime of a number of milliseconds since the epoch, exactly."""
    return EPOCH + timedelta(milliseconds=ms)


def to_ms(at: datetime) -> int:
    """Return an aware datetime as whole milliseconds since the epoch, rounded down."""
    return (at - EPOCH) // timedelta(milliseconds=1)


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


def check_not_past(trigger_time: int, now: datetime, *, deadline: int | None = None) -> None:
    """Refuse a job whose time is past. Up to a minute is let through, because clocks differ; of the deadline nothing.

    Raises:
        TriggerTimeError: More than 60 s in the past, or after the deadline; the message says so when the value looks
            like seconds.
    """
    if trigger_time < to_ms(now - PAST_GRACE):
        _check_not_seconds("trigger_time", trigger_time)
        raise TriggerTimeError("trigger_time: more than 60 seconds in the past")
    if deadline is not None and deadline <= to_ms(now):
        raise TriggerTimeError("deadline: it is past already")


def check_deadline(deadline: int, trigger_time: int, now: datetime) -> None:
    """Refuse a deadline that would let no attempt be made, whenever the job is due.

    Raises:
        TriggerTimeError: Not after the trigger time, or beyond the far limit; the message says so when the value looks
            like seconds.
    """
    check_not_too_far(deadline, now, field="deadline")
    if deadline <= trigger_time:
        _check_not_seconds("deadline", deadline)
        raise TriggerTimeError("deadline: it must be after trigger_time")


def looks_like_seconds(time: int) -> bool:
    """Return whether a time in milliseconds since the epoch was rather meant in seconds."""
    return _SECONDS_FROM <= time <= _SECONDS_TO


def seconds_given(field: str) -> str:
    """Return the sentence for a time that looks like seconds."""
    return f"{field}: this looks like seconds; it must be in milliseconds since the epoch"


def _check_not_seconds(field: str, time: int) -> None:
    if looks_like_seconds(time):
        raise TriggerTimeError(seconds_given(field))


def check_job(job: Job, now: datetime) -> None:
    """Refuse what no job may be, whenever it is due.

    Raises:
        ForbiddenNameError, TriggerTimeError, MalformedError, TooLargeError: The job is not allowed.
    """
    check_name("route", job.route)
    check_key(job.db, job.collection, job.id)
    check_not_reserved(job.collection)
    check_not_too_far(job.trigger_time, now)
    check_meta(bytes(job.meta))
    check_labels(job.labels)
    if job.deadline is not None:
        check_deadline(job.deadline, job.trigger_time, now)


def check_labels(labels: tuple[str, ...]) -> None:
    """Refuse labels that visibility could not hold, or that a client could not tell apart.

    Raises:
        MalformedError: More than 8, one twice, or one that is not allowed by itself.
    """
    if len(labels) > MAX_LABELS:
        raise MalformedError(f"labels: at most {MAX_LABELS} are allowed, these are {len(labels)}")
    if len(set(labels)) < len(labels):
        raise MalformedError("labels: each is allowed once")
    for label in labels:
        check_label("labels", label)


def check_label(field: str, label: str) -> None:
    """Refuse a label that no query could find.

    Raises:
        MalformedError: Empty, longer than 64 characters, or with a character that cannot be printed, a quote, a
            backslash, a question mark, a heart (U+2661) or a blank at an end.
    """
    if not 0 < len(label) <= MAX_LABEL or not label.isprintable() or label != label.strip():
        raise MalformedError(f"{field}: each needs 1 to {MAX_LABEL} printable characters, without a blank at its ends")
    if not UNSEARCHABLE.isdisjoint(label):
        raise MalformedError(f"{field}: quotes, backslashes, question marks and \u2661 are not allowed")


def check_key(db: str, collection: str, job_id: str) -> str:
    """Return the workflow id of a job whose names are allowed.

    Raises:
        ForbiddenNameError: One of them is not.
    """
    check_name("db", db)
    check_name("collection", collection)
    check_name("id", job_id, limit=MAX_JOB_ID)
    return workflow_id(db, collection, job_id)


def check_not_reserved(collection: str) -> None:
    """Refuse a collection that is for jobs of the service itself, so that a receiver can tell them by it.

    Raises:
        ForbiddenNameError: It is that of events.
    """
    if collection == EVENTS_COLLECTION:
        raise ForbiddenNameError(f"collection: {EVENTS_COLLECTION} is reserved for events")


def check_meta(meta: bytes) -> None:
    """Refuse a meta that is too large, or nested so deeply that a JSON parser down the line could give up on it.

    Raises:
        TooLargeError: More than 256 KiB.
        MalformedError: Nested more than 128 levels deep.
    """
    if len(meta) > MAX_META_BYTES:
        raise TooLargeError(f"meta: at most {MAX_META_BYTES} bytes are allowed, this has {len(meta)}")
    # Each level needs a bracket, and most documents have fewer of them than levels are allowed.
    if meta.count(b"{") + meta.count(b"[") > MAX_META_DEPTH and _depth(meta) > MAX_META_DEPTH:
        raise MalformedError(f"meta: nested more than {MAX_META_DEPTH} levels deep")


def _depth(document: bytes) -> int:
    """Return how deeply a well-formed JSON document is nested.

    Any document of the allowed size takes a few milliseconds: everything but the last step over a byte for eight
    brackets is done by a handful of passes that Python makes in C.
    """
    brackets = _brackets(document)
    brackets += b"0" * (-len(brackets) % 8)
    eights = int(brackets or b"0", 2).to_bytes(len(brackets) // 8)
    depth_before = accumulate(memoryview(eights.translate(_DEEPER)).cast("b"), initial=0)
    return max(map(operator.add, depth_before, eights.translate(_DEEPEST)), default=0)


def _brackets(document: bytes) -> bytes:
    """Return the brackets of a well-formed JSON document without those in its strings: 1 where one opens, else 0."""
    if b"\\" in document:
        document = document.replace(b"\\\\", b"").replace(b'\\"', b"")
    kept = document.translate(_AS_BITS, _NO_BRACKET)
    # Where a string ends and the next begins with no bracket between, the two are as good as one.
    return b"".join(kept.replace(b'""', b"").split(b'"')[::2])

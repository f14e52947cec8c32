"""Events: what has happened to jobs and routes, sent to a route of their db as jobs of their own.

A db says which of them it asks for, and where they go. There are none about that route and the jobs on it, nor about
the jobs that send events: else the failure of an event would be another one to send.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.delivery import describe
from timemachine.domain.errors import MalformedError
from timemachine.domain.jobs import Job, to_ms
from timemachine.domain.outcomes import AttemptResult
from timemachine.domain.stored_names import EVENTS_COLLECTION


# Stored: values are not to be changed.
class EventKind(StrEnum):
    """What has happened."""

    JOB_FAILED = "job.failed"
    JOB_DELIVERED = "job.delivered"
    ROUTE_DISABLED = "route.disabled"
    ROUTE_RECOVERED = "route.recovered"


class EventSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Which events a db asks for."""

    route_id: str
    """Where they go."""
    kinds: tuple[EventKind, ...]


class JobFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What an event tells of a job, beside its end. Stored in Postgres: fields may only be added, with defaults."""

    db: str
    collection: str
    id: str
    trigger_time: int
    """Milliseconds since the epoch."""
    route: str

    @property
    def is_of_event(self) -> bool:
        """Whether the job sends an event, so that there are none about it."""
        return self.collection == EVENTS_COLLECTION


class JobEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How a job has ended. Stored in Postgres: fields may only be added, with defaults."""

    job: JobFacts
    attempts: int
    """Attempts whose end is known."""
    outcome: AttemptResult
    """How the last attempt ended."""


# Stored: values are not to be changed.
class RecoveredBy(StrEnum):
    """What has made a route recover: its receiver took a job, or somebody resumed it."""

    SUCCESS = "success"
    RESUME = "resume"


Db = Annotated[str, Meta(description="The db.", examples=["arena"])]
RouteId = Annotated[str, Meta(description="The route's id.", examples=["gameServer"])]


class _JobData(msgspec.Struct, frozen=True, kw_only=True):
    db: Db
    collection: Annotated[str, Meta(description="The job's collection.", examples=["timeouts"])]
    id: Annotated[str, Meta(description="The job's id.", examples=["nxz123bnj"])]
    trigger_time: Annotated[int, Meta(description="When the job was due, in milliseconds since the epoch.")]
    route: RouteId
    attempts: Annotated[int, Meta(description="Attempts that were sent and have ended.", examples=[13])]
    status: (
        Annotated[int, Meta(description="HTTP status of the last answer, where there was one.", examples=[500])]
        | UnsetType
    ) = UNSET


class JobFailed(_JobData, frozen=True, kw_only=True):
    """A job that has failed for good."""

    kind: Annotated[AttemptKind, Meta(description="How the last attempt ended, or why there was none.")]
    last_error: Annotated[
        str, Meta(description="The reason, as GET of the job shows it, but without the text of an answer.")
    ]


class JobDelivered(_JobData, frozen=True, kw_only=True):
    """A job that its receiver took."""

    delivered_at: Annotated[int, Meta(description="When the receiver took it, in milliseconds since the epoch.")]


class RouteDisabled(msgspec.Struct, frozen=True, kw_only=True):
    """A route that was disabled because of its failures, or because its receiver answered 410.

    Stored in Postgres: fields may only be added, with defaults.
    """

    db: Db
    route: RouteId
    reason: Annotated[
        str, Meta(description="Why, as GET of the route shows it.", examples=["the receiver answered 410 Gone"])
    ]


class RouteRecovered(msgspec.Struct, frozen=True, kw_only=True):
    """A route that was disabled, or failed, and is neither any more.

    Stored in Postgres: fields may only be added, with defaults.
    """

    db: Db
    route: RouteId
    by: Annotated[RecoveredBy, Meta(description="Whether its receiver took a job, or somebody resumed it.")]
    since: Annotated[int, Meta(description="When it began to fail, or was disabled, in milliseconds since the epoch.")]


EventData = JobFailed | JobDelivered | RouteDisabled | RouteRecovered

DATA_OF: Mapping[EventKind, type[EventData]] = {
    EventKind.JOB_FAILED: JobFailed,
    EventKind.JOB_DELIVERED: JobDelivered,
    EventKind.ROUTE_DISABLED: RouteDisabled,
    EventKind.ROUTE_RECOVERED: RouteRecovered,
}
"""What each kind of event tells."""


class EventBody(msgspec.Struct, frozen=True, kw_only=True):
    """What the receiver of an event gets: the form that Standard Webhooks recommends."""

    type: EventKind
    timestamp: str
    """When it happened, in ISO 8601."""
    data: EventData


class WaitingEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event that is not sent yet."""

    id: UUID
    db: str
    kind: str
    """An `EventKind`, or one of a later version."""
    what: bytes
    """JSON, of a form that the kind says."""
    at: datetime
    """When it happened, by the clock of Postgres."""
    route_id: str | None
    """Where the events of its db go now; None where it asks for none any more."""


def facts_of(job: Job) -> JobFacts:
    """Return what events tell of a job, beside its end."""
    return JobFacts(db=job.db, collection=job.collection, id=job.id, trigger_time=job.trigger_time, route=job.route)


def check_kinds(kinds: Sequence[EventKind]) -> None:
    """Refuse a choice of events that says one thing twice.

    Raises:
        MalformedError: It does.
    """
    if len(set(kinds)) < len(kinds):
        raise MalformedError("on: each is allowed once")


def event_job(event: WaitingEvent, route_id: str) -> Job:
    """Return the job that sends an event. Whoever makes it, and how often, it is one job.

    Raises:
        ValueError, msgspec.ValidationError: The event is one of a later version.
    """
    kind = EventKind(event.kind)
    body = EventBody(
        type=kind,
        timestamp=event.at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        data=_data(kind, event.what),
    )
    return Job(
        db=event.db,
        collection=EVENTS_COLLECTION,
        id=str(event.id),
        trigger_time=to_ms(event.at),
        route=route_id,
        meta=Raw(msgspec.json.encode(body)),
    )


def _data(kind: EventKind, what: bytes) -> EventData:
    """Return what an event tells, from what Postgres has of it.

    Raises:
        msgspec.ValidationError: A later version has written it.
    """
    if kind in (EventKind.ROUTE_DISABLED, EventKind.ROUTE_RECOVERED):
        return msgspec.json.decode(what, type=DATA_OF[kind])
    end = msgspec.json.decode(what, type=JobEnd)
    job, outcome = msgspec.structs.asdict(end.job), end.outcome
    status = UNSET if outcome.status is None else outcome.status
    if kind is EventKind.JOB_DELIVERED:
        return JobDelivered(**job, attempts=outcome.number, status=status, delivered_at=outcome.ended_at)
    # The text of an answer may repeat the job's meta, or what the receiver keeps secret.
    reason = describe(outcome.status, b"") if outcome.status is not None else outcome.reason or "not delivered"
    return JobFailed(**job, attempts=end.attempts, status=status, kind=outcome.kind, last_error=reason)

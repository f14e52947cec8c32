"""Which jobs of a db are meant: the filter that lists, counts and cancels of many share."""

from enum import StrEnum

import msgspec

from timemachine.domain.errors import MalformedError
from timemachine.domain.jobs import (
    MAX_JOB_ID,
    MAX_NAME,
    check_label,
    check_name,
    looks_like_seconds,
    seconds_given,
    workflow_id,
)
from timemachine.domain.outcomes import RowState


class ListedState(StrEnum):
    """State of a job as lists know it: of one that is not on its way any more it is the job's own."""

    SCHEDULED = "scheduled"
    DUE = "due"
    HELD = "held"
    DELIVERED = "delivered"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_open(self) -> bool:
        """Whether the job has not ended."""
        return self in (ListedState.SCHEDULED, ListedState.DUE, ListedState.HELD)


DECIDED_AS = {
    RowState.TAKEN: ListedState.DELIVERED,
    RowState.FAILED: ListedState.FAILED,
    RowState.CANCELLED: ListedState.CANCELLED,
}
"""State of a job that the ledger has decided."""


class ListedJob(msgspec.Struct, frozen=True, kw_only=True):
    """A run of a job as visibility knows it, without its `meta`. Times are milliseconds since the epoch."""

    db: str
    collection: str
    id: str
    run_id: str
    trigger_time: int
    route: str
    state: ListedState
    labels: tuple[str, ...] = ()
    created_by: str | None = None
    created_at: int
    ended_at: int | None = None

    @property
    def workflow_id(self) -> str:
        """The id of the job's workflow, which all its runs share."""
        return workflow_id(self.db, self.collection, self.id)


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    """What jobs must have in common, all of it at a time; what is left out may be anything.

    Stored in histories: fields may only be added, with defaults.

    Raises:
        ForbiddenNameError, MalformedError: A name or a label is not allowed, a window of time is empty or looks like
            seconds, or there is an id prefix without a collection.
    """

    db: str
    collection: str | None = None
    state: ListedState | None = None
    route: str | None = None
    label: str | None = None
    id_prefix: str | None = None
    due_from: int | None = None
    """Milliseconds since the epoch."""
    due_to: int | None = None
    """Milliseconds since the epoch; it is not part of the window."""
    created_by: str | None = None
    ended_from: int | None = None
    """Milliseconds since the epoch."""
    ended_to: int | None = None
    """Milliseconds since the epoch; it is not part of the window."""

    def __post_init__(self) -> None:
        """Refuse what is not allowed."""
        for kind, name, limit in (
            ("db", self.db, MAX_NAME),
            ("collection", self.collection, MAX_NAME),
            ("route", self.route, MAX_NAME),
            ("created_by", self.created_by, MAX_NAME),
            ("id_prefix", self.id_prefix, MAX_JOB_ID),
        ):
            if name is not None:
                check_name(kind, name, limit=limit)
        if self.label is not None:
            check_label("label", self.label)
        if self.id_prefix is not None and self.collection is None:
            raise MalformedError("id_prefix: it needs a collection, within which ids are")
        _check_window("due_from", self.due_from, "due_to", self.due_to)
        _check_window("ended_from", self.ended_from, "ended_to", self.ended_to)

    @property
    def route_key(self) -> str | None:
        """The route's name across databases, as the search attribute holds it."""
        return None if self.route is None else f"{self.db}/{self.route}"

    @property
    def collection_key(self) -> str | None:
        """The collection's name across databases, as the search attribute holds it."""
        return None if self.collection is None else f"{self.db}/{self.collection}"

    def includes(self, job: ListedJob) -> bool:
        """Return whether a job is meant, exact to the letter: not every store of visibility tells `a` from `A`."""
        return (
            job.db == self.db
            and self.collection in (None, job.collection)
            and self.state in (None, job.state)
            and self.route in (None, job.route)
            and (self.label is None or self.label in job.labels)
            and job.id.startswith(self.id_prefix or "")
            and self.created_by in (None, job.created_by)
            and _is_within(job.trigger_time, self.due_from, self.due_to)
            and _is_within(job.ended_at, self.ended_from, self.ended_to)
        )


def _is_within(time: int | None, since: int | None, until: int | None) -> bool:
    if time is None:
        return since is None and until is None
    return (since is None or time >= since) and (until is None or time < until)


def _check_window(since_name: str, since: int | None, until_name: str, until: int | None) -> None:
    for name, time in ((since_name, since), (until_name, until)):
        if time is not None and looks_like_seconds(time):
            raise MalformedError(seconds_given(name))
    if since is not None and until is not None and since >= until:
        raise MalformedError(f"{since_name}: it must be before `{until_name}`")

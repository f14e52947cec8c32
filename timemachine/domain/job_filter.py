"""Which jobs of a db are meant: the filter that lists, counts and cancels of many share."""

from enum import StrEnum

import msgspec

from timemachine.domain.jobs import MAX_JOB_ID, check_labels, check_name


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


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    """What jobs must have in common, all of it at a time; what is left out may be anything.

    Stored in histories: fields may only be added, with defaults.

    Raises:
        ForbiddenNameError, MalformedError: A name or a label is not allowed.
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

    def __post_init__(self) -> None:
        """Refuse names and labels that are not allowed."""
        for kind, name, limit in (
            ("db", self.db, None),
            ("collection", self.collection, None),
            ("route", self.route, None),
            ("created_by", self.created_by, None),
            ("id_prefix", self.id_prefix, MAX_JOB_ID),
        ):
            if name is not None:
                check_name(kind, name, **({"limit": limit} if limit else {}))
        if self.label is not None:
            check_labels((self.label,))

    def includes(self, job: ListedJob) -> bool:
        """Return whether a job is meant, exact to the letter: not every store of visibility tells `a` from `A`."""
        return (
            job.db == self.db
            and self.collection in (None, job.collection)
            and self.state in (None, job.state)
            and self.route in (None, job.route)
            and (self.label is None or self.label in job.labels)
            and job.id.startswith(self.id_prefix or "")
            and (self.due_from is None or job.trigger_time >= self.due_from)
            and (self.due_to is None or job.trigger_time < self.due_to)
            and self.created_by in (None, job.created_by)
        )

"""Redelivery of many: which failed jobs of a route are delivered once more, and how far that is."""

from datetime import datetime

import msgspec

from timemachine.domain.job_filter import JobFilter, ListedState
from timemachine.domain.operations import Counts, OperationKey, OperationKind


class FailedJobs(msgspec.Struct, frozen=True, kw_only=True):
    """The jobs of a route that failed within a window of time. Stored in histories: fields may only be added."""

    db: str
    route_id: str
    since: int
    """Milliseconds since the epoch."""
    until: int
    """Milliseconds since the epoch; it is not part of the window."""

    @property
    def id(self) -> str:
        """The name of this redelivery among those of the route: asking for the same one twice gives it once."""
        return f"{self.since}-{self.until}"

    @property
    def filter(self) -> JobFilter:
        """Which jobs are meant."""
        return JobFilter(
            db=self.db,
            route=self.route_id,
            state=ListedState.FAILED,
            ended_from=self.since or None,
            ended_to=self.until,
        )


class StoppedRedelivery(msgspec.Struct, frozen=True, kw_only=True):
    """A redelivery whose activity could not say how far it came. Stored in histories: fields may only be added."""

    failed: FailedJobs
    started_at: datetime
    """By Temporal's clock."""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a redelivery is. Stored in histories: fields may only be added, with defaults."""

    found: int = 0
    """Failures within the window, as they were counted at the start."""
    started: int = 0
    """Jobs that are delivered once more."""
    skipped: int = 0
    """Jobs left alone: something else has happened to them since they failed, or their deadline has passed."""
    stopped: bool = False
    """Whether it ended before all were looked at."""

    @property
    def counts(self) -> Counts:
        """As operations show it."""
        return Counts(matched=self.found, done=self.started, failed=self.skipped, stopped=self.stopped)


def furthest(one: Progress, other: Progress) -> Progress:
    """Return which of two has come further. A page that is gone through once more is counted from its start again."""
    return max(one, other, key=lambda progress: progress.started + progress.skipped)


class PageStart(msgspec.Struct, frozen=True, kw_only=True):
    """Where a redelivery goes on after its worker's death: at the beginning of the page that it worked on.

    Stored as a heartbeat's second detail, after the progress: fields may only be added, with defaults.
    """

    token: bytes
    """Temporal's token of the page; empty for the first one."""
    progress: Progress


def redelivery_key(db: str, route_id: str, redelivery_id: str) -> OperationKey:
    """Return what there is one redelivery of at a time: the same jobs."""
    return OperationKey(kind=OperationKind.REDELIVERY, db=db, name=f"{route_id}/{redelivery_id}")

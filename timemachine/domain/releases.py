"""The release of the jobs that a paused or disabled route has held."""

from datetime import datetime, timedelta

import msgspec

from timemachine.domain.jobs import Job, from_ms
from timemachine.domain.operations import Counts, OperationKey, OperationKind

HOLD_CHECKS = (
    timedelta(seconds=10),
    timedelta(minutes=2),
    timedelta(minutes=20),
    timedelta(hours=4),
    timedelta(days=1),
)
"""Times after which a held job checks its route by itself, the last one for ever. It may have been held just as the
others were released, and a missed signal must not lose it. A time that is made longer is made so by more than the
workflow's `CLOCK_STEP`, or held jobs do not replay."""

BEFORE_DEADLINE = timedelta(seconds=10)
"""Time that a released job has for its first attempt, if it has a deadline."""


def release_window(job: Job, now: datetime, spread: float) -> timedelta:
    """Return the time within which a held job is released: `spread` seconds, or less in time for its deadline."""
    asked = timedelta(seconds=spread)
    if job.deadline is None:
        return asked
    return max(timedelta(0), min(asked, from_ms(job.deadline) - BEFORE_DEADLINE - now))


class ReleaseHeld(msgspec.Struct, frozen=True, kw_only=True):
    """Whose held jobs are released. Stored in histories: fields may only be added, with defaults."""

    db: str
    route_id: str
    spread: float = 0.0
    """Seconds over which the jobs are spread, each at a moment of its own."""
    all_due: bool = False
    """Whether all that are due and have not ended are told, those that wait for their moment since an earlier release
    too. A job that is not held takes no notice."""
    told: int = 0
    """Jobs that were told in the looks before."""

    @property
    def key(self) -> OperationKey:
        """What there is one release of at a time: the route."""
        return OperationKey(kind=OperationKind.RELEASE, db=self.db, name=self.route_id)

    @property
    def route_key(self) -> str:
        """The route's name across databases, as the search attribute holds it."""
        return f"{self.db}/{self.route_id}"


class Released(msgspec.Struct, frozen=True, kw_only=True):
    """What one look at the held jobs came to, and how far it is: the activity's heartbeat detail and its result.

    Stored in histories: fields may only be added, with defaults.
    """

    signalled: int = 0
    stopped: bool = False
    """The route is held again, so that there is nothing more to do."""
    token: bytes = b""
    """Temporal's token of the page that is being worked on."""
    found: int = 0
    """Jobs to be told, as they were counted at the start of the look."""
    told: int = 0
    """Jobs that were told in the looks before."""

    @property
    def counts(self) -> Counts:
        """As operations show it. A job that is held again is another one."""
        matched = self.told + max(self.found, self.signalled)
        return Counts(matched=matched, done=self.told + self.signalled, stopped=self.stopped)

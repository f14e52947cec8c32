"""Outcomes: what an attempt, or a cancel, came to. Values, which activities return and the workflow matches."""

from datetime import datetime, timedelta
from enum import StrEnum

import msgspec

from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.jobs import from_ms


class Delivered(msgspec.Struct, frozen=True, kw_only=True, tag_field="outcome", tag="delivered"):
    """How a job was delivered. Stored in histories: fields may only be added, with defaults."""

    status: int
    """HTTP status that the receiver answered with, 2xx."""
    attempts: int
    """Attempts made in all, this one included."""
    delivered_at: int
    """When the receiver's answer came, in milliseconds since the epoch, by the worker's clock."""
    late_ms: int
    """Milliseconds between the trigger time and the start of the request that the receiver took."""


class Held(msgspec.Struct, frozen=True, kw_only=True, tag_field="outcome", tag="held"):
    """Why a job is held back. Stored in memos: fields may only be added, with defaults."""

    reason: str
    since: datetime
    attempts_made: int = msgspec.field(name="made")
    """Attempts made before."""
    release_at: int | None = None
    """When the job is released, in milliseconds since the epoch, once its route has been resumed."""
    holds: int = 0
    """Number of the last hold that the ledger has noted: the next attempt has to know of it."""
    is_over: bool = False
    """Whether the route is open, and the attempt was asked for without knowing of the last hold."""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag_field="outcome", tag="failed"):
    """The receiver did not take the job. Stored in histories: fields may only be added, with defaults."""

    reason: str
    attempts: int
    """Attempts made in all."""
    next_at: int | None = None
    """When the next attempt may be made, in milliseconds since the epoch, by the clock of who tells; None when there is
    to be no other."""
    next_in: float | None = None
    """Seconds until then, which no clock can falsify. None also where it was stored before there was this field."""


class Deferred(msgspec.Struct, frozen=True, kw_only=True, tag_field="outcome", tag="deferred"):
    """No attempt was made, and none used up. Stored in histories: fields may only be added, with defaults."""

    reason: str
    next_at: int
    """When to try again, in milliseconds since the epoch, by the clock of who tells."""
    next_in: float | None = None
    """Seconds until then, as in `Failed`."""


class Unknown(msgspec.Struct, frozen=True, kw_only=True, tag_field="outcome", tag="unknown"):
    """An attempt is under way, or the run is decided otherwise. Stored in histories: fields may only be added."""

    reason: str
    ask_after: float = 0.0
    """Seconds after which to ask again."""


class Cancelled(msgspec.Struct, frozen=True, kw_only=True, tag_field="outcome", tag="cancelled"):
    """The run was cancelled, and no receiver has taken the job. Stored in histories: fields may only be added."""


Outcome = Delivered | Failed | Held | Deferred | Unknown | Cancelled
"""What one attempt came to."""

Decision = Delivered | Failed | Cancelled
"""How a run ends."""


class AttemptResult(msgspec.Struct, frozen=True, kw_only=True):
    """How an attempt ended. Stored in the ledger: fields may only be added, with defaults."""

    number: int
    """From 1, within the run; 0 where it is no attempt's end."""
    kind: AttemptKind
    status: int | None = None
    """HTTP status of the answer; None without an answer."""
    reason: str | None = None
    """Why the receiver did not take the job; None when it did."""
    ended_at: int
    """Milliseconds since the epoch, by the worker's clock."""
    late_ms: int = 0
    """Milliseconds between the trigger time and the start of the request."""


class RowState(StrEnum):
    """What has been decided about a run. Stored: names are not to be changed."""

    WAITING = "waiting"
    """Between two attempts."""
    UNDER_WAY = "under_way"
    """An attempt is under way."""
    CANCELLING = "cancelling"
    """An attempt is under way, and a cancel was asked for meanwhile."""
    TAKEN = "taken"
    FAILED = "failed"
    CANCELLED = "cancelled"


DECIDED = frozenset({RowState.TAKEN, RowState.FAILED, RowState.CANCELLED})


class LedgerRow(msgspec.Struct, frozen=True, kw_only=True):
    """A run's row in the ledger."""

    state: RowState
    claim: str | None
    """Who makes the attempt that is under way, or made the last one."""
    seconds_left: float
    """Seconds until the claim expires, or until the next attempt may begin; negative when that is past."""
    attempts_made: int
    """Attempts whose end is known."""
    has_lost_attempt: bool
    """Whether an attempt was lost with its worker, so that nobody knows its end."""
    end: AttemptResult | None
    """How the last attempt ended."""
    holds: int = 0
    """Number of the last hold: of the last time that an attempt found the route closed."""

    @property
    def is_decided(self) -> bool:
        """Whether no attempt will be made any more."""
        return self.state in DECIDED

    @property
    def is_unattempted(self) -> bool:
        """Whether no attempt was made, nor is one under way: those that were begun were given back."""
        return self.state is RowState.WAITING and not self.attempts_made and not self.has_lost_attempt

    @property
    def is_expired(self) -> bool:
        """Whether an attempt is under way whose worker should have written its end by now."""
        return self.state in (RowState.UNDER_WAY, RowState.CANCELLING) and self.seconds_left <= 0

    @property
    def is_cancelled_in_doubt(self) -> bool:
        """Whether the run was cancelled after an attempt had been lost, which a receiver may have taken."""
        return self.state is RowState.FAILED and self.end is not None and self.end.kind is AttemptKind.LOST


def wait_of(outcome: Failed | Deferred, now: datetime) -> timedelta:
    """Return how long to wait until the next attempt: 0 or more, and 0 where there is to be none.

    Args:
        now: Needed for an outcome of before `next_in`, whose time is compared with another clock's.
    """
    if outcome.next_in is not None:
        return timedelta(seconds=outcome.next_in)
    return max(from_ms(outcome.next_at) - now, timedelta(0)) if outcome.next_at is not None else timedelta(0)


def outcome_of(row: LedgerRow, now: int) -> Outcome:
    """Return what a row says of a run.

    Args:
        now: Milliseconds since the epoch.
    """
    reason = (row.end.reason if row.end else None) or "no attempt was made yet"
    next_in = max(0.0, row.seconds_left)
    next_at = now + int(next_in * 1000)
    match row.state:
        case RowState.TAKEN | RowState.FAILED | RowState.CANCELLED:
            return decision_of(row)
        case RowState.WAITING if row.attempts_made:
            return Failed(reason=reason, attempts=row.attempts_made, next_at=next_at, next_in=next_in)
        case RowState.WAITING:
            return Deferred(reason=reason, next_at=next_at, next_in=next_in)
        case _:
            return Unknown(reason="an attempt is under way", ask_after=min(2.0, max(0.1, row.seconds_left)))


def decision_of(row: LedgerRow) -> Decision:
    """Return how a run ends whose row is decided."""
    end = row.end
    if row.state is RowState.CANCELLED:
        return Cancelled()
    if row.state is RowState.FAILED or end is None:
        return Failed(reason=(end.reason if end else None) or "not delivered", attempts=row.attempts_made)
    return Delivered(status=end.status or 0, attempts=end.number, delivered_at=end.ended_at, late_ms=end.late_ms)

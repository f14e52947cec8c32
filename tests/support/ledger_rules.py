"""What the ledger's three statements are to do, said once more in plain Python: from a row to the row after it."""

from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace

WAITING, UNDER_WAY, CANCELLING = "waiting", "under_way", "cancelling"
TAKEN, FAILED, CANCELLED = "taken", "failed", "cancelled"


class At(StrEnum):
    """Where a row's time lies."""

    PAST = "past"
    FUTURE = "future"
    """Where the test put it, before the statement."""
    CLAIM = "claim"
    """As long as a claim lasts, from now."""
    NOW = "now"
    LONG_AGO = "long ago"
    """Past by any clock."""
    NEXT = "next"
    """The wait that an end asks for, from now."""
    DUE = "due"
    ANY = "any"
    """Nothing reads it in this state."""


class Row(Struct, frozen=True):
    """A row; `end` is the name of the outcome that it holds."""

    state: str
    claim: str | None
    at: At
    attempts_made: int
    has_lost_attempt: bool = False
    end: str | None = None
    holds: int = 0


def begin(
    row: Row | None, claim: str, expired_claim: str | None = None, *, holds: int | None = None
) -> tuple[Row, bool]:
    """Return the row after `begin` on a route that is open, and whether the attempt may be made."""
    if row is None:
        return Row(UNDER_WAY, claim, At.CLAIM, 0), True
    begun = replace(row, state=UNDER_WAY, claim=claim, at=At.CLAIM)
    lost = row.at is At.PAST and row.claim == expired_claim
    knows = holds is None or holds >= row.holds
    match row.state:
        case "waiting" if row.at is At.PAST and knows:
            return begun, True
        case "under_way" if row.claim == claim:
            return row, True
        case "under_way" if lost and knows:
            return replace(begun, has_lost_attempt=True), True
        case "cancelling" if row.claim == claim:
            return _cancelled(row), False
        case "cancelling" if lost:
            return _cancelled(replace(row, has_lost_attempt=True)), False
    return row, False


def begin_on_closed(
    row: Row | None, claim: str, expired_claim: str | None = None, *, holds: int | None = None
) -> tuple[Row, bool]:
    """Return the row after `begin` on a route that is closed, and whether the job is to be held.

    An attempt of the same claim that is under way is given back.
    """
    if row is None:
        return Row(WAITING, None, At.LONG_AGO, 0, holds=(holds or 0) + 1), True
    if row.state in (UNDER_WAY, CANCELLING) and row.claim == claim:
        return end(row, claim, "not made", row.attempts_made) or row, False
    lost = row.state in (UNDER_WAY, CANCELLING) and row.at is At.PAST and row.claim == expired_claim
    if row.state == WAITING or lost:
        return replace(row, holds=max(row.holds, holds or 0) + 1), True
    return row, False


def end(row: Row | None, claim: str, how: str, number: int) -> Row | None:
    """Return the row after `end`: how is `taken`, `again` (a failure), `final` (the last one) or `not made`."""
    if how == TAKEN:
        return _taken(row, claim, number)
    if row is None or row.claim != claim or row.state not in (UNDER_WAY, CANCELLING):
        return row
    ended = row if how == "not made" else replace(row, attempts_made=number, end=how)
    if row.state == CANCELLING:
        return _cancelled(ended)
    if how == "not made":
        return replace(ended, state=WAITING, at=At.NOW)
    return replace(ended, state=WAITING, at=At.NEXT) if how == "again" else replace(ended, state=FAILED, at=At.ANY)


def cancel(row: Row | None, expired_claim: str | None = None) -> Row:
    """Return the row after `cancel`."""
    if row is None:
        return Row(CANCELLED, None, At.DUE, 0)
    if row.state == WAITING:
        return _cancelled(row)
    if row.state in (UNDER_WAY, CANCELLING):
        if row.at is At.PAST and row.claim == expired_claim:
            return _cancelled(replace(row, has_lost_attempt=True))
        return replace(row, state=CANCELLING)
    return row


def _taken(row: Row | None, claim: str, number: int) -> Row:
    if row is None:
        return Row(TAKEN, claim, At.ANY, number, end=TAKEN)
    if row.state in (TAKEN, CANCELLED):
        return row
    return replace(row, state=TAKEN, at=At.ANY, attempts_made=max(row.attempts_made, number), end=TAKEN)


def _cancelled(row: Row) -> Row:
    """Return what a cancel makes of a run: a job that may have been taken is never said to be cancelled."""
    if row.has_lost_attempt:
        return replace(row, state=FAILED, at=At.ANY, end="lost")
    return replace(row, state=CANCELLED, at=At.ANY)

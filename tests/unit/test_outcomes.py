"""What a row of the ledger says of a run."""

from typing import Any

import pytest

from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.outcomes import (
    AttemptResult,
    Cancelled,
    Decision,
    Deferred,
    Delivered,
    Failed,
    LedgerRow,
    Outcome,
    RowState,
    Unknown,
    decision_of,
    outcome_of,
)

NOW = 1_000_000
TAKEN = AttemptResult(number=2, kind=AttemptKind.TAKEN, status=204, ended_at=7, late_ms=3)
REFUSED = AttemptResult(number=2, kind=AttemptKind.REFUSED, status=500, reason="500 from the receiver", ended_at=7)
LOST_REASON = AttemptResult(number=0, kind=AttemptKind.LOST, reason="lost", ended_at=0)

DELIVERED = Delivered(status=204, attempts=2, delivered_at=7, late_ms=3)


def a_row(state: RowState, end: AttemptResult | None = None, **fields: Any) -> LedgerRow:
    values: dict[str, Any] = {"claim": "c", "seconds_left": 5.0, "attempts_made": 0, "has_lost_attempt": False}
    return LedgerRow(state=state, end=end, **values | fields)


DECIDED: list[tuple[LedgerRow, Decision]] = [
    (a_row(RowState.TAKEN, TAKEN, attempts_made=2), DELIVERED),
    (a_row(RowState.FAILED, REFUSED, attempts_made=2), Failed(reason="500 from the receiver", attempts=2)),
    (a_row(RowState.FAILED, LOST_REASON, attempts_made=1, has_lost_attempt=True), Failed(reason="lost", attempts=1)),
    (a_row(RowState.FAILED), Failed(reason="not delivered", attempts=0)),
    (a_row(RowState.CANCELLED), Cancelled()),
    # A cancel between two attempts leaves the end of the first one in the row.
    (a_row(RowState.CANCELLED, REFUSED, attempts_made=2), Cancelled()),
]

UNDECIDED: list[tuple[LedgerRow, Outcome]] = [
    (
        a_row(RowState.WAITING, REFUSED, attempts_made=2),
        Failed(reason="500 from the receiver", attempts=2, next_at=NOW + 5000, next_in=5),
    ),
    (
        a_row(RowState.WAITING, REFUSED, attempts_made=2, seconds_left=-9),
        Failed(reason=REFUSED.reason or "", attempts=2, next_at=NOW, next_in=0),
    ),
    (a_row(RowState.WAITING), Deferred(reason="no attempt was made yet", next_at=NOW + 5000, next_in=5)),
    (a_row(RowState.WAITING, seconds_left=-1), Deferred(reason="no attempt was made yet", next_at=NOW, next_in=0)),
    *(
        (a_row(state, seconds_left=left), Unknown(reason="an attempt is under way", ask_after=ask_after))
        for state in (RowState.UNDER_WAY, RowState.CANCELLING)
        for left, ask_after in ((25.0, 2.0), (1.5, 1.5), (0.0, 0.1), (-60.0, 0.1))
    ),
]


@pytest.mark.parametrize(("row", "decision"), DECIDED, ids=str)
def test_a_decided_row_says_how_the_run_ends(row: LedgerRow, decision: Decision) -> None:
    assert row.is_decided
    assert not row.is_expired
    assert decision_of(row) == decision
    assert outcome_of(row, NOW) == decision


@pytest.mark.parametrize(("row", "outcome"), UNDECIDED, ids=str)
def test_any_other_row_says_when_to_ask_again(row: LedgerRow, outcome: Outcome) -> None:
    assert not row.is_decided
    assert outcome_of(row, NOW) == outcome


def test_every_state_is_tried() -> None:
    assert {row.state for row, _ in [*DECIDED, *UNDECIDED]} == set(RowState)


@pytest.mark.parametrize("state", RowState)
@pytest.mark.parametrize("left", [-1.0, 0.0, 0.1])
def test_only_a_claim_expires(state: RowState, left: float) -> None:
    under_way = state in (RowState.UNDER_WAY, RowState.CANCELLING)

    assert a_row(state, seconds_left=left).is_expired == (under_way and left <= 0)


@pytest.mark.parametrize(
    ("row", "in_doubt"),
    [
        (a_row(RowState.FAILED, LOST_REASON, has_lost_attempt=True), True),
        (a_row(RowState.FAILED, REFUSED, has_lost_attempt=True), False),
        (a_row(RowState.FAILED), False),
        (a_row(RowState.TAKEN, TAKEN, has_lost_attempt=True), False),
        (a_row(RowState.CANCELLED), False),
    ],
    ids=str,
)
def test_which_failure_may_have_been_taken(row: LedgerRow, in_doubt: bool) -> None:
    assert row.is_cancelled_in_doubt == in_doubt

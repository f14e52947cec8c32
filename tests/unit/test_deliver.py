"""What Temporal is told of an outcome: whether, and when, to try again."""

from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest
from msgspec.structs import replace
from temporalio.exceptions import ApplicationErrorCategory

from activities.failures import error_of, success_of
from timemachine.domain.delivery import AttemptsMade, HoldReport
from timemachine.domain.outcomes import Cancelled, Deferred, Delivered, Failed, Held, Outcome, Unknown


def in_seconds(seconds: float) -> int:
    return int((datetime.now(UTC).timestamp() + seconds) * 1000)


def named(value: object) -> str:
    """Return a name without the times in it."""
    return str(value) if isinstance(value, str | int | float) else type(value).__name__


FAILURES: list[tuple[Failed | Held | Deferred | Unknown | Cancelled, str, float]] = [
    (Failed(reason="500 from the receiver", attempts=2, next_at=in_seconds(60)), "AttemptFailed", 60),
    (Failed(reason="500 from the receiver", attempts=2, next_at=in_seconds(-60)), "AttemptFailed", 0),
    (Deferred(reason="its route is busy", next_at=in_seconds(60)), "NotYet", 60),
    (Deferred(reason="its route is busy", next_at=in_seconds(-60)), "NotYet", 0),
    (Unknown(reason="an attempt is under way", ask_after=2.0), "Unsure", 2),
    (Unknown(reason="the attempt is under way"), "Unsure", 0),
    (Cancelled(), "Unsure", 5),
]
FINAL: list[tuple[Failed | Held, str, AttemptsMade | HoldReport]] = [
    (Failed(reason="500 from the receiver", attempts=2), "AttemptFailed", AttemptsMade(made=2)),
    (
        Held(reason="the route is paused", since=datetime.now(UTC), attempts_made=3, holds=2, is_over=True),
        "Held",
        HoldReport(attempts_made=3, holds=2, is_over=True),
    ),
]


@pytest.mark.parametrize(("outcome", "type_", "wait"), FAILURES, ids=named)
def test_it_is_tried_again_when_the_outcome_says(
    outcome: Failed | Held | Deferred | Unknown | Cancelled, type_: str, wait: float
) -> None:
    if isinstance(outcome, Failed | Deferred):
        outcome = replace(outcome, next_at=in_seconds(wait or -60))  # from now, and not from when the tests were found
    error = error_of(outcome)

    assert (error.type, error.non_retryable, error.details) == (type_, False, ())
    assert error.message == getattr(outcome, "reason", "the job was cancelled")
    # Temporal takes a wait of nothing for none that was given, and waits by the policy.
    assert error.next_retry_delay
    assert timedelta(0) < error.next_retry_delay <= timedelta(seconds=max(wait, 0.001))
    assert error.next_retry_delay > timedelta(seconds=wait - 30)
    assert error.category is ApplicationErrorCategory.BENIGN


@pytest.mark.parametrize(("outcome", "type_", "report"), FINAL, ids=named)
def test_it_is_not_tried_again_and_says_how_many_were_made(
    outcome: Failed | Held, type_: str, report: AttemptsMade | HoldReport
) -> None:
    error = error_of(outcome)

    assert (error.message, error.type, error.non_retryable) == (outcome.reason, type_, True)
    assert error.details == (report,)
    assert error.category is ApplicationErrorCategory.BENIGN


def test_only_a_success_is_returned() -> None:
    success = Delivered(status=200, attempts=1, delivered_at=0, late_ms=0)

    assert success_of(success) is success


def test_every_outcome_is_tried() -> None:
    tried = {type(outcome) for outcome, *_ in [*FAILURES, *FINAL]}

    assert tried | {Delivered} == set(get_args(Outcome))

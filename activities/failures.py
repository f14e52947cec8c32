"""What Temporal is told of an outcome that is no success: when to try again, or that it is over.

A receiver's failure is no fault of the worker's, whose log and error metrics are spared it: benign.
"""

from datetime import UTC, datetime, timedelta

from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from timemachine.domain import stored_names
from timemachine.domain.delivery import AttemptsMade, HoldReport
from timemachine.domain.outcomes import Cancelled, Deferred, Delivered, Failed, Held, Outcome, Unknown, wait_of

ASK_AGAIN = timedelta(seconds=5)
"""Time after which a run is looked at again that was cancelled, and has been asked to close."""


def success_of(outcome: Outcome) -> Delivered:
    """Return the success.

    Raises:
        ApplicationError: There is none.
    """
    if isinstance(outcome, Delivered):
        return outcome
    raise error_of(outcome)


def error_of(outcome: Failed | Held | Deferred | Unknown | Cancelled) -> ApplicationError:
    """Return what Temporal has to know of an outcome: when to try again, or that it is over."""
    match outcome:
        case Failed(next_at=None):
            return _final(outcome.reason, AttemptsMade(made=outcome.attempts), type=stored_names.ATTEMPT_FAILED)
        case Failed():
            return retryable(outcome.reason, wait_of(outcome, datetime.now(UTC)), type=stored_names.ATTEMPT_FAILED)
        case Deferred():
            return retryable(outcome.reason, wait_of(outcome, datetime.now(UTC)), type=stored_names.DEFERRED)
        case Held():
            report = HoldReport(attempts_made=outcome.attempts_made, holds=outcome.holds, is_over=outcome.is_over)
            return _final(outcome.reason, report, type=stored_names.HELD)
        case Unknown():
            return retryable(outcome.reason, timedelta(seconds=outcome.ask_after), type=stored_names.OUTCOME_UNKNOWN)
    return retryable("the job was cancelled", ASK_AGAIN, type=stored_names.OUTCOME_UNKNOWN)


def retryable(reason: str, wait: timedelta, *, type: str) -> ApplicationError:  # noqa: A002 - Temporal's word
    """Return the error of an attempt that is to be made again after a wait."""
    wait = max(wait, timedelta(milliseconds=1))
    return ApplicationError(reason, type=type, next_retry_delay=wait, category=ApplicationErrorCategory.BENIGN)


def _final(
    reason: str,
    report: AttemptsMade | HoldReport,
    *,
    type: str,  # noqa: A002 - Temporal's word
) -> ApplicationError:
    return ApplicationError(reason, report, type=type, non_retryable=True, category=ApplicationErrorCategory.BENIGN)

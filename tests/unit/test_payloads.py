import pytest
from temporalio.api.failure.v1 import Failure
from temporalio.exceptions import ApplicationError

from timemachine.domain import stored_names
from timemachine.temporal.payloads import DATA_CONVERTER


def encoded(error: BaseException) -> Failure:
    """An error that was raised, and its failure as Temporal stores it."""
    failure = Failure()
    try:
        raise error
    except BaseException as raised:
        DATA_CONVERTER.failure_converter.to_failure(raised, DATA_CONVERTER.payload_converter, failure)
    return failure


@pytest.mark.parametrize("type_", sorted(stored_names.OUTCOMES))
def test_an_outcome_has_no_stack_trace(type_: str) -> None:
    failure = encoded(ApplicationError("500 from the receiver", 3, type=type_))

    assert (failure.message, failure.stack_trace) == ("500 from the receiver", "")
    assert failure.application_failure_info.type == type_


def test_an_outcome_that_caused_another_has_none_either() -> None:
    error = ApplicationError("not delivered", type=stored_names.NOT_DELIVERED)
    error.__cause__ = ApplicationError("500", type=stored_names.ATTEMPT_FAILED)

    failure = encoded(error)

    assert (failure.stack_trace, failure.cause.stack_trace) == ("", "")


@pytest.mark.parametrize("error", [ValueError("a fault"), ApplicationError("a fault", type="ValueError")])
def test_a_fault_keeps_its_stack_trace(error: Exception) -> None:
    assert "test_payloads.py" in encoded(error).stack_trace

"""What a run of a job refuses before it has done anything."""

import msgspec
import pytest
from temporalio.exceptions import ApplicationError

from timemachine.domain.jobs import Job
from workflows.job import JobWorkflow

WAITING = Job(db="d", collection="c", id="x", trigger_time=7_200_000, route="r", meta=msgspec.Raw(b"1"), ledger=True)


def test_a_job_that_was_triggered_is_not_changed_by_what_comes_with_the_first_task_of_its_next_run() -> None:
    triggered = msgspec.structs.replace(WAITING, trigger_time=1, planned_time=7_200_000)

    with pytest.raises(ApplicationError) as refusal:
        JobWorkflow(triggered).validate_change(WAITING)

    assert refusal.value.type == "TooLate"


def test_a_job_that_waits_may_be_changed() -> None:
    JobWorkflow(WAITING).validate_change(WAITING)

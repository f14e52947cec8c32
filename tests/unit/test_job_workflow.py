"""What a run of a job decides by itself: what it refuses before it has done anything, and when its history is cut."""

from types import SimpleNamespace

import msgspec
import pytest
from temporalio.exceptions import ApplicationError

from timemachine.domain.jobs import HISTORY_LIMIT, Job
from workflows.job import JobWorkflow

WAITING = Job(db="d", collection="c", id="x", trigger_time=7_200_000, route="r", meta=msgspec.Raw(b"1"), ledger=True)


def test_a_job_that_was_triggered_is_not_changed_by_what_comes_with_the_first_task_of_its_next_run() -> None:
    triggered = msgspec.structs.replace(WAITING, trigger_time=1, planned_time=7_200_000)

    with pytest.raises(ApplicationError) as refusal:
        JobWorkflow(triggered).validate_change(WAITING)

    assert refusal.value.type == "TooLate"


def test_a_job_that_waits_may_be_changed() -> None:
    JobWorkflow(WAITING).validate_change(WAITING)


@pytest.mark.parametrize("under_way", [False, True])
def test_a_job_whose_first_attempt_may_be_under_way_is_not_cut(
    monkeypatch: pytest.MonkeyPatch, under_way: bool
) -> None:
    """Its next run would not know of the attempt, and take changes."""
    info = SimpleNamespace(get_current_history_length=lambda: HISTORY_LIMIT, is_continue_as_new_suggested=lambda: False)
    monkeypatch.setattr("workflows.job.workflow.info", lambda: info)
    monkeypatch.setattr("workflows.job.workflow.patched", lambda _: True)
    run = JobWorkflow(WAITING.with_history_limit)
    run._first_attempt_may_be_under_way = under_way

    run._look_at_history()

    assert run._is_to_continue_as_new() is not under_way

"""What a run of a job refuses before it has done anything, and what it keeps of a job that is replaced."""

from datetime import UTC, datetime

import msgspec
import pytest
from temporalio import workflow
from temporalio.exceptions import ApplicationError

from timemachine.domain.jobs import Job
from workflows.job import JobWorkflow

WAITING = Job(db="d", collection="c", id="x", trigger_time=7_200_000, route="r", meta=msgspec.Raw(b"1"), ledger=True)


CREATED = msgspec.structs.replace(WAITING, trace_links=("creator",))


@pytest.fixture
def memos(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that a workflow writes down, without one that runs."""
    written: list[Job] = []
    monkeypatch.setattr(workflow, "now", lambda: datetime.fromtimestamp(0, UTC))
    monkeypatch.setattr(workflow, "upsert_memo", lambda memo: written.append(memo["job"]))
    monkeypatch.setattr(workflow, "upsert_search_attributes", lambda _: None)
    monkeypatch.setattr(workflow, "set_current_details", lambda _: None)
    return written


def test_a_job_that_was_triggered_is_not_changed_by_what_comes_with_the_first_task_of_its_next_run() -> None:
    triggered = msgspec.structs.replace(WAITING, trigger_time=1, planned_time=7_200_000)

    with pytest.raises(ApplicationError) as refusal:
        JobWorkflow(triggered).validate_change(WAITING)

    assert refusal.value.type == "TooLate"


def test_a_job_that_waits_may_be_changed() -> None:
    JobWorkflow(WAITING).validate_change(WAITING)


def test_a_change_keeps_the_links_to_those_before_it(memos: list[Job]) -> None:
    run = JobWorkflow(CREATED)

    for changer in ("first", "second"):
        JobWorkflow.change(run, msgspec.structs.replace(WAITING, trace_links=(changer,)))
    JobWorkflow.change(run, WAITING)

    assert [job.trace_links for job in memos] == [
        ("creator", "first"),
        ("creator", "first", "second"),
        ("creator", "first", "second"),
    ]


@pytest.mark.parametrize(("given", "kept"), [((), ("creator",)), ((("by",),), ("creator", "by"))])
def test_a_trigger_keeps_them_too_and_may_have_none_itself(
    given: tuple[tuple[str, ...]], kept: tuple[str, ...], memos: list[Job]
) -> None:
    """As those from before links, and those of clients that send none."""
    JobWorkflow.trigger(JobWorkflow(CREATED), *given)

    assert [job.trace_links for job in memos] == [kept]

"""Operations: their ids name one run, and give the workflow back; filters have one key each."""

from datetime import UTC, datetime

import pytest

from timemachine.domain.cancels import CancelJobs, CancelProgress
from timemachine.domain.errors import ForbiddenNameError, NoSuchOperationError
from timemachine.domain.job_filter import JobFilter, ListedState
from timemachine.domain.jobs import check_name
from timemachine.domain.operations import (
    MAX_OPERATION_ID,
    Counts,
    OperationKey,
    OperationKind,
    key_of_workflow,
    parse_operation_id,
)
from timemachine.domain.redelivery import Progress, redelivery_key
from timemachine.domain.releases import Released, ReleaseHeld
from timemachine.temporal.visibility import ended_since_query, operations_query, still_open_query

RUN = "019abc12-3456-7890-abcd-ef0123456789"
LONGEST = f"{'r' * 64}/253402300799998-253402300799999"

KEYS = [
    ReleaseHeld(db="d", route_id="hook").key,
    ReleaseHeld(db="d", route_id="a:b:-1").key,
    redelivery_key("d", "hook", "0-1735689600000"),
    redelivery_key("d", "a:b:1-2", "0-1"),
    CancelJobs(filter=JobFilter(db="d", label="x")).key,
    OperationKey(kind=OperationKind.REDELIVERY, db="d", name=LONGEST),
]


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_an_id_is_a_name_and_gives_back_key_and_run(key: OperationKey) -> None:
    operation_id = key.operation_id(RUN)

    check_name("operation", operation_id, limit=MAX_OPERATION_ID)
    assert parse_operation_id(key.db, operation_id) == (key, RUN)
    assert key_of_workflow(key.kind, key.workflow_id) == key


def test_the_ids_of_workflows_are_those_of_before() -> None:
    assert ReleaseHeld(db="d", route_id="r").key.workflow_id == "timemachine/release/d/r"
    assert redelivery_key("d", "r", "0-1").workflow_id == "timemachine/redelivery/d/r/0-1"


@pytest.mark.parametrize(
    "operation_id",
    ["x", "0-1", "release", "release:hook", f"release:{RUN}", f"other:hook:{RUN}", f"release:hook:{RUN}0", "a:b:c"],
)
def test_what_is_no_id_of_an_operation_is_unknown(operation_id: str) -> None:
    with pytest.raises(NoSuchOperationError):
        parse_operation_id("d", operation_id)


@pytest.mark.parametrize(("db", "operation_id"), [("a b", "x"), ("d", "a/b"), ("d", ""), ("d", "x" * 161)])
def test_what_is_no_name_is_refused(db: str, operation_id: str) -> None:
    with pytest.raises(ForbiddenNameError):
        parse_operation_id(db, operation_id)


def test_a_cancel_of_the_same_filter_has_the_same_key() -> None:
    one = CancelJobs(filter=JobFilter(db="d", label="x", route="r"))
    again = CancelJobs(filter=JobFilter(route="r", label="x", db="d"))
    others = [JobFilter(db="d", label="x"), JobFilter(db="d", label="X", route="r"), JobFilter(db="e", label="x")]

    assert one.key == again.key
    assert len({CancelJobs(filter=each).key.workflow_id for each in [one.filter, *others]}) == 4


def test_how_far_each_kind_is() -> None:
    assert Released(found=5, signalled=2, told=10).counts == Counts(matched=15, done=12)
    assert Released(found=1, signalled=2).counts == Counts(matched=2, done=2)
    assert Progress(found=5, started=3, skipped=1, stopped=True).counts == Counts(
        matched=5, done=3, failed=1, stopped=True
    )
    assert CancelProgress(matched=9, cancelled=4, delivered=2, failed=1).counts == Counts(
        matched=9, done=4, failed=3, delivered=2
    )


def test_queries() -> None:
    at = datetime(2026, 11, 26, 7, 30, 0, 123456, UTC)
    wanted = JobFilter(db="d", label="one", state=ListedState.DUE)
    jobs = (
        "WorkflowType = 'Job' "
        "AND (TimemachineDb = 'd' OR (TimemachineDb IS NULL AND WorkflowId STARTS_WITH 'd/')) "
        "AND TimemachineLabels = 'one' "
    )

    assert still_open_query(wanted, at) == (
        f"(CloseTime IS NULL OR NOT CloseTime < '2262-01-01T00:00:00.000+00:00') AND {jobs}"
        "AND TimemachineTriggerTime < '2026-11-26T07:30:00.124+00:00' "
        "AND (TimemachineHeld IS NULL OR TimemachineHeld = false) AND ExecutionStatus = 'Running' "
        "AND StartTime < '2026-11-26T07:30:00.123457+00:00'"
    )
    assert ended_since_query(wanted, at) == (
        f"{jobs}AND ExecutionStatus != 'Running' AND StartTime < '2026-11-26T07:30:00.123457+00:00' "
        "AND CloseTime >= '2026-11-26T07:30:00.123456+00:00'"
    )
    assert operations_query("d") == (
        "WorkflowType IN ('Release', 'Redelivery', 'CancelMany') AND TimemachineDb = 'd' "
        "AND ExecutionStatus != 'ContinuedAsNew'"
    )

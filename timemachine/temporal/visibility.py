"""What is asked of Temporal's visibility about jobs: every query is made here, from typed filters.

Visibility lags behind by a fraction of a second.
"""

from datetime import UTC, datetime, timedelta

from msgspec.structs import replace
from temporalio.client import WorkflowExecution, WorkflowExecutionStatus

from timemachine.domain import stored_names
from timemachine.domain.job_filter import JobFilter, ListedJob, ListedState
from timemachine.domain.jobs import from_ms, split_workflow_id, to_ms
from timemachine.domain.operations import WORKFLOW_TYPES
from timemachine.temporal.search_attributes import (
    COLLECTION,
    CREATED_BY,
    DB,
    IS_HELD,
    LABELS,
    ROUTE,
    TRIGGER_TIME,
)

_STATUSES = {
    ListedState.SCHEDULED: ("Running",),
    ListedState.DUE: ("Running",),
    ListedState.HELD: ("Running",),
    ListedState.DELIVERED: ("Completed",),
    ListedState.FAILED: ("Failed", "TimedOut"),
    ListedState.CANCELLED: ("Canceled", "Terminated"),
}

_ENDED = {
    WorkflowExecutionStatus.COMPLETED: ListedState.DELIVERED,
    WorkflowExecutionStatus.FAILED: ListedState.FAILED,
    WorkflowExecutionStatus.TIMED_OUT: ListedState.FAILED,
    WorkflowExecutionStatus.CANCELED: ListedState.CANCELLED,
    WorkflowExecutionStatus.TERMINATED: ListedState.CANCELLED,
}


def job_query(wanted: JobFilter, now: datetime) -> str:
    """Return the query that finds the jobs of a filter. Check with `includes` what it finds."""
    return " AND ".join(_filter_parts(wanted) + _state_parts(wanted.state, now))


def open_jobs_query(wanted: JobFilter, now: datetime) -> str:
    """Return the query that finds those jobs of a filter that have not ended."""
    parts = [job_query(wanted, now), "ExecutionStatus = 'Running'"]
    if wanted.state in (ListedState.SCHEDULED, ListedState.DUE):
        parts.append(f"({IS_HELD.name} IS NULL OR {IS_HELD.name} = false)")
    return " AND ".join(parts)


def still_open_query(wanted: JobFilter, at: datetime) -> str:
    """Return the query that finds the runs of a filter that were open at a time, and are.

    Args:
        at: By Temporal's clock. The filter's state is meant as of then.
    """
    return f"{open_jobs_query(wanted, at)} AND {_started_until(at)}"


def ended_since_query(wanted: JobFilter, at: datetime) -> str:
    """Return the query that finds the runs of a filter, whatever its state, that were open at a time and have ended.

    Those that have continued as new are among them.
    """
    ended = ["ExecutionStatus != 'Running'", _started_until(at), f"CloseTime >= {_exact(at)}"]
    return " AND ".join(_filter_parts(wanted) + ended)


def by_status(query: str) -> str:
    """Return the query that counts what another one finds, status by status."""
    return f"{query} GROUP BY ExecutionStatus"


def operations_query(db: str) -> str:
    """Return the query that finds the operations of a db. Check the db of what it finds."""
    types = ", ".join(_text(name) for name in WORKFLOW_TYPES.values())
    return f"WorkflowType IN ({types}) AND {DB.name} = {_text(db)} AND ExecutionStatus != 'ContinuedAsNew'"


def _filter_parts(wanted: JobFilter) -> list[str]:
    parts = [f"WorkflowType = '{stored_names.JOB}'", f"{DB.name} = {_text(wanted.db)}"]
    if wanted.collection is not None:
        parts.append(f"{COLLECTION.name} = {_text(f'{wanted.db}/{wanted.collection}')}")
    if wanted.route is not None:
        parts.append(f"{ROUTE.name} = {_text(f'{wanted.db}/{wanted.route}')}")
    if wanted.label is not None:
        parts.append(f"{LABELS.name} = {_text(wanted.label)}")
    if wanted.created_by is not None:
        parts.append(f"{CREATED_BY.name} = {_text(wanted.created_by)}")
    if wanted.id_prefix is not None and wanted.collection is not None:
        prefix = f"{wanted.db}/{wanted.collection}/{wanted.id_prefix}"
        parts.append(f"WorkflowId STARTS_WITH {_text(prefix)}")
    if wanted.due_from is not None:
        parts.append(f"{TRIGGER_TIME.name} >= {_time(from_ms(wanted.due_from))}")
    if wanted.due_to is not None:
        parts.append(f"{TRIGGER_TIME.name} < {_time(from_ms(wanted.due_to))}")
    return parts


def _state_parts(state: ListedState | None, now: datetime) -> list[str]:
    if state is None:
        return ["ExecutionStatus != 'ContinuedAsNew'"]
    statuses = ", ".join(_text(status) for status in _STATUSES[state])
    parts = [f"ExecutionStatus IN ({statuses})"]
    if state is ListedState.HELD:
        parts.append(f"{IS_HELD.name} = true")
    if state is ListedState.SCHEDULED:
        parts.append(f"{TRIGGER_TIME.name} > {_time(now)}")
    if state is ListedState.DUE:
        parts.append(f"{TRIGGER_TIME.name} <= {_time(now)}")
    return parts


def listed_job(run: WorkflowExecution, now: datetime) -> ListedJob:
    """Return a run as lists show it."""
    db, collection, job_id = split_workflow_id(run.id)
    attributes = run.typed_search_attributes
    trigger_at = attributes.get(TRIGGER_TIME) or run.start_time
    return ListedJob(
        db=db,
        collection=collection,
        id=job_id,
        run_id=run.run_id,
        trigger_time=to_ms(trigger_at),
        route=(attributes.get(ROUTE) or "/").split("/", 1)[1],
        state=_state(run, trigger_at, now),
        labels=tuple(attributes.get(LABELS) or ()),
        created_by=attributes.get(CREATED_BY),
        created_at=to_ms(run.start_time),
        ended_at=to_ms(run.close_time) if run.close_time else None,
    )


def listed_when_open(run: WorkflowExecution, at: datetime) -> ListedJob:
    """Return a run as lists showed it at a time, when it had not ended."""
    job = listed_job(run, at)
    return replace(job, state=_open_state(run, from_ms(job.trigger_time), at))


def ended_as(run: WorkflowExecution) -> ListedState | None:
    """Return the state of a run that has ended; None for one that has not, or has continued as new."""
    return _ENDED.get(run.status) if run.status else None


def _state(run: WorkflowExecution, trigger_at: datetime, now: datetime) -> ListedState:
    return ended_as(run) or _open_state(run, trigger_at, now)


def _open_state(run: WorkflowExecution, trigger_at: datetime, now: datetime) -> ListedState:
    if run.typed_search_attributes.get(IS_HELD):
        return ListedState.HELD
    return ListedState.SCHEDULED if trigger_at > now else ListedState.DUE


def _text(value: str) -> str:
    """Return a text as a literal of a query, whatever it holds."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _time(at: datetime) -> str:
    return _text(at.astimezone(UTC).isoformat(timespec="milliseconds"))


def _started_until(at: datetime) -> str:
    return f"StartTime < {_exact(at + timedelta(microseconds=1))}"


def _exact(at: datetime) -> str:
    """Return a time of Temporal's own, of which every microsecond counts."""
    return _text(at.astimezone(UTC).isoformat(timespec="microseconds"))

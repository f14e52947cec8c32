"""What is asked of Temporal's visibility: every query is made here, from typed filters.

Visibility lags behind by a fraction of a second. Not every store of it tells `a` from `A`: what it finds is to be
checked with the filter's `includes` before it is shown or acted on. Times are compared by `>=` and `<` only, because
the store in SQLite takes two spellings of one time for two times.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

from msgspec.structs import replace
from temporalio.client import WorkflowExecution, WorkflowExecutionStatus

from timemachine.domain import stored_names
from timemachine.domain.job_filter import JobFilter, ListedJob, ListedState
from timemachine.domain.jobs import from_ms, split_workflow_id, to_ms
from timemachine.domain.operations import WORKFLOW_TYPES
from timemachine.domain.outcomes import Held
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

_ENDED_AS = {
    WorkflowExecutionStatus.COMPLETED: ListedState.DELIVERED,
    WorkflowExecutionStatus.FAILED: ListedState.FAILED,
    WorkflowExecutionStatus.TIMED_OUT: ListedState.FAILED,
    WorkflowExecutionStatus.CANCELED: ListedState.CANCELLED,
    WorkflowExecutionStatus.TERMINATED: ListedState.CANCELLED,
}

_IS_JOB = f"WorkflowType = '{stored_names.JOB}'"
# Means the same, because no job is of a division. To a query that names none the server adds that there be none, for
# which the store in SQLite parses the attributes of each row. Of a job it does not look at the second part of this.
_IS_JOB_OF_ANY_DIVISION = f"({_IS_JOB} OR TemporalNamespaceDivision = '')"
RUNNING = "Running"
"""Temporal's status of a job that has not ended."""

# No query has a later time: OpenSearch and Elasticsearch refuse one, because their nanoseconds in 64 bits end in April
# 2262 (decision 31). No job is later either, because none may be due in more than 100 years.
_LATEST = datetime(2262, 1, 1, tzinfo=UTC)

_IS_OPEN = f"ExecutionStatus = '{RUNNING}'"
# Tells nothing new of what is open, but comes first: before server 1.32, SQL stores compare what they have in every
# index, so that the store in SQLite passes over what has ended and does not read it. It is a time in the year 9999 for
# what is open, and never NULL. Since 1.32 it is NULL, which `NOT` passes over (decision 30).
_NOT_CLOSED = f"(CloseTime IS NULL OR NOT CloseTime < '{_LATEST.isoformat(timespec='milliseconds')}')"
_IS_NOT_HELD = f"({IS_HELD.name} IS NULL OR {IS_HELD.name} = false)"
_IS_ENDED = "ExecutionStatus IN ('Completed', 'Failed', 'TimedOut', 'Canceled', 'Terminated')"


def job_query(wanted: JobFilter, now: datetime) -> str:
    """Return the query that finds the jobs of a filter."""
    if wanted.state is None:
        # What a run is continued as is a run of its own.
        return _all(*_job_parts(wanted), "ExecutionStatus != 'ContinuedAsNew'")
    if not wanted.state.is_open:
        return _all(*_job_parts(wanted), f"ExecutionStatus IN ({', '.join(map(_text, _STATUSES[wanted.state]))})")
    held = f"{IS_HELD.name} = true" if wanted.state is ListedState.HELD else _IS_NOT_HELD
    return _open(*_parts(wanted, _open_due(*_due_window(wanted, to_ms(now)))), held)


def open_jobs_query(wanted: JobFilter, now: datetime) -> str:
    """Return the query that finds those jobs of a filter that have not ended."""
    return job_query(wanted, now) if wanted.state else _open(*_parts(wanted, _open_due(wanted.due_from, wanted.due_to)))


def ended_jobs_query(wanted: JobFilter, now: datetime) -> str:
    """Return the query that finds those jobs of a filter that have ended, the latest first."""
    return job_query(wanted, now) if wanted.state else _all(*_job_parts(wanted), _IS_ENDED)


def status_counts_query(wanted: JobFilter) -> str:
    """Return the query that counts the jobs of a filter by Temporal's status, whatever their state.

    It may read every job, so it is worded to read as little of each as SQLite can (decision 24).
    """
    further = _further_parts(wanted, _between(TRIGGER_TIME.name, wanted.due_from, wanted.due_to))
    return by_status(_all(_IS_JOB_OF_ANY_DIVISION, *_group_parts(wanted, _has_id_in), *further))


def ended_state(status: str) -> ListedState | None:
    """Return the state of a job whose run ended with one of Temporal's statuses; None of one that has not ended."""
    return next((state for state, names in _STATUSES.items() if not state.is_open and status in names), None)


def held_jobs_query(db: str, route_id: str, *, due_at: datetime | None) -> str:
    """Return the query that finds the held jobs of a route, and those that are due at a time where one is given."""
    parts = _job_parts(JobFilter(db=db, route=route_id))
    held = f"{IS_HELD.name} = true"
    if due_at is not None:
        held = f"({held} OR {_before(TRIGGER_TIME.name, to_ms(due_at) + 1)})"
    return _open(*parts, held)


def all_open_jobs_query() -> str:
    """Return the query that finds the jobs of every db that have not ended."""
    return _open(_IS_JOB)


def all_held_jobs_query() -> str:
    """Return the query that finds the held jobs of every db."""
    return _open(_IS_JOB, f"{IS_HELD.name} = true")


def all_due_jobs_query(at: datetime) -> str:
    """Return the query that finds the jobs of every db that are due at a time, are not held, and have not ended."""
    return _open(_IS_JOB, _before(TRIGGER_TIME.name, to_ms(at) + 1), _IS_NOT_HELD)


def later_runs_query(workflow_ids: Iterable[str], since: datetime) -> str:
    """Return the query that finds the runs of some jobs that began at a time or later."""
    ids = ", ".join(map(_text, workflow_ids))
    return _all(_IS_JOB, f"StartTime >= {_time(to_ms(since))}", f"WorkflowId IN ({ids})")


def runs_since_query(wanted: JobFilter, at: datetime) -> str:
    """Return the query that finds the runs of a filter, whatever its state, that began at a time or later.

    Args:
        at: By Temporal's clock.
    """
    return _all(*_job_parts(wanted), f"StartTime >= {_exact(at)}")


def still_open_query(wanted: JobFilter, at: datetime) -> str:
    """Return the query that finds the runs of a filter that were open at a time, and are.

    Args:
        at: By Temporal's clock. The filter's state is meant as of then.
    """
    return _all(open_jobs_query(wanted, at), _started_until(at))


def ended_since_query(wanted: JobFilter, at: datetime) -> str:
    """Return the query that finds the runs of a filter, whatever its state, that were open at a time and have ended.

    Those that have continued as new are among them.
    """
    ended = f"ExecutionStatus != '{RUNNING}'"
    return _all(*_job_parts(wanted), ended, _started_until(at), f"CloseTime >= {_exact(at)}")


def going_on_since_query(wanted: JobFilter, at: datetime) -> str:
    """Return the query that finds those of `ended_since_query` that may go on as another run; see `may_go_on`."""
    return _all(ended_since_query(wanted, at), "ExecutionStatus IN ('ContinuedAsNew', 'Terminated')")


def attributes_query(names: Iterable[str]) -> str:
    """Return a query that finds nothing, and is refused by a server that does not use these search attributes."""
    return _all(f"WorkflowId = {_text('')}", f"({' OR '.join(f'{name} IS NULL' for name in names)})")


def by_status(query: str) -> str:
    """Return the query that counts what another one finds, status by status."""
    return f"{query} GROUP BY ExecutionStatus"


def operations_query(db: str) -> str:
    """Return the query that finds the operations of a db. Check the db of what it finds."""
    types = ", ".join(_text(name) for name in WORKFLOW_TYPES.values())
    return _all(f"WorkflowType IN ({types})", f"{DB.name} = {_text(db)}", "ExecutionStatus != 'ContinuedAsNew'")


def _job_parts(wanted: JobFilter) -> list[str]:
    """Return what a job must have in common with a filter, but for its state."""
    return _parts(wanted, _between(TRIGGER_TIME.name, wanted.due_from, wanted.due_to))


def _parts(wanted: JobFilter, due: list[str]) -> list[str]:
    return [_IS_JOB, *_group_parts(wanted, _is_in), *_further_parts(wanted, due)]


def _group_parts(wanted: JobFilter, is_in: Callable[[str, str], str]) -> list[str]:
    """Return of which route, collection or db a job is. `is_in` words it, for an attribute and its value."""
    parts = []
    if wanted.route_key is not None:
        parts.append(f"{ROUTE.name} = {_text(wanted.route_key)}")
    if wanted.collection_key is not None:
        parts.append(is_in(COLLECTION.name, wanted.collection_key))
    return parts or [is_in(DB.name, wanted.db)]


def _further_parts(wanted: JobFilter, due: list[str]) -> list[str]:
    parts = []
    if wanted.id_prefix is not None:
        parts.append(f"WorkflowId STARTS_WITH {_text(f'{wanted.collection_key}/{wanted.id_prefix}')}")
    if wanted.label is not None:
        parts.append(f"{LABELS.name} = {_text(wanted.label)}")
    if wanted.created_by is not None:
        parts.append(f"{CREATED_BY.name} = {_text(wanted.created_by)}")
    return parts + due + _between("CloseTime", wanted.ended_from, wanted.ended_to)


def _is_in(attribute: str, group: str) -> str:
    """Return that a job is in a db or a collection. Jobs from before the attributes are known by their ids only."""
    return f"({attribute} = {_text(group)} OR ({attribute} IS NULL AND WorkflowId STARTS_WITH {_text(f'{group}/')}))"


def _has_id_in(attribute: str, group: str) -> str:
    """Return the same as `_is_in`, told by workflow ids, for which no row's attributes are parsed.

    SQLite's `STARTS_WITH` does not tell `a` from `A`, but its comparisons do: what is not between the first and the
    last id that can begin so has the attribute asked, as have most where PostgreSQL compares by a language's rules.
    Jobs without the attribute are told by `STARTS_WITH` alone. `NOT` keeps SQLite from the index of ids, which is
    slower here.
    """
    first, after_last = _text(f"{group}/"), _text(f"{group}{chr(ord('/') + 1)}")
    in_range = f"(NOT WorkflowId < {first} AND NOT WorkflowId >= {after_last})"
    return f"WorkflowId STARTS_WITH {first} AND ({in_range} OR {attribute} = {_text(group)} OR {attribute} IS NULL)"


def _due_window(wanted: JobFilter, now: int) -> tuple[int | None, int | None]:
    """Return the window in which the open jobs of a filter are due, of which its state is a part."""
    since, until = wanted.due_from, wanted.due_to
    if wanted.state is ListedState.SCHEDULED:
        since = max(now + 1, since or 0)
    if wanted.state is ListedState.DUE:
        until = now + 1 if until is None else min(now + 1, until)
    return since, until


def _open_due(since: int | None, until: int | None) -> list[str]:
    """Return that an open job is due within a window."""
    if since is not None and until is None:
        # Most jobs are. For `>=` the store in SQLite would sort all of them; for this it goes by its own order.
        return [f"NOT {_before(TRIGGER_TIME.name, since)}"]
    return _between(TRIGGER_TIME.name, since, until)


def _between(attribute: str, since: int | None, until: int | None) -> list[str]:
    parts = []
    if since is not None:
        parts.append(_from(attribute, since))
    if until is not None:
        parts.append(_before(attribute, until))
    return parts


def listed_job(run: WorkflowExecution, now: datetime) -> ListedJob:
    """Return a run as lists show it."""
    db, collection, job_id = split_workflow_id(run.id)
    attributes = run.typed_search_attributes
    trigger_time = to_ms(attributes.get(TRIGGER_TIME) or run.start_time)
    return ListedJob(
        db=db,
        collection=collection,
        id=job_id,
        run_id=run.run_id,
        trigger_time=trigger_time,
        route=(attributes.get(ROUTE) or "/").split("/", 1)[1],
        state=_state(run, trigger_time, to_ms(now)),
        labels=tuple(attributes.get(LABELS) or ()),
        created_by=attributes.get(CREATED_BY),
        created_at=_created_at(run),
        ended_at=to_ms(run.close_time) if run.close_time else None,
    )


def listed_when_open(run: WorkflowExecution, at: datetime) -> ListedJob:
    """Return a run as lists showed it at a time, when it had not ended."""
    job = listed_job(run, at)
    return replace(job, state=_open_state(run, job.trigger_time, to_ms(at)))


def ended_as(run: WorkflowExecution) -> ListedState | None:
    """Return the state of a run that has ended; None for one that has not, or has continued as new."""
    return _ENDED_AS.get(run.status) if run.status else None


def may_go_on(run: WorkflowExecution) -> bool:
    """Return whether a job may go on as another run: this one has continued as new, or an operator has reset it."""
    return run.status in (WorkflowExecutionStatus.CONTINUED_AS_NEW, WorkflowExecutionStatus.TERMINATED)


def release_moment(run: WorkflowExecution) -> datetime | None:
    """Return when a job that was held goes out, after its route was resumed; None of one that is not released, or out.

    It is not held any more, but waits for this moment: a resume spreads them.
    """
    memo = run.raw_info.memo.fields
    if stored_names.HELD_SINCE not in memo:
        return None
    held: Held = run.data_converter.payload_converter.from_payload(memo[stored_names.HELD_SINCE], Held)
    return from_ms(held.release_at) if held.release_at else None


def _state(run: WorkflowExecution, trigger_time: int, now: int) -> ListedState:
    return ended_as(run) or _open_state(run, trigger_time, now)


def _open_state(run: WorkflowExecution, trigger_time: int, now: int) -> ListedState:
    if run.typed_search_attributes.get(IS_HELD):
        return ListedState.HELD
    return ListedState.SCHEDULED if trigger_time > now else ListedState.DUE


def _created_at(run: WorkflowExecution) -> int:
    """Return when a job was created, which is kept where its run is continued as another one."""
    memo = run.raw_info.memo.fields
    if stored_names.CREATED_AT not in memo:
        return to_ms(run.start_time)
    created_at: int = run.data_converter.payload_converter.from_payload(memo[stored_names.CREATED_AT], int)
    return created_at


def _open(*parts: str) -> str:
    return _all(_NOT_CLOSED, *parts, _IS_OPEN)


def _all(*parts: str) -> str:
    return " AND ".join(parts)


def _from(attribute: str, time: int) -> str:
    return f"{attribute} >= {_time(time)}"


def _before(attribute: str, time: int) -> str:
    return f"{attribute} < {_time(time)}"


def _text(value: str) -> str:
    """Return a text as a literal of a query, whatever it holds."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _time(ms: int) -> str:
    return _text(min(from_ms(ms), _LATEST).astimezone(UTC).isoformat(timespec="milliseconds"))


def _started_until(at: datetime) -> str:
    return f"StartTime < {_exact(at + timedelta(microseconds=1))}"


def _exact(at: datetime) -> str:
    """Return a time of Temporal's own, of which every microsecond counts."""
    return _text(at.astimezone(UTC).isoformat(timespec="microseconds"))

"""Lists and counts of jobs, from Temporal's visibility. They need no worker.

Only of ended runs that the ledger does not know by their own ids are the workflows described.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta

import msgspec
from msgspec.structs import replace
from temporalio.client import Client, WorkflowExecution, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from timemachine.domain.due_order import BEGINNING, END, DuePosition, Found, next_due_first
from timemachine.domain.job_filter import DECIDED_AS, JobFilter, ListedJob, ListedState
from timemachine.domain.jobs import to_ms
from timemachine.domain.outcomes import DECIDED, RowState
from timemachine.temporal.client import asked_together
from timemachine.temporal.job_runs import first_run_id
from timemachine.temporal.visibility import (
    RUNNING,
    all_due_jobs_query,
    all_held_jobs_query,
    all_open_jobs_query,
    ended_jobs_query,
    ended_state,
    job_query,
    later_runs_query,
    listed_job,
    open_jobs_query,
    status_counts_query,
)

MAX_PAGE = 1000
"""Runs that one query returns at most, as Temporal's own limit is."""

ENDED_LOOKS = 3
"""Times that a page asks for ended jobs at most. With fewer than it should have by then, the page is short."""

DESCRIBED_AT_ONCE = 10
"""Runs that are described at a time, for one page."""

# Statuses of runs of which the ledger may say otherwise.
_MAY_DIFFER = (WorkflowExecutionStatus.FAILED, WorkflowExecutionStatus.TIMED_OUT, WorkflowExecutionStatus.TERMINATED)


class ListPosition(msgspec.Struct, frozen=True, array_like=True):
    """How far a list is. Handed out in cursors: fields may only be added, with defaults."""

    began: int
    """When the first page was asked for, in milliseconds since the epoch. What ends later is not listed as ended."""
    waiting: DuePosition | None
    """How far the jobs are that have not ended; None when all are listed."""
    token: bytes = b""
    """The store's token of the ended ones."""


class JobPage(msgspec.Struct, frozen=True):
    """Some jobs, and where to go on; None at the end. It may be short, or empty, although there are more."""

    jobs: Sequence[ListedJob]
    next: ListPosition | None


class JobCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How many jobs there are."""

    states: dict[ListedState, int]
    due_within: dict[timedelta, int]
    """How many that are not due yet will be within a time from now."""


States = Callable[[Sequence[str]], Awaitable[Mapping[str, RowState]]]
"""Returns what the ledger has of some runs, by their first run's id."""

DUE_WITHIN = (timedelta(minutes=5), timedelta(hours=1), timedelta(hours=24))


async def list_jobs(
    client: Client, states: States, wanted: JobFilter, at: ListPosition | None, *, limit: int, now: datetime
) -> JobPage:
    """Return a page of the jobs of a filter: those that have not ended, the next due first, and then the others.

    Of those that have ended the latest is the first. A job that was created again is listed once, as it is now.

    Args:
        states: Asked of runs that have failed or were terminated.
        at: Where the page before this one ended.

    Raises:
        RPCError: Temporal does not answer.
        UnavailableError: The ledger does not answer.
    """
    at = at or _beginning(wanted, now)
    jobs: list[ListedJob] = []
    until = _due_until(wanted, now)
    if at.waiting and at.waiting.since < until:
        store = _WaitingJobs(client, wanted, now)
        jobs, waiting = await next_due_first(store, at.waiting, until, limit=limit, now=to_ms(now))
        if waiting:
            return JobPage(jobs, replace(at, waiting=waiting))
    if wanted.state and wanted.state.is_open:
        return JobPage(jobs, None)
    at = replace(at, waiting=None)
    for _ in range(ENDED_LOOKS):
        if len(jobs) == limit:
            return JobPage(jobs, at)
        found = await _ended(client, states, wanted, at, size=limit - len(jobs), now=now)
        # The store may not have known yet that a job has ended, or has another run, and know it now.
        listed = {job.workflow_id for job in jobs}
        jobs += [job for job in found.jobs if job.workflow_id not in listed]
        if not found.token:
            return JobPage(jobs, None)
        at = replace(at, token=found.token)
    return JobPage(jobs, at)


def _beginning(wanted: JobFilter, now: datetime) -> ListPosition:
    if wanted.state and not wanted.state.is_open:
        return ListPosition(to_ms(now), None)
    since = to_ms(now) + 1 if wanted.state is ListedState.SCHEDULED else BEGINNING
    return ListPosition(to_ms(now), DuePosition(max(since, wanted.due_from or 0)))


def _due_until(wanted: JobFilter, now: datetime) -> int:
    """Return before when the jobs of a filter are due."""
    until = to_ms(now) + 1 if wanted.state is ListedState.DUE else END
    return until if wanted.due_to is None else min(until, wanted.due_to)


class _WaitingJobs:
    """The jobs of a filter that have not ended, as the order by trigger times asks for them."""

    def __init__(self, client: Client, wanted: JobFilter, now: datetime) -> None:
        self._client = client
        self._wanted = wanted
        self._now = now

    async def look(self, since: int, until: int, *, size: int, token: bytes = b"") -> Found:
        within = self._within(since, until)
        runs, more = await _look(self._client, open_jobs_query(within, self._now), size, token)
        return Found(_included(runs, within, self._now), more)

    async def count(self, since: int, until: int) -> int:
        return (await self._client.count_workflows(open_jobs_query(self._within(since, until), self._now))).count

    def _within(self, since: int, until: int) -> JobFilter:
        """Return the filter within a window. One without a beginning or an end spares the store a comparison."""
        return replace(
            self._wanted, due_from=None if since == BEGINNING else since, due_to=None if until == END else until
        )


async def _ended(
    client: Client, states: States, wanted: JobFilter, at: ListPosition, *, size: int, now: datetime
) -> Found:
    within = replace(wanted, ended_to=at.began + 1 if wanted.ended_to is None else min(at.began + 1, wanted.ended_to))
    runs, more = await _look(client, ended_jobs_query(within, now), size, at.token)
    latest = await without_later_runs(client, runs)
    decided = await decisions(client, states, latest)
    jobs = [_as_decided(listed_job(run, now), decided.get(run.run_id)) for run in latest]
    return Found([job for job in jobs if within.includes(job) and not job.state.is_open], more)


def _as_decided(job: ListedJob, decision: RowState | None) -> ListedJob:
    return replace(job, state=DECIDED_AS[decision]) if decision else job


async def decisions(client: Client, states: States, runs: Sequence[WorkflowExecution]) -> dict[str, RowState]:
    """Return what the ledger has decided about some runs that have ended, by run id.

    Only of those that Temporal may have ended otherwise: an attempt can tell that its receiver took the job after the
    run has failed, or was terminated. A run completes, or is closed as canceled, by what the ledger has decided.

    Raises:
        RPCError: Temporal does not answer.
        UnavailableError: The ledger does not answer.
    """
    asked = [run for run in runs if run.status in _MAY_DIFFER]
    found = dict(await states([run.run_id for run in asked])) if asked else {}
    # One that was continued or reset has its row under its first run, which visibility does not know.
    first = await _first_runs(client, [run for run in asked if run.run_id not in found])
    by_first = await states(list(first.values())) if first else {}
    found |= {run_id: by_first[first_run] for run_id, first_run in first.items() if first_run in by_first}
    return {run_id: state for run_id, state in found.items() if state in DECIDED}


async def _first_runs(client: Client, runs: Sequence[WorkflowExecution]) -> dict[str, str]:
    """Return the first of the runs that each of some runs goes on from, of those that have another one before."""
    turns = asyncio.Semaphore(DESCRIBED_AT_ONCE)

    async def first_run(run: WorkflowExecution) -> str:
        try:
            async with turns:
                return first_run_id(await client.get_workflow_handle(run.id, run_id=run.run_id).describe())
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:  # its retention has ended
                return run.run_id
            raise

    async with asked_together() as tasks:
        asking = {run.run_id: tasks.create_task(first_run(run)) for run in runs}
    return {run_id: task.result() for run_id, task in asking.items() if task.result() != run_id}


async def _look(client: Client, query: str, size: int, token: bytes) -> tuple[list[WorkflowExecution], bytes]:
    page = client.list_workflows(query, page_size=size, next_page_token=token or None)
    await page.fetch_next_page()
    return list(page.current_page or ()), page.next_page_token or b""


def _included(runs: Sequence[WorkflowExecution], wanted: JobFilter, now: datetime) -> list[ListedJob]:
    return [job for job in (listed_job(run, now) for run in runs) if wanted.includes(job)]


async def without_later_runs(client: Client, runs: Sequence[WorkflowExecution]) -> list[WorkflowExecution]:
    """Return those of some ended runs after which their job has no other run.

    Raises:
        RPCError: Temporal does not answer.
    """
    latest: dict[str, datetime] = {}
    for run in runs:
        latest[run.id] = max(run.start_time, latest.get(run.id, run.start_time))
    undecided = set(latest)
    while undecided:
        since = min(run.close_time or run.start_time for run in runs)
        later, more = await _look(client, later_runs_query(sorted(undecided), since), MAX_PAGE, b"")
        for run in later:
            latest[run.id] = max(run.start_time, latest[run.id])
        # The store lists the latest run of each job before its others.
        undecided -= {run.id for run in later}
        if not more:
            break
    return [run for run in runs if run.start_time >= latest[run.id]]


async def count_jobs(client: Client, wanted: JobFilter, now: datetime) -> JobCounts:
    """Return how many jobs of a filter there are. They are counted by run, and as exactly as the store compares texts.

    Raises:
        RPCError: Temporal does not answer.
    """
    async with asked_together() as tasks:
        states = tasks.create_task(_count_by_state(client, wanted, now))
        soon = {within: tasks.create_task(_count_due_within(client, wanted, within, now)) for within in DUE_WITHIN}
    return JobCounts(states=states.result(), due_within={within: task.result() for within, task in soon.items()})


async def count_open_jobs(client: Client, now: datetime) -> dict[ListedState, int]:
    """Return how many jobs of all dbs there are in each of the states of those that have not ended.

    Raises:
        RPCError: Temporal does not answer.
    """
    running, held, due = [
        (await client.count_workflows(query)).count
        for query in (all_open_jobs_query(), all_held_jobs_query(), all_due_jobs_query(now))
    ]
    counted = _by_state({RUNNING: running}, held=held, due=due)
    return {state: count for state, count in counted.items() if state.is_open}


def _by_state(by_status: dict[str, int], *, held: int, due: int) -> dict[ListedState, int]:
    """Return how many jobs there are in each state. To count those that are neither held nor due would take as long."""
    counted = dict.fromkeys(ListedState, 0)
    counted[ListedState.HELD], counted[ListedState.DUE] = held, due
    for status, count in by_status.items():
        if (state := ended_state(status)) is not None:
            counted[state] += count
    # The counts are of different moments.
    counted[ListedState.SCHEDULED] = max(0, by_status.get(RUNNING, 0) - held - due)
    return counted


async def _count_by_state(client: Client, wanted: JobFilter, now: datetime) -> dict[ListedState, int]:
    if wanted.state is not None:
        return dict.fromkeys(ListedState, 0) | {wanted.state: await _count(client, wanted, wanted.state, now)}
    async with asked_together() as tasks:
        by_status = tasks.create_task(_count_by_status(client, wanted))
        held = tasks.create_task(_count(client, wanted, ListedState.HELD, now))
        due = tasks.create_task(_count(client, wanted, ListedState.DUE, now))
    return _by_state(by_status.result(), held=held.result(), due=due.result())


async def _count(client: Client, wanted: JobFilter, state: ListedState, now: datetime) -> int:
    return (await client.count_workflows(job_query(replace(wanted, state=state), now))).count


async def _count_by_status(client: Client, wanted: JobFilter) -> dict[str, int]:
    groups = (await client.count_workflows(status_counts_query(wanted))).groups
    return {str(group.group_values[0]): group.count for group in groups}


async def _count_due_within(client: Client, wanted: JobFilter, within: timedelta, now: datetime) -> int:
    """Return how many of the jobs that are not due yet will be within a time."""
    until = to_ms(now + within) if wanted.due_to is None else min(to_ms(now + within), wanted.due_to)
    if until <= (wanted.due_from or 0) or wanted.state not in (None, ListedState.SCHEDULED):
        return 0
    return await _count(client, replace(wanted, due_to=until), ListedState.SCHEDULED, now)

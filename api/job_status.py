"""A job as Temporal and the ledger know it, put into the words of the API. Needs no worker."""

from datetime import UTC, datetime

import msgspec
from msgspec import UNSET
from msgspec.structs import replace
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from api.schemas import JobOut, JobState
from timemachine.domain.delivery import AttemptsMade
from timemachine.domain.errors import NoSuchJobError
from timemachine.domain.jobs import Job, to_ms
from timemachine.domain.outcomes import Cancelled, Decision, Delivered, Failed, Held, LedgerRow, RowState, decision_of
from timemachine.domain.stored_names import HELD_SINCE
from timemachine.postgres.delivery_ledger import DeliveryLedger
from timemachine.temporal.job_runs import CANCELLED, JobRun, latest_run
from workflows.job import JobWorkflow

Run = WorkflowHandle[JobWorkflow, Delivered]


class JobStatus(msgspec.Struct, frozen=True):
    """A job as it is now: what it is to deliver, and what the API shows of it."""

    job: Job
    shown: JobOut
    run: JobRun
    row: LedgerRow | None
    """What the ledger has of it; None before its first attempt, hold or cancel."""


async def read_job_status(client: Client, ledger: DeliveryLedger, workflow_id: str) -> JobStatus:
    """Look at the job's latest run.

    Raises:
        NoSuchJobError: There is none.
        UnavailableError: Postgres does not answer.
    """
    latest = await latest_run(client, workflow_id)
    row = await ledger.find(latest.first_run_id)
    run = client.get_workflow_handle_for(JobWorkflow.run, workflow_id, run_id=latest.run_id)
    try:
        shown = await _show(run, latest, row)
        return JobStatus(latest.job, shown, latest, row)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            raise NoSuchJobError from error
        raise


async def _show(run: Run, latest: JobRun, row: LedgerRow | None) -> JobOut:
    """Return what the API shows of a job: what the ledger has decided, else how Temporal ended it, else the rest."""
    job = latest.job
    shown = JobOut(
        id=job.id,
        trigger_time=job.trigger_time,
        meta=job.meta,
        route=job.route,
        state=JobState.SCHEDULED,
        retry=job.retry or UNSET,
        deadline=job.deadline or UNSET,
        labels=job.labels or UNSET,
    )
    if row and row.is_decided:
        return _with_decision(shown, decision_of(row))
    if not latest.is_open:
        return await _with_outcome(run, shown, latest.status)
    if row:
        shown = _with_attempts(shown, row)
    if HELD_SINCE in latest.description.raw_description.workflow_execution_info.memo.fields:
        held: Held = await latest.description.memo_value(HELD_SINCE, type_hint=Held)
        return _with_hold(shown, held)
    return shown


def _with_decision(shown: JobOut, decision: Decision) -> JobOut:
    """Add how the ledger says that a job ended."""
    match decision:
        case Delivered():
            return replace(
                shown, state=JobState.DELIVERED, attempts=decision.attempts, delivered_at=decision.delivered_at
            )
        case Failed():
            return replace(shown, state=JobState.FAILED, attempts=decision.attempts, last_error=decision.reason)
        case Cancelled():
            return replace(shown, state=JobState.CANCELLED)


async def _with_outcome(run: Run, shown: JobOut, status: WorkflowExecutionStatus) -> JobOut:
    """Add how Temporal says that a job ended of which the ledger knows nothing, from its last event."""
    if status in CANCELLED:
        return replace(shown, state=JobState.CANCELLED)
    try:
        delivered = await run.result(follow_runs=False)
    except WorkflowFailureError as error:
        shown = replace(shown, state=JobState.FAILED)
        if not isinstance(error.cause, ApplicationError):
            return replace(shown, last_error=str(error.cause))
        details = error.cause.details
        made = msgspec.convert(details[0], AttemptsMade).made if details else UNSET
        return replace(shown, attempts=made, last_error=error.cause.message)
    return _with_decision(shown, delivered)


def _with_attempts(shown: JobOut, row: LedgerRow) -> JobOut:
    """Add how far the attempts are of a job that is not decided."""
    now = to_ms(datetime.now(UTC))
    next_at = now + int(row.seconds_left * 1000)
    waits = row.is_unattempted and shown.trigger_time > now
    return replace(
        shown,
        state=JobState.SCHEDULED if waits else JobState.DELIVERING,
        attempts=row.attempts_made or UNSET,
        next_attempt_time=next_at if row.state is RowState.WAITING and row.attempts_made else UNSET,
        last_error=(row.end.reason if row.end else None) or UNSET,
    )


def _with_hold(shown: JobOut, held: Held) -> JobOut:
    """Add why a job is held, or when it is released."""
    state = JobState.DELIVERING if held.attempts_made else JobState.SCHEDULED
    shown = replace(
        shown, state=state, attempts=held.attempts_made or UNSET, next_attempt_time=held.release_at or UNSET
    )
    return shown if held.release_at else replace(shown, held=held.reason)

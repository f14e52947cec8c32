"""A job as Temporal knows it, put into the words of the API. Needs no worker."""

from datetime import UTC, datetime
from enum import StrEnum

import msgspec
from msgspec import UNSET, Raw, UnsetType
from msgspec.structs import replace
from temporalio.api.enums.v1 import EventType, PendingWorkflowTaskState
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
)
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from api.wire import Id, RouteId, TriggerTime
from timemachine.delivery import AttemptsMade, Delivered, Held
from timemachine.errors import NoSuchJobError
from timemachine.job_runs import latest_run
from timemachine.jobs import Job
from timemachine.retry import Retry
from workflows.job import HELD_SINCE, JobWorkflow

Run = WorkflowHandle[JobWorkflow, Delivered]


class State(StrEnum):
    """Where a job is in its life."""

    SCHEDULED = "scheduled"
    DELIVERING = "delivering"
    DELIVERED = "delivered"
    FAILED = "failed"
    CANCELLED = "cancelled"


_STATES = {
    WorkflowExecutionStatus.RUNNING: State.SCHEDULED,
    WorkflowExecutionStatus.CONTINUED_AS_NEW: State.SCHEDULED,
    WorkflowExecutionStatus.COMPLETED: State.DELIVERED,
    WorkflowExecutionStatus.FAILED: State.FAILED,
    WorkflowExecutionStatus.TIMED_OUT: State.FAILED,
    WorkflowExecutionStatus.CANCELED: State.CANCELLED,
    WorkflowExecutionStatus.TERMINATED: State.CANCELLED,
}


class JobOut(msgspec.Struct, frozen=True, kw_only=True):
    """A job, and where it is in its life."""

    id: Id
    trigger_time: TriggerTime
    meta: Raw
    route: RouteId
    state: State
    attempts: int | UnsetType = UNSET
    """Attempts that have reached out to the receiver and ended."""
    next_attempt_time: int | UnsetType = UNSET
    """When the next attempt is made, in milliseconds since the epoch, while the job waits between two."""
    last_error: str | UnsetType = UNSET
    """Why the last attempt, or the whole job, failed."""
    delivered_at: int | UnsetType = UNSET
    """When the receiver took the job, in milliseconds since the epoch."""
    held: str | UnsetType = UNSET
    """Why the job is held back, while its route is paused or disabled."""
    retry: Retry | UnsetType = UNSET
    """The job's own retry, where it has one."""
    deadline: int | UnsetType = UNSET
    """When the job is no longer worth delivering, in milliseconds since the epoch, where it has a deadline."""


class Snapshot(msgspec.Struct, frozen=True):
    """A job as it is now: what it is to deliver, and what the API shows of it."""

    job: Job
    shown: JobOut
    cancel_requested: bool
    """Whether a cancel was asked for, and its answer may not be known yet."""


async def take_snapshot(client: Client, workflow_id: str) -> Snapshot:
    """Look at the job's latest run.

    Raises:
        NoSuchJobError: There is none.
    """
    latest = await latest_run(client, workflow_id)
    run = client.get_workflow_handle_for(JobWorkflow.run, workflow_id, run_id=latest.run_id)
    try:
        shown = await _show(client, run, latest.description, latest.job)
        return Snapshot(latest.job, shown, latest.cancel_requested)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            raise NoSuchJobError from error
        raise


async def _show(client: Client, run: Run, description: WorkflowExecutionDescription, job: Job) -> JobOut:
    """Return what the API shows of a job."""
    state = _STATES[description.status or WorkflowExecutionStatus.RUNNING]
    shown = JobOut(
        id=job.id,
        trigger_time=job.trigger_time,
        meta=job.meta,
        route=job.route,
        state=state,
        retry=job.retry or UNSET,
        deadline=job.deadline or UNSET,
    )
    if state in (State.DELIVERED, State.FAILED):
        return await _with_outcome(run, shown)
    if state is State.CANCELLED:
        return shown
    if HELD_SINCE in description.raw_description.workflow_execution_info.memo.fields:
        held: Held = await description.memo_value(HELD_SINCE, type_hint=Held)
        state = State.DELIVERING if held.made else State.SCHEDULED
        return replace(shown, state=state, attempts=held.made or UNSET, held=held.reason)
    for pending in description.raw_description.pending_activities:
        if pending.activity_type.name == "deliver":
            return await _with_attempts(client, pending, shown)
    if job.trigger_at <= datetime.now(UTC) and (_at_work(description) or await _attempted(run)):
        return replace(shown, state=State.DELIVERING)
    return shown


async def _with_outcome(run: Run, shown: JobOut) -> JobOut:
    """Add how a job ended, from its last event."""
    try:
        delivered = await run.result(follow_runs=False)
    except WorkflowFailureError as error:
        if not isinstance(error.cause, ApplicationError):
            return replace(shown, last_error=str(error.cause))
        details = error.cause.details
        made = msgspec.convert(details[0], AttemptsMade).made if details else UNSET
        return replace(shown, attempts=made, last_error=error.cause.message)
    return replace(shown, attempts=delivered.attempts, delivered_at=delivered.delivered_at)


async def _with_attempts(client: Client, pending: PendingActivityInfo, shown: JobOut) -> JobOut:
    """Add how far the attempts are."""
    made = 0
    if pending.heartbeat_details.payloads:
        (detail,) = await client.data_converter.decode(pending.heartbeat_details.payloads, [AttemptsMade])
        made = detail.made
    waits = pending.HasField("next_attempt_schedule_time")
    return replace(
        shown,
        state=State.DELIVERING,
        attempts=made,
        next_attempt_time=pending.next_attempt_schedule_time.ToMilliseconds() if waits else UNSET,
        last_error=pending.last_failure.message or UNSET,
    )


def _at_work(description: WorkflowExecutionDescription) -> bool:
    """Return whether a worker has the job in its hands: the first attempt is made within the workflow task."""
    task = description.raw_description.pending_workflow_task
    return task.state == PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_STARTED


async def _attempted(run: Run) -> bool:
    """Return whether the attempts have begun, for the moment when the last one's end is not yet the job's."""
    async for event in run.fetch_history_events():
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
            return True
    return False

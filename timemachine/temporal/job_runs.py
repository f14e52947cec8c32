"""The door to jobs as Temporal runs them: what a job's latest run is, and how one is started."""

from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import msgspec
from temporalio.client import (
    Client,
    WorkflowExecution,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowHandle,
)
from temporalio.common import Priority, SearchAttributePair, TypedSearchAttributes, WorkflowIDReusePolicy
from temporalio.service import RPCError, RPCStatusCode

from timemachine.domain import stored_names
from timemachine.domain.delivery import expired
from timemachine.domain.errors import NoSuchJobError, TooLateError
from timemachine.domain.events import JobFacts
from timemachine.domain.jobs import Job, message_id, split_workflow_id, to_ms
from timemachine.domain.outcomes import LedgerRow, RowState
from timemachine.domain.traces import with_links
from timemachine.temporal.client import asked_together
from timemachine.temporal.search_attributes import COLLECTION, CREATED_BY, DB, LABELS, ROUTE, TRIGGER_TIME

T = TypeVar("T")

_ENDED = (WorkflowExecutionStatus.COMPLETED, WorkflowExecutionStatus.FAILED, WorkflowExecutionStatus.TIMED_OUT)
CANCELLED = (WorkflowExecutionStatus.CANCELED, WorkflowExecutionStatus.TERMINATED)

_REFUSING_ATTEMPT = 3
"""Attempt of a workflow task from which on Temporal refuses updates (its `failUpdateWorkflowTaskAttemptCount`)."""


class Redelivers(msgspec.Struct, frozen=True, kw_only=True):
    """What a run delivers once more. Stored in memos: fields may only be added, with defaults."""

    run_id: str
    """The run that had ended."""
    by: str | None = None
    """The run of the redelivery of many that did it; None when one job was asked for."""


class JobRun(msgspec.Struct, frozen=True):
    """A job's latest run, and the job as it last was."""

    job: Job
    description: WorkflowExecutionDescription

    @property
    def run_id(self) -> str:
        """The id of this run."""
        return self.description.run_id

    @property
    def first_run_id(self) -> str:
        """The id of the first of the runs that continue each other, by which the ledger knows them."""
        return first_run_id(self.description)

    @property
    def status(self) -> WorkflowExecutionStatus:
        """Whether it runs, or how it ended."""
        return self.description.status or WorkflowExecutionStatus.RUNNING

    @property
    def is_open(self) -> bool:
        """Whether the job still waits or is being delivered."""
        return self.status not in _ENDED + CANCELLED

    @property
    def cancel_requested(self) -> bool:
        """Whether a cancel was asked for, which an attempt in flight may still forestall."""
        return self.description.raw_description.workflow_extended_info.cancel_requested

    @property
    def message_id(self) -> str:
        """The `webhook-id` of its deliveries."""
        return self.job.message_id or message_id(self.first_run_id)

    @property
    def reuse(self) -> WorkflowIDReusePolicy:
        """By which policy another run is started after this one has ended.

        Of two who start one at once the second is then refused, though what the first one started may have been
        delivered by then. Only after a delivered run Temporal knows no policy that would tell the two apart.
        """
        delivered = self.status is WorkflowExecutionStatus.COMPLETED
        return WorkflowIDReusePolicy.ALLOW_DUPLICATE if delivered else WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY


async def redelivers(run: WorkflowExecution) -> Redelivers | None:
    """Return what a run delivers once more, or None for a job's first delivery."""
    found: Redelivers | None = await run.memo_value(stored_names.REDELIVERS, None, type_hint=Redelivers)
    return found


def first_run_id(description: WorkflowExecutionDescription) -> str:
    """Return the id of the first of the runs that continue each other."""
    return description.raw_description.workflow_execution_info.first_run_id


def facts_of_run(description: WorkflowExecutionDescription) -> JobFacts | None:
    """Return what events tell of a job, beside its end; None where Temporal does not know it."""
    db, collection, job_id = split_workflow_id(description.id)
    attributes = description.typed_search_attributes
    route, trigger_at = attributes.get(ROUTE), attributes.get(TRIGGER_TIME)
    if route is None or trigger_at is None:
        return None
    return JobFacts(
        db=db,
        collection=collection,
        id=job_id,
        trigger_time=to_ms(trigger_at),
        route=route.removeprefix(f"{db}/"),
    )


def was_reset(description: WorkflowExecutionDescription) -> bool:
    """Return whether an operator's reset has begun this run: it does not know what the one before it was doing."""
    return description.raw_description.workflow_extended_info.HasField("last_reset_time")


def lacks_changes(description: WorkflowExecutionDescription) -> bool:
    """Return whether a run that was reset may not know of all changes yet: its next task hands them over."""
    return was_reset(description) and description.raw_description.HasField("pending_workflow_task")


def refuses_updates(description: WorkflowExecutionDescription) -> bool:
    """Return whether Temporal takes no update of a run, because two attempts of its workflow task were lost or failed.

    Who asks all the same does harm: Temporal loads the run anew after each refusal, and gives an attempt one second to
    begin. While updates come again and again, the next attempts are lost, too.
    """
    raw = description.raw_description
    return raw.HasField("pending_workflow_task") and raw.pending_workflow_task.attempt >= _REFUSING_ATTEMPT


async def describe_job(client: Client, workflow_id: str) -> WorkflowExecutionDescription:
    """Return what Temporal tells of a job's latest run.

    Raises:
        NoSuchJobError: There is none, or it ended longer ago than the namespace's retention; or the workflow is no job.
    """
    try:
        description = await client.get_workflow_handle(workflow_id).describe()
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            raise NoSuchJobError from error
        raise
    if description.workflow_type != stored_names.JOB:
        raise NoSuchJobError
    return description


async def latest_run(client: Client, workflow_id: str) -> JobRun:
    """Return the latest run of a job, and the job as it was last changed.

    Raises:
        NoSuchJobError: As `describe_job` does.
    """
    handle = client.get_workflow_handle(workflow_id)
    try:
        async with asked_together() as tasks:
            described = tasks.create_task(_unless_missing(describe_job(client, workflow_id)))
            started = tasks.create_task(_unless_missing(_started_with(client, handle)))
        description, begun = described.result(), started.result()
        if description is None or begun is None:
            raise NoSuchJobError
        started_run, job = begun
        if started_run != description.run_id:
            _, job = await _started_with(client, client.get_workflow_handle(workflow_id, run_id=description.run_id))
        if stored_names.CHANGED_JOB in description.raw_description.workflow_execution_info.memo.fields:
            job = await description.memo_value(stored_names.CHANGED_JOB, type_hint=Job)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            raise NoSuchJobError from error
        raise
    return JobRun(job, description)


async def _unless_missing(asking: Awaitable[T]) -> T | None:
    """Return the answer, or None where there is no such job.

    It is no failure, as the other question would be given up then, which a dev server may get stuck by: see
    docs/decisions/0036-stuck-sqlite.md.
    """
    try:
        return await asking
    except NoSuchJobError:
        return None
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return None
        raise


async def _started_with(client: Client, handle: WorkflowHandle[object, object]) -> tuple[str, Job]:
    """Return the run id and the input of a run, from its first event.

    Raises:
        NoSuchJobError: It is no job's.
    """
    event = await anext(handle.fetch_history_events(page_size=1))
    started = event.workflow_execution_started_event_attributes
    if started.workflow_type.name != stored_names.JOB:
        raise NoSuchJobError
    (job,) = await client.data_converter.decode(started.input.payloads, [Job])
    return started.original_execution_run_id, job


async def start_job(
    client: Client,
    job: Job,
    *,
    task_queue: str,
    reuse: WorkflowIDReusePolicy,
    created_by: str | None = None,
    redelivers: Redelivers | None = None,
) -> str:
    """Start a job's workflow, which waits until its trigger time, and return the id of its run.

    Args:
        created_by: The id of the key that asked for the job, where keys are needed.
        redelivers: What this run delivers once more, if it does.

    Raises:
        WorkflowAlreadyStartedError: The job runs, or its last run ended in a way that the policy does not let pass.
    """
    run = await client.start_workflow(
        stored_names.JOB,
        msgspec.structs.replace(job.with_history_limit, attempt_in_task=True, ledger=True),
        id=job.workflow_id,
        task_queue=task_queue,
        id_reuse_policy=reuse,
        start_delay=max(job.trigger_at - datetime.now(UTC), timedelta(0)) or None,
        search_attributes=_search_attributes(job, created_by),
        memo=_memo(redelivers),
        priority=Priority(fairness_key=job.fairness_key),
        static_summary=f"due {job.trigger_at.isoformat()} → {job.route_key}",
    )
    return run.first_execution_run_id or ""


def _memo(redelivers: Redelivers | None) -> dict[str, Any]:
    """Return what a run and those that it is continued as keep: when a later one was created is not the start of it."""
    created_at = {stored_names.CREATED_AT: to_ms(datetime.now(UTC))}
    return created_at | ({stored_names.REDELIVERS: redelivers} if redelivers else {})


def _search_attributes(job: Job, created_by: str | None) -> TypedSearchAttributes:
    """Return what visibility finds a job by. What a job lacks takes no row of an index."""
    pairs: list[SearchAttributePair[Any]] = [
        SearchAttributePair(DB, job.db),
        SearchAttributePair(COLLECTION, job.collection_key),
        SearchAttributePair(ROUTE, job.route_key),
        SearchAttributePair(TRIGGER_TIME, job.trigger_at),
    ]
    if job.labels:
        pairs.append(SearchAttributePair(LABELS, job.labels))
    if created_by:
        pairs.append(SearchAttributePair(CREATED_BY, created_by))
    return TypedSearchAttributes(pairs)


def check_redeliverable(run: JobRun, row: LedgerRow | None) -> None:
    """Refuse a job that is not to be delivered once more.

    Args:
        row: What the ledger has of the run.

    Raises:
        TooLateError: It has not ended, was cancelled, or its deadline has passed.
    """
    if row and row.is_cancelled_in_doubt:
        raise TooLateError("the job was cancelled, and its receiver may have taken it before; create it again instead")
    # Where the row is decided it counts: an operator may have terminated a workflow whose job had ended.
    is_cancelled = row.state is RowState.CANCELLED if row and row.is_decided else run.status in CANCELLED
    if is_cancelled:
        raise TooLateError("the job was cancelled; create it again instead")
    if run.is_open:
        raise TooLateError("too early: the job has not ended yet")
    if expired(run.job, datetime.now(UTC)):
        raise TooLateError("too late: the job's deadline has passed")


async def redeliver(
    client: Client,
    run: JobRun,
    row: LedgerRow | None,
    *,
    task_queue: str,
    by: str | None = None,
    trace_links: tuple[str, ...] = (),
) -> None:
    """Start an ended job anew, with the content that it last had and the same `webhook-id`.

    Args:
        row: What the ledger has of the run.
        by: The run of the redelivery of many that does it.
        trace_links: The request that asks for it, to be kept with the job.

    Raises:
        TooLateError: It is not to be delivered once more.
        WorkflowAlreadyStartedError: The job has been started by somebody else in this moment.
    """
    check_redeliverable(run, row)
    await start_job(
        client,
        msgspec.structs.replace(
            run.job,
            message_id=run.message_id,
            attempts_made=0,
            hold_checks=0,
            trace_links=with_links(run.job.trace_links, trace_links),
        ),
        task_queue=task_queue,
        reuse=run.reuse,
        created_by=run.description.typed_search_attributes.get(CREATED_BY),
        redelivers=Redelivers(run_id=run.run_id, by=by),
    )

"""Operations as Temporal runs them: how one is started, found, listed and stopped, and how far it is.

None of it needs a worker.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeVar

import msgspec
from temporalio.api.common.v1 import Payloads
from temporalio.api.enums.v1 import EventType
from temporalio.client import (
    Client,
    WorkflowExecution,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowHistoryEventFilterType,
)
from temporalio.common import SearchAttributePair, TypedSearchAttributes, WorkflowIDConflictPolicy
from temporalio.service import RPCError, RPCStatusCode

from timemachine.domain import stored_names
from timemachine.domain.cancels import CancelProgress
from timemachine.domain.errors import NoSuchOperationError, TooLateError
from timemachine.domain.job_filter import JobFilter
from timemachine.domain.operations import (
    WORKFLOW_TYPES,
    Counts,
    OperationKey,
    OperationKind,
    OperationState,
    key_of_workflow,
    parse_operation_id,
)
from timemachine.domain.redelivery import Progress
from timemachine.domain.releases import Released
from timemachine.temporal.client import asked_together
from timemachine.temporal.search_attributes import CREATED_BY, DB, ROUTE
from timemachine.temporal.visibility import operations_query

P = TypeVar("P")

_KINDS = {name: kind for kind, name in WORKFLOW_TYPES.items()}

_PROGRESS: Mapping[OperationKind, type[Released | Progress | CancelProgress]] = {
    OperationKind.RELEASE: Released,
    OperationKind.REDELIVERY: Progress,
    OperationKind.CANCEL: CancelProgress,
}

_STATES = {
    WorkflowExecutionStatus.COMPLETED: OperationState.DONE,
    WorkflowExecutionStatus.CANCELED: OperationState.STOPPED,
    WorkflowExecutionStatus.TERMINATED: OperationState.STOPPED,
    WorkflowExecutionStatus.FAILED: OperationState.FAILED,
    WorkflowExecutionStatus.TIMED_OUT: OperationState.FAILED,
}


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """An operation, and how far it is."""

    id: str
    key: OperationKey
    state: OperationState
    counts: Counts | None
    """None where nothing is known: it has not begun, or was stopped before it could tell."""
    started_at: datetime
    ended_at: datetime | None
    started_by: str | None
    """The id of the key that asked for it."""
    filter: JobFilter | None
    """Of a cancel: the jobs that are meant."""


async def start_operation(
    client: Client,
    key: OperationKey,
    argument: object,
    *,
    task_queue: str,
    summary: str,
    route: str | None = None,
    wanted: JobFilter | None = None,
    started_by: str | None = None,
    replaces: bool = False,
) -> str:
    """Start an operation, unless one with this key is under way, and return the id of that which then is.

    Args:
        argument: What its workflow takes.
        summary: For the reader of Temporal's Web UI.
        route: The route that it is about, if it is about one.
        wanted: The jobs that are meant, where a filter says it.
        started_by: The id of the key that asks for it.
        replaces: One that is under way ends instead.

    Raises:
        RPCError: Temporal does not answer.
    """
    run = await client.start_workflow(
        WORKFLOW_TYPES[key.kind],
        argument,
        id=key.workflow_id,
        task_queue=task_queue,
        id_conflict_policy=(
            WorkflowIDConflictPolicy.TERMINATE_EXISTING if replaces else WorkflowIDConflictPolicy.USE_EXISTING
        ),
        search_attributes=_search_attributes(key.db, route, started_by),
        memo={stored_names.JOB_FILTER: wanted} if wanted else None,
        static_summary=summary,
    )
    return key.operation_id(run.result_run_id or "")


def _search_attributes(db: str, route: str | None, started_by: str | None) -> TypedSearchAttributes:
    pairs: list[SearchAttributePair[Any]] = [SearchAttributePair(DB, db)]
    if route:
        pairs.append(SearchAttributePair(ROUTE, f"{db}/{route}"))
    if started_by:
        pairs.append(SearchAttributePair(CREATED_BY, started_by))
    return TypedSearchAttributes(pairs)


async def find_operation(client: Client, db: str, operation_id: str, *, with_counts: bool = True) -> Operation:
    """Return an operation.

    Args:
        with_counts: Whether to find out how far it is.

    Raises:
        ForbiddenNameError: The db or the id has characters that no name has.
        NoSuchOperationError: There is none, or it ended longer ago than the namespace's retention.
    """
    key, run_id = parse_operation_id(db, operation_id)
    run = await _last_run(client, key.workflow_id, run_id)
    return await _show(client, run, operation_id, with_counts=with_counts)


async def list_operations(
    client: Client, db: str, *, limit: int, page_token: bytes | None
) -> tuple[list[Operation], bytes | None]:
    """Return a page of the operations of a db, those under way first and then the latest to end, and the next's token.

    Visibility lags behind by a fraction of a second.
    """
    listed = client.list_workflows(operations_query(db), page_size=limit, next_page_token=page_token)
    await listed.fetch_next_page()
    runs = [run for run in listed.current_page or () if run.typed_search_attributes.get(DB) == db]
    async with asked_together() as tasks:
        shown = [tasks.create_task(_shown_in_list(client, run)) for run in runs]
    return [operation for task in shown if (operation := task.result())], listed.next_page_token


async def stop_operation(client: Client, db: str, operation_id: str) -> None:
    """Have an operation stop, which it does within seconds while a worker runs. One that was stopped stays so.

    Raises:
        ForbiddenNameError, NoSuchOperationError: As `find_operation`.
        TooLateError: It has ended.
    """
    key, run_id = parse_operation_id(db, operation_id)
    run = await _last_run(client, key.workflow_id, run_id)
    while run.status is WorkflowExecutionStatus.RUNNING:
        await _request_cancel(client, run)
        asked, run = run, await _last_run(client, run.id, run.run_id)
        # Temporal also takes the cancel of a run that has just been continued as a new one, and does nothing.
        if run.run_id == asked.run_id and run.status is WorkflowExecutionStatus.RUNNING:
            return
    if (await find_operation(client, db, operation_id)).state is not OperationState.STOPPED:
        raise TooLateError("too late: the operation has ended")


async def _request_cancel(client: Client, run: WorkflowExecutionDescription) -> None:
    try:
        await client.get_workflow_handle(run.id, run_id=run.run_id).cancel()
    except RPCError as error:
        # It has ended since.
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise


async def read_progress(client: Client, run: WorkflowExecution, kind: type[P]) -> P | None:
    """Return how far bulk work is: the heartbeat of its workflow's activity, and in the end the workflow's result.

    Returns None where nothing is known: it has not begun, or was stopped before it could tell.
    """
    handle = client.get_workflow_handle(run.id, run_id=run.run_id, result_type=kind)
    described = run if isinstance(run, WorkflowExecutionDescription) else await handle.describe()
    if described.status is WorkflowExecutionStatus.COMPLETED:
        result: P | None = await handle.result(follow_runs=False)
        return result
    if described.status is not WorkflowExecutionStatus.RUNNING:
        return None
    for activity in described.raw_description.pending_activities:
        if activity.heartbeat_details.payloads:
            return await _decoded(client, activity.heartbeat_details, kind)
    progress = None
    async for event in handle.fetch_history_events():
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
            # Between two activities, or just about to end.
            progress = event.activity_task_completed_event_attributes.result
    return await _decoded(client, progress, kind) if progress else None


async def _decoded(client: Client, payloads: Payloads, kind: type[P]) -> P:
    progress: P
    (progress,) = await client.data_converter.decode(payloads.payloads[:1], [kind])
    return progress


async def _last_run(client: Client, workflow_id: str, run_id: str) -> WorkflowExecutionDescription:
    """Return the run of this id, or the last of those by which it was continued.

    Raises:
        NoSuchOperationError: There is none.
    """
    try:
        while True:
            handle = client.get_workflow_handle(workflow_id, run_id=run_id)
            run = await handle.describe()
            if run.status is not WorkflowExecutionStatus.CONTINUED_AS_NEW:
                return run
            end = await anext(handle.fetch_history_events(event_filter_type=WorkflowHistoryEventFilterType.CLOSE_EVENT))
            run_id = end.workflow_execution_continued_as_new_event_attributes.new_execution_run_id
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            raise NoSuchOperationError from error
        raise


async def _shown_in_list(client: Client, run: WorkflowExecution) -> Operation | None:
    """Return a run that was listed, as it is now; None when Temporal has just forgotten it."""
    try:
        if run.status is WorkflowExecutionStatus.RUNNING:
            run = await client.get_workflow_handle(run.id, run_id=run.run_id).describe()
        return await _show(client, run)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return None
        raise


async def _show(
    client: Client, run: WorkflowExecution, operation_id: str | None = None, *, with_counts: bool = True
) -> Operation:
    kind = _KINDS[run.workflow_type]
    key = key_of_workflow(kind, run.id)
    progress = await read_progress(client, run, _PROGRESS[kind]) if with_counts else None
    counts = progress.counts if progress else None
    state = _STATES.get(run.status or WorkflowExecutionStatus.RUNNING, OperationState.RUNNING)
    return Operation(
        id=operation_id or key.operation_id(run.run_id),
        key=key,
        state=OperationState.STOPPED if state is OperationState.DONE and counts and counts.stopped else state,
        counts=counts,
        started_at=run.start_time,
        ended_at=run.close_time,
        started_by=run.typed_search_attributes.get(CREATED_BY),
        filter=await run.memo_value(stored_names.JOB_FILTER, None, type_hint=JobFilter),
    )

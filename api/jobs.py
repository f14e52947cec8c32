"""The four endpoints of a job: each asks Temporal and the ledger, and answers what they know for certain."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any
from weakref import WeakValueDictionary

from litestar import Controller, Response, delete, get, post, put
from litestar.datastructures import ResponseHeader
from litestar.di import NamedDependency
from litestar.params import JSONBody, QueryParameter
from msgspec import UNSET
from msgspec.structs import replace
from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowHandle,
    WorkflowUpdateFailedError,
)
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from activities.cancel import Cancels
from api.authentication import AuthenticatedRequest, requires
from api.errors import refusals
from api.job_filters import WithPrefix
from api.job_lists import JobLists
from api.job_status import JobStatus, read_job_status
from api.known_routes import KnownRoutes
from api.litestar_json import ExactJson
from api.pagination import DEFAULT_LIMIT, Cursor, Limit
from api.parameters import Collection, CollectionOfClients, Db, JobIdInPath
from api.schemas import JobChange, JobIn, JobOut, JobsPage, JobState, Ok
from timemachine import metrics
from timemachine.domain.audit import Caller
from timemachine.domain.delivery import expired
from timemachine.domain.errors import (
    ContentTypeError,
    ForbiddenNameError,
    JobExistsError,
    MalformedError,
    NoSuchJobError,
    NoSuchRouteError,
    TooLargeError,
    TooLateError,
    TriggerTimeError,
    UnavailableError,
)
from timemachine.domain.job_filter import JobFilter
from timemachine.domain.jobs import Job, check_job, check_key, check_not_past, log_fields_of
from timemachine.domain.keys import Role
from timemachine.domain.outcomes import LedgerRow, RowState
from timemachine.domain.stored_names import TOO_LATE
from timemachine.postgres.delivery_ledger import LOST_REASON, DeliveryLedger
from timemachine.postgres.route_store import RouteStore
from timemachine.settings import Settings
from timemachine.temporal.client import temporal_timeout
from timemachine.temporal.job_runs import (
    JobRun,
    describe_job,
    first_run_id,
    lacks_changes,
    latest_run,
    refuses_updates,
    start_job,
    was_reset,
)
from workflows.job import JobWorkflow

log = logging.getLogger(__name__)


UNDECIDED = (JobState.SCHEDULED, JobState.DELIVERING)

START_TRIES = 3
"""Times that a job is tried to be started, when its id is taken by one that has ended, or by yet another one then."""

PUT_TRIES = 10
"""Times that a job is tried to be started or else changed, when what was there is gone in between."""

CANCEL_SHARE = 0.9
"""Part of the time limit of a request in which a cancel has to be decided; the rest is for the calls around it."""

UPDATE_PAUSE = 0.05
"""Seconds after which an update is sent again that met no run which could have taken it."""

LOST_TASK_PAUSE = 0.5
"""Seconds between two looks whether Temporal takes updates of a run again whose workflow task was lost."""

Update = Callable[[WorkflowHandle[Any, Any]], Awaitable[None]]
"""Sends an update to a job's workflow, and waits for its end."""


class JobWritten(StrEnum):
    """What a request has done to a job: the value of the header `timemachine-job`."""

    CREATED = "created"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    """The same job was there before."""


class Jobs:
    """Jobs, each a workflow in Temporal, and a row in the ledger once it is due or cancelled.

    Every method raises UnavailableError when Temporal or Postgres does not answer in time, and BusyError when
    Temporal takes no more.
    """

    def __init__(self, client: Client, routes: RouteStore, ledger: DeliveryLedger, settings: Settings) -> None:
        """Take the clients of Temporal and Postgres."""
        self._client = client
        self._routes = KnownRoutes(routes)
        self._ledger = ledger
        self._cancels = Cancels(client, ledger)
        self._task_queue = settings.task_queue
        self._limit = settings.request_timeout
        self._turns = WeakValueDictionary[str, asyncio.Lock]()

    async def create(self, job: Job, *, key_id: str | None = None) -> JobWritten:
        """Start a job, unless the same one is there: starting it again changes nothing, even after it was delivered.

        Args:
            key_id: The key that asks for it, where keys are needed.

        Raises:
            TriggerTimeError, MalformedError, TooLargeError: The job is not allowed.
            NoSuchRouteError: Its route does not exist.
            JobExistsError: Another job with this id waits or is being delivered.
        """
        check_job(job, datetime.now(UTC))
        async with temporal_timeout(self._limit):
            await self._routes.check(job.db, job.route)
            if await self._is_late_repetition(job):
                return JobWritten.UNCHANGED
            return await self._create(job, key_id)

    async def put(self, job: Job, *, key_id: str | None = None) -> JobWritten:
        """Create a job, or replace the one that waits. The same one, even when it has ended, is left as it is.

        Args:
            key_id: The key that asks for it, where keys are needed.

        Raises:
            TriggerTimeError, MalformedError, TooLargeError: The job is not allowed.
            NoSuchRouteError: Its route does not exist.
            TooLateError: Another job with this id is due or has been attempted.
            JobExistsError: What has this id is no job, or one job after another has it.
        """
        check_job(job, datetime.now(UTC))
        async with temporal_timeout(self._limit):
            await self._routes.check(job.db, job.route)
            if await self._is_late_repetition(job):
                return JobWritten.UNCHANGED
            for _ in range(PUT_TRIES):
                with suppress(JobExistsError):
                    return await self._create(job, key_id)
                # Each look may be outdated by others that create, change, cancel and deliver the job meanwhile.
                with suppress(NoSuchJobError):
                    if written := await self._change_unless_ended(job, key_id):
                        return written
        raise JobExistsError(f"{job.id} is no job, or is created and ended all the time in {job.db}/{job.collection}")

    async def _change_unless_ended(self, job: Job, key_id: str | None) -> JobWritten | None:
        """Replace a waiting job, and return None where it has ended: there is room for another one.

        Raises:
            NoSuchJobError: There is none.
            TooLateError: Another one is due or has been attempted.
        """
        async with self._turn(job.workflow_id):
            description = await describe_job(self._client, job.workflow_id)
            try:
                await self._change(description, job, key_id)
            except TooLateError:
                existing = await read_job_status(self._client, self._ledger, job.workflow_id)
                # Another one that has been created since may well be changed.
                if existing.run.first_run_id != first_run_id(description) or existing.shown.state not in UNDECIDED:
                    return None
                # A request that was answered 503 may have taken effect since, and this one repeats it.
                if _is_same_create(existing, job):
                    return JobWritten.UNCHANGED
                raise
        return JobWritten.CHANGED

    async def _is_late_repetition(self, job: Job) -> bool:
        """Return whether a job whose time is past is there already: it is asked for once more.

        Raises:
            TriggerTimeError: Its time is past, and it is not.
        """
        try:
            check_not_past(job.trigger_time, datetime.now(UTC), deadline=job.deadline)
        except TriggerTimeError:
            if await self._is_already_created(job):
                return True
            raise
        return False

    async def _create(self, job: Job, key_id: str | None) -> JobWritten:
        """Start a job whose route and time are fine, unless the same one is there.

        Raises:
            JobExistsError: Another job with this id waits or is being delivered.
        """
        run_id = await self._start(job, key_id)
        if run_id is None:
            return JobWritten.UNCHANGED
        metrics.JOBS_CREATED.add()
        _log("job created", job, key_id, run_id)
        return JobWritten.CREATED

    async def _start(self, job: Job, key_id: str | None) -> str | None:
        """Start the workflow and return its run's id, or None where the same job is there.

        An id whose last job has ended may be used again.
        """
        reuse = WorkflowIDReusePolicy.REJECT_DUPLICATE
        for _ in range(START_TRIES):
            try:
                return await start_job(self._client, job, task_queue=self._task_queue, reuse=reuse, created_by=key_id)
            except WorkflowAlreadyStartedError:
                existing = await self._existing(job)
            if existing is None:  # forgotten since, or no job of ours
                continue
            if _is_same_create(existing, job):
                return None
            reuse = existing.run.reuse
            if not existing.run.is_open:
                continue
            if existing.shown.state is JobState.CANCELLED:
                await self._terminate_cancelled(existing.run)
            elif existing.shown.state in UNDECIDED:
                raise _other_exists(job, existing.shown.state)
            else:
                raise UnavailableError("the last job with this id is about to end; repeat this request in a moment")
        raise _other_exists(job, JobState.SCHEDULED)

    async def _terminate_cancelled(self, run: JobRun) -> None:
        """Make room for another job where the ledger says that this one is cancelled, which it may not know yet."""
        handle = self._client.get_workflow_handle(run.description.id, run_id=run.run_id)
        try:
            await handle.terminate(reason="cancelled, and created again")
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise

    async def _is_already_created(self, job: Job) -> bool:
        """Return whether this very job is there, waiting or ended by itself."""
        existing = await self._existing(job)
        return existing is not None and _is_same_create(existing, job)

    async def _existing(self, job: Job) -> JobStatus | None:
        """Return what there is under a job's id, if there is a job."""
        try:
            return await read_job_status(self._client, self._ledger, job.workflow_id)
        except NoSuchJobError:
            return None

    async def find(self, job_workflow_id: str) -> JobOut:
        """Return a job and where it is in its life. Needs no worker.

        Raises:
            NoSuchJobError: There is none, or it ended longer ago than the namespace's retention.
        """
        async with temporal_timeout(self._limit):
            return (await read_job_status(self._client, self._ledger, job_workflow_id)).shown

    async def change(self, job: Job, *, key_id: str | None = None) -> None:
        """Replace a waiting job. When this returns, the old one is never delivered.

        Args:
            key_id: The key that asks for it, for the log.

        Raises:
            TriggerTimeError, MalformedError, TooLargeError: The job is not allowed.
            NoSuchRouteError: Its route does not exist.
            NoSuchJobError: There is no job to change.
            TooLateError: It is due or has been attempted, or it has ended.
        """
        now = datetime.now(UTC)
        check_job(job, now)
        check_not_past(job.trigger_time, now, deadline=job.deadline)
        async with temporal_timeout(self._limit):
            await self._routes.check(job.db, job.route)
            async with self._turn(job.workflow_id):
                await self._change(await describe_job(self._client, job.workflow_id), job, key_id)

    async def _change(self, description: WorkflowExecutionDescription, job: Job, key_id: str | None) -> None:
        """Replace a waiting job, by one whose route and time are fine.

        Raises:
            NoSuchJobError, TooLateError: As `change` does.
        """
        await self._update(description, lambda run: run.execute_update(JobWorkflow.change, job.with_history_limit))
        _log("job changed", job, key_id, first_run_id(description))

    async def trigger(
        self, job_workflow_id: str, *, key_id: str | None = None, trace_links: tuple[str, ...] = ()
    ) -> None:
        """Have a waiting job go out now. When this returns, its trigger time is now, and it can no longer be changed.

        One whose route is paused or disabled is held on, and can be.

        Args:
            key_id: The key that asks for it, for the log.
            trace_links: The request that asks for it, to be kept with the job.

        Raises:
            NoSuchJobError: There is none.
            TooLateError: It is due or has been attempted, or it has ended; or its deadline has passed.
        """
        async with temporal_timeout(self._limit), self._turn(job_workflow_id):
            run = await latest_run(self._client, job_workflow_id)
            if run.is_open and expired(run.job, datetime.now(UTC)):
                raise TooLateError("too late: the job's deadline has passed")
            # Without links it is the Update that workers from before them know, too.
            arguments = [trace_links] if trace_links else []
            await self._update(
                run.description, lambda handle: handle.execute_update(JobWorkflow.trigger, args=arguments)
            )
        log.info("job triggered", extra=run.job.log_fields | {"run_id": run.first_run_id, "key": key_id})

    def _turn(self, job_workflow_id: str) -> asyncio.Lock:
        """Return the lock of those who change one job, and who look at it only while they have it.

        One after the other costs Temporal less than many at once, and none is put off.
        """
        return self._turns.setdefault(job_workflow_id, asyncio.Lock())

    async def _update(self, description: WorkflowExecutionDescription, update: Update) -> None:
        """Have a waiting job take an update. When this returns, it is stored; when it raises TooLateError, it is not.

        Raises:
            NoSuchJobError: There is none any more.
            TooLateError: The job is due or has been attempted, or it has ended.
        """
        first_run = first_run_id(description)
        while not await self._send_update(first_run, description, update):
            await _pause_before_next_look(description)
            description = await describe_job(self._client, description.id)
            if first_run_id(description) != first_run:
                raise TooLateError("too late: the job has ended, and was created again in this moment")

    async def _send_update(self, first_run: str, description: WorkflowExecutionDescription, update: Update) -> bool:
        """Send an update, and return False when no open run could have taken it: to be sent again.

        It is not sent to a run that would refuse it. One that is refused all the same is not sent again: a worker may
        have it from an earlier call, which Temporal has forgotten, so that nothing is known of it.

        Raises:
            TooLateError: The job is due or has been attempted, or it has ended.
            RPCError, UnavailableError: It is not known whether it was taken.
        """
        await self._check_unattempted(first_run, description)
        if refuses_updates(description):
            return False
        try:
            # No other run: one that was reset since would not be outdated.
            await update(self._client.get_workflow_handle(description.id, run_id=description.run_id))
        except WorkflowUpdateFailedError as error:
            if isinstance(error.cause, ApplicationError) and error.cause.type == TOO_LATE:
                raise _too_late(None, description.status) from error
            return False
        except RPCError as error:
            if error.status is RPCStatusCode.RESOURCE_EXHAUSTED:
                # Temporal and the SDK send an update again by themselves: a worker may have it all the same.
                raise UnavailableError("Temporal takes no more updates; repeat this one in a moment") from error
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            # Temporal says the same of a job that has ended, and of one that is just being continued as a new run.
            return False
        return True

    async def _check_unattempted(self, first_run: str, description: WorkflowExecutionDescription) -> None:
        """Refuse a job that has ended or was attempted, and outdate what a run before a reset may be about to attempt.

        Raises:
            TooLateError: It has, or was.
        """
        status = description.status
        is_open = status is WorkflowExecutionStatus.RUNNING
        if is_open and was_reset(description) and not refuses_updates(description):
            # Else an attempt that the run before the reset has asked for could send what the job was before the change.
            row: LedgerRow | None = await self._ledger.outdate(first_run)
        else:
            row = await self._ledger.find(first_run)
        if (row and not row.is_unattempted) or not is_open:
            raise _too_late(row, status)

    async def cancel(self, job_workflow_id: str, *, key_id: str | None = None) -> None:
        """Cancel a job. When this returns, no attempt is made any more, and none has been taken.

        The ledger decides, without a worker. Waits for an attempt in flight, whose end counts.

        Args:
            key_id: The key that asks for it, for the log.

        Raises:
            NoSuchJobError: There is none.
            TooLateError: The receiver took it, or may have taken it, or it had ended before.
            UnavailableError: The outcome is not known in time; no other attempt begins.
        """
        async with temporal_timeout(self._limit):
            description = await describe_job(self._client, job_workflow_id)
            status, first_run = description.status, first_run_id(description)
            if status not in (WorkflowExecutionStatus.RUNNING, WorkflowExecutionStatus.TERMINATED):
                raise _too_late(await self._ledger.find(first_run), status)
            row = await self._cancels.decide(description, limit=self._limit * CANCEL_SHARE)
        if row.state is not RowState.CANCELLED or status is not WorkflowExecutionStatus.RUNNING:
            raise _too_late(row, status)
        log.info("job cancelled", extra=log_fields_of(job_workflow_id) | {"run_id": first_run, "key": key_id})


async def _pause_before_next_look(description: WorkflowExecutionDescription) -> None:
    """Give a run's workflow task, or the next run, time to come."""
    if not refuses_updates(description):
        await asyncio.sleep(UPDATE_PAUSE)
        return
    attempt = description.raw_description.pending_workflow_task.attempt
    log.warning("update waits for a lost workflow task", extra={"workflow_id": description.id, "attempt": attempt})
    await asyncio.sleep(LOST_TASK_PAUSE)


def _too_late(row: LedgerRow | None, status: WorkflowExecutionStatus | None) -> TooLateError:
    """Return why a job can be neither changed nor cancelled any more, and what helps."""
    if row and row.is_cancelled_in_doubt:
        return TooLateError(f"too late: {LOST_REASON}")
    state = row.state if row and row.is_decided else _ROW_STATE_OF.get(status or WorkflowExecutionStatus.RUNNING)
    if state is None:
        return TooLateError(
            "too late: the job is due, and being delivered or tried again; to change it all the same, cancel it and "
            "create it again"
        )
    return TooLateError(f"too late: {_TOO_LATE_REASONS[state]}")


_ROW_STATE_OF = {
    WorkflowExecutionStatus.COMPLETED: RowState.TAKEN,
    WorkflowExecutionStatus.FAILED: RowState.FAILED,
    WorkflowExecutionStatus.TIMED_OUT: RowState.FAILED,
    WorkflowExecutionStatus.CANCELED: RowState.CANCELLED,
    WorkflowExecutionStatus.TERMINATED: RowState.CANCELLED,
}
_TOO_LATE_REASONS = {
    RowState.TAKEN: "the job was delivered; create it with another time to have it delivered once more",
    RowState.FAILED: "the job has failed; redeliver it, or create it with another time",
    RowState.CANCELLED: "the job was cancelled before; create it again",
}


def _log(event: str, job: Job, key_id: str | None, run_id: str) -> None:
    due = job.trigger_at.isoformat(timespec="milliseconds")
    log.info(event, extra=job.log_fields | {"run_id": run_id, "due": due, "key": key_id})


def _other_exists(job: Job, state: JobState) -> JobExistsError:
    """Return that another job has this id, and what helps where a PUT does not."""
    message = f"another job {job.id} exists in {job.db}/{job.collection}"
    if state is JobState.DELIVERING:
        message += ", and is being delivered or tried again; to replace it, cancel it first"
    return JobExistsError(message)


def _is_same_create(existing: JobStatus, job: Job) -> bool:
    """Return whether a create is a repetition. After a cancel it is not: the client wants the job again.

    Raises:
        UnavailableError: The job is being cancelled, and nobody knows yet whether it will be delivered; or it was
            reset, and is not yet what it was changed to.
    """
    if existing.shown.state in UNDECIDED:
        if _is_being_cancelled(existing):
            raise UnavailableError("the job is being cancelled; repeat this request when it has ended")
        if lacks_changes(existing.run.description):
            raise UnavailableError("an operator has reset the job; repeat this request when a worker has taken it up")
    if existing.row and existing.row.is_cancelled_in_doubt:
        return False
    state = existing.shown.state
    asked = job.as_asked
    same = existing.job.as_asked == asked or (state is not JobState.SCHEDULED and existing.job.as_planned == asked)
    return same and state is not JobState.CANCELLED


def _is_being_cancelled(existing: JobStatus) -> bool:
    return existing.run.cancel_requested or (existing.row is not None and existing.row.state is RowState.CANCELLING)


def job_from_request(db: str, collection: str, job_id: str, data: JobIn | JobChange, caller: Caller) -> Job:
    """Return the job that a request asks for."""
    return Job(
        db=db,
        collection=collection,
        id=job_id,
        trigger_time=data.trigger_time,
        route=data.route,
        meta=data.meta,
        retry=data.retry.stored() if data.retry else None,
        deadline=data.deadline,
        labels=data.labels,
        trace_links=caller.trace_links,
    )


def _written_header(description: str) -> ResponseHeader:
    """Return the documentation of the header that tells what a request has done."""
    return ResponseHeader(name="timemachine-job", value="created", description=description, documentation_only=True)


def _written(written: JobWritten) -> Response[Ok]:
    return Response(Ok(), headers={"timemachine-job": written})


Create = Annotated[
    bool,
    QueryParameter(description="Create the job where there is none, or where the last one with this id has ended."),
]


class JobController(Controller):
    """Jobs: calls to be made once, at a time."""

    path = "/job/{db:str}/{collection:str}"
    tags = ("Jobs",)

    @post(
        dto=ExactJson[JobIn],
        return_dto=None,
        status_code=200,
        guards=[requires(Role.WRITE)],
        operation_id="CreateJob",
        summary="Create a job",
        response_headers=[_written_header("`created`, or `unchanged` where the same job was there before.")],
        responses=refusals(
            MalformedError,
            ForbiddenNameError,
            TriggerTimeError,
            JobExistsError,
            NoSuchRouteError,
            TooLargeError,
            ContentTypeError,
        ),
    )
    async def create(
        self,
        db: Db,
        collection: CollectionOfClients,
        data: JSONBody[JobIn],
        jobs: NamedDependency[Jobs],
        request: AuthenticatedRequest,
    ) -> Response[Ok]:
        """Create a job. Repeating a create whose answer was lost is safe: the same content is answered 200 again.

        The header `timemachine-job` tells which it was: `created`, or `unchanged`.
        """
        job = job_from_request(db, collection, data.id, data, request.user)
        return _written(await jobs.create(job, key_id=request.user.key_id))

    @get(
        guards=[requires(Role.READ)],
        operation_id="ListJobsOfCollection",
        summary="List the jobs of a collection",
        responses=refusals(MalformedError, ForbiddenNameError),
    )
    async def of_collection(
        self,
        wanted: NamedDependency[JobFilter],
        collection: Collection,
        job_lists: NamedDependency[JobLists],
        id_prefix: WithPrefix = None,
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> JobsPage:
        """List the jobs of a collection, as those of a db are listed."""
        return await job_lists.page(replace(wanted, collection=collection, id_prefix=id_prefix), limit, cursor)

    @get(
        "/{job_id:str}",
        guards=[requires(Role.READ)],
        operation_id="GetJob",
        summary="Get a job",
        responses=refusals(ForbiddenNameError, NoSuchJobError),
    )
    async def read(self, db: Db, collection: Collection, job_id: JobIdInPath, jobs: NamedDependency[Jobs]) -> JobOut:
        """Return a job, and where it is in its life."""
        return await jobs.find(check_key(db, collection, job_id))

    @put(
        "/{job_id:str}",
        dto=ExactJson[JobChange],
        return_dto=None,
        guards=[requires(Role.WRITE)],
        operation_id="ChangeJob",
        summary="Change a waiting job",
        response_headers=[
            _written_header(
                "`changed`; with `create` also `created`, or `unchanged` where the same job was there before."
            )
        ],
        responses=refusals(
            MalformedError,
            ForbiddenNameError,
            TriggerTimeError,
            NoSuchJobError,
            JobExistsError,
            TooLateError,
            NoSuchRouteError,
            TooLargeError,
            ContentTypeError,
        ),
    )
    async def change(
        self,
        db: Db,
        collection: CollectionOfClients,
        job_id: JobIdInPath,
        data: JSONBody[JobChange],
        jobs: NamedDependency[Jobs],
        request: AuthenticatedRequest,
        create: Create = False,
    ) -> Response[Ok]:
        """Replace trigger time, meta and route of a waiting job. After a 200 the old version is never delivered.

        With `create=true` a job is created where there is none, or where the last one has ended.
        """
        if data.id not in (UNSET, job_id):
            raise MalformedError("id: it must be left out, or be the one in the path")
        job = job_from_request(db, collection, job_id, data, request.user)
        if create:
            return _written(await jobs.put(job, key_id=request.user.key_id))
        await jobs.change(job, key_id=request.user.key_id)
        return _written(JobWritten.CHANGED)

    @post(
        "/{job_id:str}/trigger",
        status_code=200,
        guards=[requires(Role.WRITE)],
        operation_id="TriggerJob",
        summary="Run a job now",
        responses=refusals(ForbiddenNameError, NoSuchJobError, TooLateError),
    )
    async def trigger(
        self,
        db: Db,
        collection: Collection,
        job_id: JobIdInPath,
        jobs: NamedDependency[Jobs],
        request: AuthenticatedRequest,
    ) -> Ok:
        """Have a waiting job go out now: its trigger time becomes now. One that is held is released with the others."""
        caller = request.user
        workflow_id = check_key(db, collection, job_id)
        await jobs.trigger(workflow_id, key_id=caller.key_id, trace_links=caller.trace_links)
        return Ok()

    @delete(
        "/{job_id:str}",
        status_code=200,
        guards=[requires(Role.WRITE)],
        operation_id="CancelJob",
        summary="Cancel a job",
        responses=refusals(ForbiddenNameError, NoSuchJobError, TooLateError),
    )
    async def cancel(
        self,
        db: Db,
        collection: Collection,
        job_id: JobIdInPath,
        jobs: NamedDependency[Jobs],
        request: AuthenticatedRequest,
    ) -> Ok:
        """Cancel a job that no receiver has taken. After a 200 no attempt is made any more."""
        await jobs.cancel(check_key(db, collection, job_id), key_id=request.user.key_id)
        return Ok()

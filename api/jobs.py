"""The four endpoints of a job: each asks Temporal and the ledger, and answers what they know for certain."""

import logging
from datetime import UTC, datetime

import msgspec
from litestar import Controller, Response, delete, get, post, put
from litestar.datastructures import ResponseHeader
from litestar.di import NamedDependency
from litestar.params import JSONBody
from msgspec import UNSET
from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowUpdateFailedError,
)
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from activities.cancel import Cancels
from api.errors import refusals
from api.job_status import JobStatus, read_job_status
from api.litestar_json import ExactJson
from api.parameters import Collection, Db, JobIdInPath
from api.schemas import JobChange, JobIn, JobOut, JobState, Ok
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
from timemachine.domain.jobs import Job, check_job, check_key, check_not_past
from timemachine.domain.outcomes import LedgerRow, RowState
from timemachine.domain.stored_names import TOO_LATE
from timemachine.postgres.delivery_ledger import LOST_REASON, DeliveryLedger
from timemachine.postgres.route_store import RouteStore
from timemachine.settings import Settings
from timemachine.temporal.client import temporal_timeout
from timemachine.temporal.job_runs import JobRun, first_run_id, start_job
from workflows.job import JobWorkflow

log = logging.getLogger(__name__)


UNDECIDED = (JobState.SCHEDULED, JobState.DELIVERING)

START_TRIES = 3
"""Times that a job is tried to be started, when its id is taken by one that has ended, or by yet another one then."""

CANCEL_SHARE = 0.9
"""Part of the time limit of a request in which a cancel has to be decided; the rest is for the calls around it."""


class Jobs:
    """Jobs, each a workflow in Temporal, and a row in the ledger once it is due or cancelled.

    Every method raises UnavailableError when Temporal or Postgres does not answer in time, and BusyError when
    Temporal takes no more.
    """

    def __init__(self, client: Client, routes: RouteStore, ledger: DeliveryLedger, settings: Settings) -> None:
        """Take the clients of Temporal and Postgres."""
        self._client = client
        self._routes = routes
        self._ledger = ledger
        self._cancels = Cancels(client, ledger)
        self._task_queue = settings.task_queue
        self._limit = settings.request_timeout

    async def create(self, job: Job) -> bool:
        """Start a job, and return whether it is a new one: starting the same one again changes nothing.

        That holds after it was delivered, too.

        Raises:
            TriggerTimeError, MalformedError, TooLargeError: The job is not allowed.
            NoSuchRouteError: Its route does not exist.
            JobExistsError: Another job with this id waits or is being delivered.
        """
        check_job(job, datetime.now(UTC))
        async with temporal_timeout(self._limit):
            await self._routes.check(job.db, job.route)
            try:
                check_not_past(job.trigger_time, datetime.now(UTC), deadline=job.deadline)
            except TriggerTimeError:
                if await self._is_already_created(job):
                    return False
                raise
            created = await self._start(job)
        if created:
            _log("job created", job)
        return created

    async def _start(self, job: Job) -> bool:
        """Start the workflow, unless the same job is there; an id whose last job has ended may be used again."""
        reuse = WorkflowIDReusePolicy.REJECT_DUPLICATE
        for _ in range(START_TRIES):
            try:
                await start_job(self._client, job, task_queue=self._task_queue, reuse=reuse)
                return True
            except WorkflowAlreadyStartedError:
                existing = await read_job_status(self._client, self._ledger, job.workflow_id)
            if _is_same_create(existing, job):
                return False
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
        try:
            return _is_same_create(await read_job_status(self._client, self._ledger, job.workflow_id), job)
        except NoSuchJobError:
            return False

    async def find(self, job_workflow_id: str) -> JobOut:
        """Return a job and where it is in its life. Needs no worker.

        Raises:
            NoSuchJobError: There is none, or it ended longer ago than the namespace's retention.
        """
        async with temporal_timeout(self._limit):
            return (await read_job_status(self._client, self._ledger, job_workflow_id)).shown

    async def change(self, job: Job) -> None:
        """Replace a waiting job. When this returns, the old one is never delivered.

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
            description = await self._describe(job.workflow_id)
            first_run = first_run_id(description)
            while not await self._send_change(job, first_run, description.status):
                # Temporal says the same of a job that has ended, and of one that is just being continued as a new run.
                description = await self._describe(job.workflow_id)
                if first_run_id(description) != first_run:
                    raise TooLateError("too late: the job has ended, and was created again in this moment")
        _log("job changed", job)

    async def _send_change(self, job: Job, first_run: str, status: WorkflowExecutionStatus | None) -> bool:
        """Send the update, and return False when there is no open run that could have taken it.

        Raises:
            TooLateError: The job is due or has been attempted, or it has ended.
        """
        row = await self._ledger.find(first_run)
        if (row and not row.is_unattempted) or status is not WorkflowExecutionStatus.RUNNING:
            raise _too_late(row, status)
        run = self._client.get_workflow_handle(job.workflow_id, first_execution_run_id=first_run)
        try:
            await run.execute_update(JobWorkflow.change, job)
        except WorkflowUpdateFailedError as error:
            if isinstance(error.cause, ApplicationError) and error.cause.type == TOO_LATE:
                raise _too_late(None, status) from error
            return False
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return False
            raise
        return True

    async def cancel(self, job_workflow_id: str) -> None:
        """Cancel a job. When this returns, no attempt is made any more, and none has been taken.

        The ledger decides, without a worker. Waits for an attempt in flight, whose end counts.

        Raises:
            NoSuchJobError: There is none.
            TooLateError: The receiver took it, or may have taken it, or it had ended before.
            UnavailableError: The outcome is not known in time; no other attempt begins.
        """
        async with temporal_timeout(self._limit):
            description = await self._describe(job_workflow_id)
            status, first_run = description.status, first_run_id(description)
            if status not in (WorkflowExecutionStatus.RUNNING, WorkflowExecutionStatus.TERMINATED):
                raise _too_late(await self._ledger.find(first_run), status)
            row = await self._cancels.decide(description, limit=self._limit * CANCEL_SHARE)
        if row.state is not RowState.CANCELLED or status is not WorkflowExecutionStatus.RUNNING:
            raise _too_late(row, status)
        log.info("job cancelled", extra={"workflow_id": job_workflow_id})

    async def _describe(self, job_workflow_id: str) -> WorkflowExecutionDescription:
        """Return a job's latest run.

        Raises:
            NoSuchJobError: There is none.
        """
        try:
            return await self._client.get_workflow_handle(job_workflow_id).describe()
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                raise NoSuchJobError from error
            raise


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


def _log(event: str, job: Job) -> None:
    due = job.trigger_at.isoformat(timespec="milliseconds")
    log.info(event, extra=job.log_fields | {"due": due})


def _other_exists(job: Job, state: JobState) -> JobExistsError:
    """Return that another job has this id, and what helps where a PUT does not."""
    message = f"another job {job.id} exists in {job.db}/{job.collection}"
    if state is JobState.DELIVERING:
        message += ", and is being delivered or tried again; to replace it, cancel it first"
    return JobExistsError(message)


def _is_same_create(existing: JobStatus, job: Job) -> bool:
    """Return whether a create is a repetition. After a cancel it is not: the client wants the job again.

    Raises:
        UnavailableError: The job is being cancelled, and nobody knows yet whether it will be delivered.
    """
    if existing.shown.state in UNDECIDED and _is_being_cancelled(existing):
        raise UnavailableError("the job is being cancelled; repeat this request when it has ended")
    if existing.row and existing.row.is_cancelled_in_doubt:
        return False
    same = (
        msgspec.structs.replace(existing.job, message_id=None, attempt_in_task=False, attempts_made=0, ledger=False)
        == job
    )
    return same and existing.shown.state is not JobState.CANCELLED


def _is_being_cancelled(existing: JobStatus) -> bool:
    return existing.run.cancel_requested or (existing.row is not None and existing.row.state is RowState.CANCELLING)


def _job_from_request(db: str, collection: str, job_id: str, data: JobIn | JobChange) -> Job:
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
    )


class JobController(Controller):
    """Jobs: calls to be made once, at a time."""

    path = "/job/{db:str}/{collection:str}"
    tags = ("Jobs",)

    @post(
        dto=ExactJson[JobIn],
        return_dto=None,
        status_code=200,
        operation_id="CreateJob",
        summary="Create a job",
        response_headers=[
            ResponseHeader(
                name="timemachine-job",
                value="created",
                description="`created`, or `unchanged` where the same job was there before.",
                documentation_only=True,
            )
        ],
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
        self, db: Db, collection: Collection, data: JSONBody[JobIn], jobs: NamedDependency[Jobs]
    ) -> Response[Ok]:
        """Create a job. Repeating a create whose answer was lost is safe: the same content is answered 200 again.

        The header `timemachine-job` tells which it was: `created`, or `unchanged`.
        """
        created = await jobs.create(_job_from_request(db, collection, data.id, data))
        return Response(Ok(), headers={"timemachine-job": "created" if created else "unchanged"})

    @get(
        "/{job_id:str}",
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
        operation_id="ChangeJob",
        summary="Change a waiting job",
        responses=refusals(
            MalformedError,
            ForbiddenNameError,
            TriggerTimeError,
            NoSuchJobError,
            TooLateError,
            NoSuchRouteError,
            TooLargeError,
            ContentTypeError,
        ),
    )
    async def change(
        self,
        db: Db,
        collection: Collection,
        job_id: JobIdInPath,
        data: JSONBody[JobChange],
        jobs: NamedDependency[Jobs],
    ) -> Ok:
        """Replace trigger time, meta and route of a waiting job. After a 200 the old version is never delivered."""
        if data.id not in (UNSET, job_id):
            raise MalformedError("id: it must be left out, or be the one in the path")
        await jobs.change(_job_from_request(db, collection, job_id, data))
        return Ok()

    @delete(
        "/{job_id:str}",
        status_code=200,
        operation_id="CancelJob",
        summary="Cancel a job",
        responses=refusals(ForbiddenNameError, NoSuchJobError, TooLateError),
    )
    async def cancel(self, db: Db, collection: Collection, job_id: JobIdInPath, jobs: NamedDependency[Jobs]) -> Ok:
        """Cancel a job that no receiver has taken. After a 200 no attempt is made any more."""
        await jobs.cancel(check_key(db, collection, job_id))
        return Ok()

"""The four endpoints of a job: each asks Temporal, and answers what Temporal knows for certain."""

from datetime import UTC, datetime

import msgspec
from litestar import Controller, delete, get, post, put
from litestar.di import NamedDependency
from litestar.params import JSONBody
from msgspec import UNSET
from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowUpdateFailedError,
)
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import (
    CancelledError,
    TerminatedError,
    WorkflowAlreadyStartedError,
)
from temporalio.service import RPCError, RPCStatusCode

from api.errors import refusals
from api.snapshot import JobOut, Snapshot, State, take_snapshot
from api.wire import Collection, Db, ExactJson, JobChange, JobIdInPath, JobIn, Ok
from timemachine.errors import (
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
from timemachine.job_runs import start_job
from timemachine.jobs import Job, check_job, check_key, check_not_past
from timemachine.route_store import RouteStore
from timemachine.settings import Settings
from timemachine.temporal import answering
from workflows.job import JobWorkflow


class Jobs:
    """Jobs, each a workflow in Temporal.

    Every method raises UnavailableError when Temporal or Postgres does not answer in time, and BusyError when
    Temporal takes no more.
    """

    def __init__(self, client: Client, routes: RouteStore, settings: Settings) -> None:
        """Take the open doors to Temporal and Postgres."""
        self._client = client
        self._routes = routes
        self._task_queue = settings.task_queue
        self._limit = settings.request_timeout

    async def create(self, job: Job) -> None:
        """Start a job. Starting the same one again changes nothing, even after it was delivered.

        Raises:
            TriggerTimeError, MalformedError, TooLargeError: The job is not allowed.
            NoSuchRouteError: Its route does not exist.
            JobExistsError: Another job with this id waits or is being delivered.
        """
        check_job(job, datetime.now(UTC))
        async with answering(self._limit):
            await self._routes.check(job.db, job.route)
            try:
                check_not_past(job.trigger_time, datetime.now(UTC), deadline=job.deadline)
            except TriggerTimeError:
                if await self._has(job):
                    return
                raise
            await self._start(job)

    async def _start(self, job: Job) -> None:
        """Start the workflow, unless the same job is there; an id whose last job has ended may be used again."""
        for reuse in (WorkflowIDReusePolicy.REJECT_DUPLICATE, WorkflowIDReusePolicy.ALLOW_DUPLICATE):
            try:
                return await start_job(self._client, job, task_queue=self._task_queue, reuse=reuse)
            except WorkflowAlreadyStartedError:
                existing = await take_snapshot(self._client, job.workflow_id)
                waits = existing.shown.state in (State.SCHEDULED, State.DELIVERING)
                if waits and existing.cancel_requested:
                    raise UnavailableError(
                        "the job is being cancelled; repeat this request when it has ended"
                    ) from None
                if _is_same(existing, job):
                    return None
                if waits:
                    break
        raise JobExistsError(f"another job {job.id} exists in {job.db}/{job.collection}")

    async def _has(self, job: Job) -> bool:
        """Return whether this very job is there, waiting or ended by itself."""
        try:
            return _is_same(await take_snapshot(self._client, job.workflow_id), job)
        except NoSuchJobError:
            return False

    async def find(self, job_workflow_id: str) -> JobOut:
        """Return a job and where it is in its life. Needs no worker.

        Raises:
            NoSuchJobError: There is none, or it ended longer ago than the namespace's retention.
        """
        async with answering(self._limit):
            return (await take_snapshot(self._client, job_workflow_id)).shown

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
        async with answering(self._limit):
            await self._routes.check(job.db, job.route)
            while not await self._changed(job):
                # Temporal says the same of a job that has ended, one that never was, and one that is just being
                # continued as a new run, after very many changes.
                if (await take_snapshot(self._client, job.workflow_id)).shown.state is not State.SCHEDULED:
                    raise TooLateError

    async def _changed(self, job: Job) -> bool:
        """Send the update, and return False when there is no open run that could have taken it."""
        try:
            await self._client.get_workflow_handle_for(JobWorkflow.run, job.workflow_id).execute_update(
                JobWorkflow.change, job
            )
        except WorkflowUpdateFailedError as error:
            raise TooLateError from error
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return False
            raise
        return True

    async def cancel(self, job_workflow_id: str) -> None:
        """Cancel a job. When this returns, no attempt is made any more, and none has been taken.

        Waits for an attempt in flight, which decides.

        Raises:
            NoSuchJobError: There is none.
            TooLateError: The receiver took it, or it had ended before.
            UnavailableError: The outcome is not known in time; the request stands.
        """
        async with answering(self._limit):
            try:
                description = await self._client.get_workflow_handle(job_workflow_id).describe()
            except RPCError as error:
                if error.status is RPCStatusCode.NOT_FOUND:
                    raise NoSuchJobError from error
                raise
            if description.status is WorkflowExecutionStatus.CANCELED:
                raise TooLateError("too late: the job was cancelled before")
            await self._cancel(description)

    async def _cancel(self, description: WorkflowExecutionDescription) -> None:
        """Cancel the job that was found, not another one that may come to have its id as soon as it has ended."""
        first_run = description.raw_description.workflow_execution_info.first_run_id
        job = self._client.get_workflow_handle(description.id, first_execution_run_id=first_run)
        run = self._client.get_workflow_handle(description.id, run_id=description.run_id)
        try:
            await job.cancel()
            await run.result()
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                raise TooLateError from error
            raise
        except WorkflowFailureError as error:
            if isinstance(error.cause, CancelledError | TerminatedError):
                return
            raise TooLateError from error
        raise TooLateError


def _is_same(existing: Snapshot, job: Job) -> bool:
    """Return whether a create is a repetition. After a cancel it is not: the client wants the job again."""
    same = msgspec.structs.replace(existing.job, message_id=None, at_once=False, made=0) == job
    return same and existing.shown.state is not State.CANCELLED


def _asked(db: str, collection: str, job_id: str, data: JobIn | JobChange) -> Job:
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
    async def create(self, db: Db, collection: Collection, data: JSONBody[JobIn], jobs: NamedDependency[Jobs]) -> Ok:
        """Create a job. Repeating a create whose answer was lost is safe: the same content is answered 200 again."""
        await jobs.create(_asked(db, collection, data.id, data))
        return Ok()

    @get("/{job_id:str}", operation_id="GetJob", responses=refusals(ForbiddenNameError, NoSuchJobError))
    async def read(self, db: Db, collection: Collection, job_id: JobIdInPath, jobs: NamedDependency[Jobs]) -> JobOut:
        """Return a job, and where it is in its life."""
        return await jobs.find(check_key(db, collection, job_id))

    @put(
        "/{job_id:str}",
        dto=ExactJson[JobChange],
        return_dto=None,
        operation_id="ChangeJob",
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
        await jobs.change(_asked(db, collection, job_id, data))
        return Ok()

    @delete(
        "/{job_id:str}",
        status_code=200,
        operation_id="CancelJob",
        responses=refusals(ForbiddenNameError, NoSuchJobError, TooLateError),
    )
    async def cancel(self, db: Db, collection: Collection, job_id: JobIdInPath, jobs: NamedDependency[Jobs]) -> Ok:
        """Cancel a job that no receiver has taken. After a 200 no attempt is made any more."""
        await jobs.cancel(check_key(db, collection, job_id))
        return Ok()

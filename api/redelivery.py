"""Redelivery: jobs that have ended, delivered once more under the same `webhook-id`."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody, PathParameter
from msgspec import UNSET
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from api.authentication import AuthenticatedRequest, requires
from api.errors import refusals
from api.litestar_json import ExactJson
from api.pagination import check_window
from api.parameters import Collection, Db, JobIdInPath, RouteIdInPath
from api.routes import check_route_key
from api.schemas import FailureWindow, Ok, RedeliveryOut, RedeliveryStarted, name_schema
from timemachine.domain.audit import AuditAction, Caller
from timemachine.domain.errors import (
    ContentTypeError,
    ForbiddenNameError,
    MalformedError,
    NoSuchJobError,
    NoSuchOperationError,
    NoSuchRouteError,
    TooLargeError,
    TooLateError,
)
from timemachine.domain.jobs import MAX_NAME, check_key, check_name, to_ms
from timemachine.domain.keys import Role
from timemachine.domain.outcomes import LedgerRow, RowState
from timemachine.domain.redelivery import FailedJobs, Progress, redelivery_key
from timemachine.postgres.audit_log import AuditLog
from timemachine.postgres.delivery_ledger import DeliveryLedger
from timemachine.postgres.route_store import RouteStore
from timemachine.settings import Settings
from timemachine.temporal.client import temporal_timeout
from timemachine.temporal.job_runs import JobRun, check_redeliverable, latest_run, redeliver, redelivers
from timemachine.temporal.operations import read_progress, start_operation

POLL = 0.1
"""Seconds between two looks at a run that is about to close."""

RedeliveryId = Annotated[
    str, PathParameter(schema_extra=name_schema(MAX_NAME), description="The `id` that its start was answered with.")
]


class Redeliveries:
    """Redeliveries of one job and of many.

    Every method raises UnavailableError when Temporal or Postgres does not answer in time, and BusyError when
    Temporal takes no more.
    """

    def __init__(
        self, client: Client, routes: RouteStore, ledger: DeliveryLedger, audit_log: AuditLog, settings: Settings
    ) -> None:
        """Take the clients of Temporal and Postgres."""
        self._client = client
        self._routes = routes
        self._ledger = ledger
        self._audit_log = audit_log
        self._task_queue = settings.task_queue
        self._limit = settings.request_timeout

    async def one(self, db: str, collection: str, job_id: str, caller: Caller) -> None:
        """Deliver a job once more that was delivered or failed. While that is under way, asking again changes nothing.

        Raises:
            ForbiddenNameError: A name is not allowed.
            NoSuchJobError: There is none.
            NoSuchRouteError: Its route is gone.
            TooLateError: It has not ended, was cancelled, or its deadline has passed.
        """
        workflow_id = check_key(db, collection, job_id)
        async with temporal_timeout(self._limit):
            run, row = await self._latest(workflow_id)
            if _is_under_way(run):
                return
            check_redeliverable(run, row)
            await self._routes.check(db, run.job.route)
            await self._audit_log.write(caller, AuditAction.JOB_REDELIVERED, db, f"{collection}/{job_id}")
            try:
                links = caller.trace_links
                await redeliver(self._client, run, row, task_queue=self._task_queue, trace_links=links)
            except WorkflowAlreadyStartedError as error:
                latest = await latest_run(self._client, workflow_id)
                again = await redelivers(latest.description)
                if again is None or again.run_id != run.run_id:
                    raise TooLateError("the job was created again in this moment") from error

    async def _latest(self, workflow_id: str) -> tuple[JobRun, LedgerRow | None]:
        """Return a job's latest run, and its row: of one that the ledger has decided, once Temporal knows it as well.

        A client that was just told that the job has ended is right, though the run is open for a moment still.
        """
        while True:
            run = await latest_run(self._client, workflow_id)
            row = await self._ledger.find(run.first_run_id)
            if not run.is_open or row is None or not row.is_decided or row.state is RowState.CANCELLED:
                return run, row
            await asyncio.sleep(POLL)

    async def many(self, db: str, route_id: str, window: FailureWindow, caller: Caller) -> str:
        """Start a redelivery of the jobs of a route that failed within a window, and return its id.

        The same window, when it is past, gives the same id; while it is under way, asking again changes nothing.

        Args:
            started_by: The id of the key that asks for it.

        Raises:
            ForbiddenNameError, MalformedError: A name or the window is not allowed.
            NoSuchRouteError: There is no such route.
        """
        check_route_key(db, route_id)
        failed = _asked(db, route_id, window)
        async with temporal_timeout(self._limit):
            await self._routes.check(db, route_id)
            await self._audit_log.write(caller, AuditAction.ROUTE_REDELIVERED, db, route_id)
            await start_operation(
                self._client,
                redelivery_key(db, route_id, failed.id),
                failed,
                task_queue=self._task_queue,
                summary=f"Redelivers what failed on route {route_id}",
                route=route_id,
                started_by=caller.key_id,
            )
        return failed.id

    async def find(self, db: str, route_id: str, redelivery_id: str) -> RedeliveryOut:
        """Return how far a redelivery is. Needs no worker.

        Raises:
            ForbiddenNameError: A name is not allowed.
            NoSuchOperationError: There is none, or it ended longer ago than the namespace's retention.
        """
        check_route_key(db, route_id)
        check_name("redelivery", redelivery_id)
        workflow_id = redelivery_key(db, route_id, redelivery_id).workflow_id
        async with temporal_timeout(self._limit):
            try:
                run = await self._client.get_workflow_handle(workflow_id).describe()
            except RPCError as error:
                if error.status is RPCStatusCode.NOT_FOUND:
                    raise NoSuchOperationError from error
                raise
            progress = await read_progress(self._client, run, Progress)
        return _shown(redelivery_id, progress, run.status)


def _is_under_way(run: JobRun) -> bool:
    return run.is_open and run.job.message_id is not None


def _asked(db: str, route_id: str, window: FailureWindow) -> FailedJobs:
    """Return what a window asks for. It ends now at the latest, so that it does not run after what fails meanwhile.

    Raises:
        MalformedError: It is empty, or looks like seconds.
    """
    check_window(window.since, None if window.until is UNSET else window.until)
    now = to_ms(datetime.now(UTC))
    failed = FailedJobs(
        db=db, route_id=route_id, since=window.since, until=now if window.until is UNSET else min(window.until, now)
    )
    if failed.since >= failed.until:
        raise MalformedError("since: it must be before `until`, and in the past")
    return failed


def _shown(redelivery_id: str, progress: Progress | None, status: WorkflowExecutionStatus | None) -> RedeliveryOut:
    known = progress or Progress()
    done = status is not WorkflowExecutionStatus.RUNNING
    was_stopped = done and (known.stopped or status is not WorkflowExecutionStatus.COMPLETED)
    return RedeliveryOut(
        id=redelivery_id,
        found=known.found,
        started=known.started,
        skipped=known.skipped,
        done=done,
        error="it was stopped" if was_stopped else UNSET,
    )


class RedeliveryController(Controller):
    """Redelivery of one job and of many."""

    @post(
        "/job/{db:str}/{collection:str}/{job_id:str}/redeliver",
        status_code=200,
        guards=[requires(Role.WRITE)],
        operation_id="RedeliverJob",
        summary="Deliver a job once more",
        tags=("Jobs",),
        responses=refusals(ForbiddenNameError, NoSuchJobError, TooLateError, NoSuchRouteError),
    )
    async def one(
        self,
        db: Db,
        collection: Collection,
        job_id: JobIdInPath,
        redeliveries: NamedDependency[Redeliveries],
        request: AuthenticatedRequest,
    ) -> Ok:
        """Deliver a job once more that was delivered or has failed, as it last was, and with the same `webhook-id`.

        One that has not ended, was cancelled, or whose deadline has passed is refused. While the job is being delivered
        once more, asking again changes nothing.
        """
        await redeliveries.one(db, collection, job_id, request.user)
        return Ok()

    @post(
        "/route/{db:str}/{route_id:str}/redeliver",
        dto=ExactJson[FailureWindow],
        return_dto=None,
        status_code=200,
        guards=[requires(Role.ADMIN)],
        operation_id="RedeliverRoute",
        summary="Deliver the failed jobs of a route once more",
        tags=("Routes",),
        responses=refusals(MalformedError, ForbiddenNameError, NoSuchRouteError, TooLargeError, ContentTypeError),
    )
    async def many(
        self,
        db: Db,
        route_id: RouteIdInPath,
        data: JSONBody[FailureWindow],
        redeliveries: NamedDependency[Redeliveries],
        request: AuthenticatedRequest,
    ) -> RedeliveryStarted:
        """Deliver the jobs of a route once more that failed within a window of time, in the background.

        A job that was redelivered or created again since is left alone. What failed in the last seconds may be missed.
        """
        return RedeliveryStarted(await redeliveries.many(db, route_id, data, request.user))

    @get(
        "/route/{db:str}/{route_id:str}/redeliver/{redelivery_id:str}",
        guards=[requires(Role.READ)],
        operation_id="GetRedelivery",
        summary="Get the progress of a redelivery",
        tags=("Routes",),
        responses=refusals(ForbiddenNameError, NoSuchOperationError),
    )
    async def progress(
        self,
        db: Db,
        route_id: RouteIdInPath,
        redelivery_id: RedeliveryId,
        redeliveries: NamedDependency[Redeliveries],
    ) -> RedeliveryOut:
        """Return how far a redelivery of many is."""
        return await redeliveries.find(db, route_id, redelivery_id)

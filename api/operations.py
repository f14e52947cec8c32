"""Operations on many jobs: the cancel of all that match a filter; and the list, progress and stop of every kind."""

import json
from datetime import UTC, datetime
from typing import Annotated

import msgspec
from litestar import Controller, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody, PathParameter, QueryParameter
from msgspec import UNSET
from temporalio.client import Client

from api.authentication import AuthenticatedRequest, requires
from api.errors import refusals
from api.litestar_json import ExactJson
from api.pagination import DEFAULT_LIMIT, Cursor, Limit, open_cursor, seal_cursor
from api.parameters import Db
from api.schemas import CancelCount, CancelIn, JobFilterOut, Ok, OperationOut, OperationsOut, name_schema
from timemachine.domain.audit import AuditAction, Caller
from timemachine.domain.cancels import CancelJobs
from timemachine.domain.errors import (
    ContentTypeError,
    ForbiddenNameError,
    MalformedError,
    NoSuchOperationError,
    TooLargeError,
    TooLateError,
)
from timemachine.domain.job_filter import JobFilter, ListedState
from timemachine.domain.jobs import check_name, to_ms
from timemachine.domain.keys import Role
from timemachine.domain.operations import MAX_OPERATION_ID, OperationState
from timemachine.postgres.audit_log import AuditLog
from timemachine.settings import Settings
from timemachine.temporal.client import temporal_timeout
from timemachine.temporal.operations import (
    Operation,
    find_operation,
    list_operations,
    start_operation,
    stop_operation,
)
from timemachine.temporal.visibility import listed_job, open_jobs_query
from timemachine.vault import Vault

OperationId = Annotated[
    str, PathParameter(schema_extra=name_schema(MAX_OPERATION_ID), description="The operation's `id`.")
]
DryRun = Annotated[bool, QueryParameter(description="Only count the jobs.")]


COUNTED_EXACTLY = 1000
"""Jobs up to which a count looks at each: as many as one query returns."""


class Operations:
    """The operations of a db.

    Every method raises UnavailableError when Temporal does not answer in time, and BusyError when it takes no more.
    """

    def __init__(self, client: Client, vault: Vault, audit_log: AuditLog, settings: Settings) -> None:
        """Take the client of Temporal, and the vault that seals cursors."""
        self._client = client
        self._vault = vault
        self._audit_log = audit_log
        self._task_queue = settings.task_queue
        self._limit = settings.request_timeout

    async def count(self, wanted: JobFilter) -> CancelCount:
        """Return how many jobs a filter means now: exactly, unless they are very many."""
        now = datetime.now(UTC)
        async with temporal_timeout(self._limit):
            found = (await self._client.count_workflows(open_jobs_query(wanted, now))).count
            if found <= COUNTED_EXACTLY:
                # Not every store of visibility tells `a` from `A`.
                runs = self._client.list_workflows(open_jobs_query(wanted, now), page_size=COUNTED_EXACTLY)
                found = sum([wanted.includes(listed_job(run, now)) async for run in runs])
        return CancelCount(found)

    async def cancel(self, wanted: JobFilter, caller: Caller) -> OperationOut:
        """Start a cancel of the jobs of a filter, unless one with the same filter is under way.

        Returns:
            The one that is under way, without how far it is.
        """
        asked = CancelJobs(filter=wanted)
        async with temporal_timeout(self._limit):
            await self._audit_log.write(caller, AuditAction.JOBS_CANCELLED, wanted.db, _in_words(wanted))
            operation_id = await start_operation(
                self._client,
                asked.key,
                asked,
                task_queue=self._task_queue,
                summary=f"Cancels jobs of db {wanted.db}",
                route=wanted.route,
                wanted=wanted,
                started_by=caller.key_id,
            )
            return _show(await find_operation(self._client, wanted.db, operation_id, with_counts=False))

    async def find(self, db: str, operation_id: str) -> OperationOut:
        """Return an operation.

        Raises:
            ForbiddenNameError: A name is not allowed.
            NoSuchOperationError: There is none, or it ended longer ago than the namespace's retention.
        """
        async with temporal_timeout(self._limit):
            return _show(await find_operation(self._client, db, operation_id))

    async def page(self, db: str, limit: int, cursor: str | None) -> OperationsOut:
        """Return a page of the operations.

        Raises:
            ForbiddenNameError, MalformedError: The db or the cursor is not allowed.
        """
        check_name("db", db)
        of = ("operations", db)
        page_token = open_cursor(self._vault, of, cursor, bytes)
        async with temporal_timeout(self._limit):
            found, token = await list_operations(self._client, db, limit=limit, page_token=page_token)
        return OperationsOut(
            operations=[_show(operation) for operation in found],
            next=seal_cursor(self._vault, of, token) if token else UNSET,
        )

    async def stop(self, db: str, operation_id: str, caller: Caller) -> None:
        """Have an operation stop. One that was stopped before stays so.

        Raises:
            ForbiddenNameError, NoSuchOperationError: As `find`.
            TooLateError: It has ended.
        """
        async with temporal_timeout(self._limit):
            operation = await find_operation(self._client, db, operation_id, with_counts=False)
            if operation.state is OperationState.RUNNING:
                await self._audit_log.write(caller, AuditAction.OPERATION_STOPPED, db, operation_id)
            await stop_operation(self._client, db, operation_id)


def _wanted(db: str, data: CancelIn) -> JobFilter:
    """Return the filter that a request asks for.

    Raises:
        ForbiddenNameError: A name is not allowed.
        MalformedError: It would match everything, or is not allowed.
    """
    given = {name: value for name, value in msgspec.structs.asdict(data).items() if value is not UNSET}
    if not given:
        raise MalformedError("a filter is required, such as `label` or `route`: everything matches without one")
    state = ListedState(given.pop("state")) if "state" in given else None
    return JobFilter(db=db, state=state, **given)


def _show(operation: Operation) -> OperationOut:
    counts, started_at = operation.counts, to_ms(operation.started_at)
    is_running = operation.state is OperationState.RUNNING
    elapsed = datetime.now(UTC) - operation.started_at
    return OperationOut(
        id=operation.id,
        kind=operation.key.kind,
        state=operation.state,
        matched=counts.matched if counts else UNSET,
        done=counts.done if counts else UNSET,
        failed=counts.failed if counts else UNSET,
        delivered=counts.delivered if counts and counts.delivered is not None else UNSET,
        rate=round(counts.done / max(elapsed.total_seconds(), 1), 1) if counts and is_running else UNSET,
        started_at=started_at,
        ended_at=to_ms(operation.ended_at) if operation.ended_at else UNSET,
        started_by=operation.started_by or UNSET,
        route=operation.key.route or UNSET,
        filter=_show_filter(operation.filter) if operation.filter else UNSET,
    )


def _in_words(wanted: JobFilter) -> str:
    """Return a filter as the audit log shows it."""
    given = msgspec.structs.asdict(_show_filter(wanted))
    # Of all values only a label may hold blanks, and with them what looks like another part of the filter.
    shown = given | {"label": UNSET if wanted.label is None else json.dumps(wanted.label, ensure_ascii=False)}
    return " ".join(f"{name}={value}" for name, value in shown.items() if value is not UNSET)


def _show_filter(wanted: JobFilter) -> JobFilterOut:
    given = msgspec.structs.asdict(wanted)
    return JobFilterOut(**{name: given[name] for name in JobFilterOut.__struct_fields__ if given[name] is not None})


class CancelController(Controller):
    """The cancel of many jobs."""

    path = "/cancel/{db:str}"
    tags = ("Operations",)

    @post(
        dto=ExactJson[CancelIn],
        return_dto=None,
        status_code=202,
        guards=[requires(Role.ADMIN)],
        operation_id="CancelJobs",
        summary="Cancel all jobs that match a filter",
        responses={
            200: ResponseSpec(CancelCount, generate_examples=False, description="How many match: a dry run."),
            202: ResponseSpec(OperationOut, generate_examples=False, description="The operation."),
            **refusals(MalformedError, ForbiddenNameError, TooLargeError, ContentTypeError),
        },
    )
    async def cancel(
        self,
        db: Db,
        data: JSONBody[CancelIn],
        operations: NamedDependency[Operations],
        request: AuthenticatedRequest,
        dry_run: DryRun = False,
    ) -> Response[OperationOut | CancelCount]:
        """Cancel the jobs that match all of a filter and have not ended, each as exactly as DELETE, in the background.

        Jobs that are created after this are not touched. While a cancel with the same filter runs, that one is the
        answer.
        """
        wanted = _wanted(db, data)
        if dry_run:
            return Response(await operations.count(wanted), status_code=200)
        return Response(await operations.cancel(wanted, request.user), status_code=202)


class OperationController(Controller):
    """Operations of every kind."""

    path = "/operation/{db:str}"
    tags = ("Operations",)

    @get(
        guards=[requires(Role.READ)],
        operation_id="ListOperations",
        summary="List the operations of a db",
        responses=refusals(MalformedError, ForbiddenNameError),
    )
    async def list_all(
        self, db: Db, operations: NamedDependency[Operations], limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
    ) -> OperationsOut:
        """List releases, redeliveries and cancels of many: those that run first, then the latest to end."""
        return await operations.page(db, limit, cursor)

    @get(
        "/{operation_id:str}",
        guards=[requires(Role.READ)],
        operation_id="GetOperation",
        summary="Get the progress of an operation",
        responses=refusals(ForbiddenNameError, NoSuchOperationError),
    )
    async def read(self, db: Db, operation_id: OperationId, operations: NamedDependency[Operations]) -> OperationOut:
        """Return an operation, and how far it is."""
        return await operations.find(db, operation_id)

    @delete(
        "/{operation_id:str}",
        status_code=200,
        guards=[requires(Role.ADMIN)],
        operation_id="StopOperation",
        summary="Stop an operation",
        responses=refusals(ForbiddenNameError, NoSuchOperationError, TooLateError),
    )
    async def stop(
        self,
        db: Db,
        operation_id: OperationId,
        operations: NamedDependency[Operations],
        request: AuthenticatedRequest,
    ) -> Ok:
        """Stop an operation that runs. What it has done stays done; it ends within seconds while a worker runs."""
        await operations.stop(db, operation_id, request.user)
        return Ok()

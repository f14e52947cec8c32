"""The failed list: the jobs of a db that no receiver took."""

from datetime import datetime
from typing import Annotated

import msgspec
from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import QueryParameter
from msgspec import UNSET
from temporalio.client import Client, WorkflowExecution

from api.errors import refusals
from api.pagination import DEFAULT_LIMIT, Cursor, Limit, SealedCursors
from api.parameters import Db
from api.schemas import FailedJobOut, FailedPage, name_schema
from timemachine.domain import stored_names
from timemachine.domain.errors import ForbiddenNameError, MalformedError
from timemachine.domain.jobs import MAX_NAME, check_name, split_workflow_id, to_ms
from timemachine.postgres.attempt_log import AttemptLog
from timemachine.postgres.delivery_ledger import DeliveryLedger
from timemachine.settings import Settings
from timemachine.temporal.client import temporal_timeout
from timemachine.temporal.search_attributes import ROUTE, TRIGGER_TIME
from timemachine.vault import Vault

LATER_RUNS_AT_ONCE = 1000
"""Runs that one query returns at most, as Temporal's own limit is."""

_NAME = name_schema(MAX_NAME)
OfRoute = Annotated[str | None, QueryParameter(description="Only jobs on this route.", schema_extra=_NAME)]
InCollection = Annotated[str | None, QueryParameter(description="Only jobs in this collection.", schema_extra=_NAME)]


class FailedJobs:
    """The failed jobs, from Temporal's visibility, which lags behind by a fraction of a second.

    Every method raises UnavailableError when Temporal or Postgres does not answer in time.
    """

    def __init__(
        self, client: Client, log: AttemptLog, ledger: DeliveryLedger, vault: Vault, settings: Settings
    ) -> None:
        """Take the clients of Temporal and Postgres, and the vault that seals cursors."""
        self._client = client
        self._cursors = SealedCursors(vault)
        self._log = log
        self._ledger = ledger
        self._limit = settings.request_timeout

    async def page(
        self, db: str, route: str | None, collection: str | None, limit: int, cursor: str | None
    ) -> FailedPage:
        """Return a page of the jobs that failed and to which nothing has happened since.

        Raises:
            ForbiddenNameError, MalformedError: A name or the cursor is not allowed.
        """
        asked = Asked(db=db, route=route, collection=collection)
        query = asked.query
        async with temporal_timeout(self._limit):
            listed = self._client.list_workflows(
                query, page_size=limit, next_page_token=self._cursors.open(cursor, query)
            )
            await listed.fetch_next_page()
            runs = await self._still_failed([run for run in listed.current_page or () if asked.includes(run)])
        taken = await self._ledger.taken([run.run_id for run in runs])
        runs = [run for run in runs if run.run_id not in taken]
        errors = await self._log.last_errors(db, ((*split_workflow_id(run.id)[1:], run.run_id) for run in runs))
        return FailedPage(
            failed=[_show(run, errors.get(run.run_id)) for run in runs],
            next=self._cursors.seal(listed.next_page_token, query) if listed.next_page_token else UNSET,
        )

    async def _still_failed(self, runs: list[WorkflowExecution]) -> list[WorkflowExecution]:
        """Return those after which their job has no other run: the others were redelivered, or created again."""
        if not runs:
            return []
        latest = await self._latest_starts(runs)
        return [run for run in runs if latest.get(run.id, run.start_time) <= run.start_time]

    async def _latest_starts(self, runs: list[WorkflowExecution]) -> dict[str, datetime]:
        """Return when the latest run of each job began, where one began after the first of these runs ended."""
        ids = ", ".join(f"'{workflow_id}'" for workflow_id in sorted({run.id for run in runs}))
        since = min(_ended_at(run) for run in runs).isoformat(timespec="milliseconds")
        query = f"WorkflowType = '{stored_names.JOB}' AND StartTime >= '{since}' AND WorkflowId IN ({ids})"
        latest: dict[str, datetime] = {}
        async for run in self._client.list_workflows(query, page_size=LATER_RUNS_AT_ONCE):
            latest[run.id] = max(run.start_time, latest.get(run.id, run.start_time))
        return latest


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """Which failed jobs are asked for.

    Raises:
        ForbiddenNameError: A name is not allowed; what is allowed holds no quotes.
    """

    db: str
    route: str | None
    collection: str | None

    def __post_init__(self) -> None:
        """Refuse names that are not allowed."""
        for kind, name in (("db", self.db), ("collection", self.collection), ("route", self.route)):
            if name is not None:
                check_name(kind, name)

    @property
    def query(self) -> str:
        """What to ask visibility for."""
        query = (
            f"WorkflowType = '{stored_names.JOB}' AND ExecutionStatus = 'Failed' "
            f"AND WorkflowId STARTS_WITH '{self._prefix}'"
        )
        return query if self.route is None else f"{query} AND {ROUTE.name} = '{self._route_key}'"

    def includes(self, run: WorkflowExecution) -> bool:
        """Return whether a run that was listed was asked for: not every store of visibility tells `a` from `A`."""
        if self.route is not None and run.typed_search_attributes.get(ROUTE) != self._route_key:
            return False
        return run.id.startswith(self._prefix)

    @property
    def _prefix(self) -> str:
        return f"{self.db}/" if self.collection is None else f"{self.db}/{self.collection}/"

    @property
    def _route_key(self) -> str:
        return f"{self.db}/{self.route}"


def _ended_at(run: WorkflowExecution) -> datetime:
    return run.close_time or run.start_time


def _show(run: WorkflowExecution, last_error: str | None) -> FailedJobOut:
    _, collection, job_id = split_workflow_id(run.id)
    route, trigger_time = run.typed_search_attributes.get(ROUTE), run.typed_search_attributes.get(TRIGGER_TIME)
    return FailedJobOut(
        id=job_id,
        collection=collection,
        route=route.partition("/")[2] if route else UNSET,
        trigger_time=to_ms(trigger_time) if trigger_time else UNSET,
        failed_at=to_ms(_ended_at(run)),
        last_error=last_error or UNSET,
    )


class FailedController(Controller):
    """The failed list."""

    path = "/failed/{db:str}"
    tags = ("Jobs",)

    @get(
        operation_id="ListFailed",
        summary="List the failed jobs of a db",
        responses=refusals(MalformedError, ForbiddenNameError),
    )
    async def list_failed(
        self,
        db: Db,
        failed: NamedDependency[FailedJobs],
        route: OfRoute = None,
        collection: InCollection = None,
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> FailedPage:
        """List the jobs of a db that failed for good, the latest first, while Temporal keeps them.

        A job that was redelivered or created again since is left out, so a page may be short: follow `next` to the end.
        """
        return await failed.page(db, route, collection, limit, cursor)

"""The failed list: the jobs of a db that no receiver took."""

from datetime import UTC, datetime

from litestar import Controller, get
from litestar.di import NamedDependency
from msgspec import UNSET
from temporalio.client import Client, WorkflowExecution

from api.authentication import requires
from api.errors import refusals
from api.job_filters import InCollection, OfRoute
from api.pagination import DEFAULT_LIMIT, Cursor, Limit, open_cursor, seal_cursor
from api.parameters import Db
from api.schemas import FailedJobOut, FailedPage
from timemachine.domain.errors import ForbiddenNameError, MalformedError
from timemachine.domain.job_filter import JobFilter, ListedState
from timemachine.domain.jobs import split_workflow_id, to_ms
from timemachine.domain.keys import Role
from timemachine.domain.outcomes import RowState
from timemachine.postgres.attempt_log import AttemptLog
from timemachine.postgres.delivery_ledger import DeliveryLedger
from timemachine.settings import Settings
from timemachine.temporal.client import temporal_timeout
from timemachine.temporal.job_lists import decisions, without_later_runs
from timemachine.temporal.search_attributes import ROUTE, TRIGGER_TIME
from timemachine.temporal.visibility import job_query, listed_job
from timemachine.vault import Vault


class FailedJobs:
    """The failed jobs, from Temporal's visibility, which lags behind by a fraction of a second.

    Every method raises UnavailableError when Temporal or Postgres does not answer in time.
    """

    def __init__(
        self, client: Client, log: AttemptLog, ledger: DeliveryLedger, vault: Vault, settings: Settings
    ) -> None:
        """Take the clients of Temporal and Postgres, and the vault that seals cursors."""
        self._client = client
        self._vault = vault
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
        wanted, now = JobFilter(db=db, route=route, collection=collection, state=ListedState.FAILED), datetime.now(UTC)
        token = open_cursor(self._vault, wanted, cursor, bytes)
        async with temporal_timeout(self._limit):
            listed = self._client.list_workflows(job_query(wanted, now), page_size=limit, next_page_token=token)
            await listed.fetch_next_page()
            found = [run for run in listed.current_page or () if wanted.includes(listed_job(run, now))]
            runs = await without_later_runs(self._client, found)
            decided = await decisions(self._client, self._ledger.states, runs)
        runs = [run for run in runs if decided.get(run.run_id, RowState.FAILED) is RowState.FAILED]
        errors = await self._log.last_errors(db, ((*split_workflow_id(run.id)[1:], run.run_id) for run in runs))
        return FailedPage(
            failed=[_show(run, errors.get(run.run_id)) for run in runs],
            next=seal_cursor(self._vault, wanted, listed.next_page_token) if listed.next_page_token else UNSET,
        )


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
        guards=[requires(Role.READ)],
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

        A job that was redelivered or created again since is left out, and so is one that turned out to be delivered.
        So a page may be short: follow `next` to the end.
        """
        return await failed.page(db, route, collection, limit, cursor)

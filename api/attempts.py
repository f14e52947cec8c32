"""The log of attempts: what was sent for a job or to a route, and what came back."""

from typing import Annotated

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import QueryParameter
from msgspec import UNSET
from temporalio.client import Client

from api.authentication import requires
from api.errors import refusals
from api.pagination import DEFAULT_LIMIT, Cursor, Limit, Since, Until, check_window, decode_cursor, encode_cursor
from api.parameters import Collection, Db, JobIdInPath, RouteIdInPath
from api.routes import check_route_key
from api.schemas import AttemptOut, AttemptsOut
from timemachine.domain.errors import ForbiddenNameError, MalformedError, NoSuchJobError, NoSuchRouteError
from timemachine.domain.jobs import check_key, from_ms, to_ms
from timemachine.domain.keys import Role
from timemachine.postgres.attempt_log import Attempt, AttemptLog, OutcomeFilter, Page, PagePosition
from timemachine.postgres.route_store import RouteStore
from timemachine.settings import Settings
from timemachine.temporal.client import temporal_timeout
from timemachine.temporal.job_runs import latest_run

Ended = Annotated[
    OutcomeFilter | None, QueryParameter(description="Only those that the receiver took, or only the others.")
]


class Attempts:
    """The log, as clients may ask for it.

    Every method raises UnavailableError when Temporal or Postgres does not answer in time.
    """

    def __init__(self, log: AttemptLog, routes: RouteStore, client: Client, settings: Settings) -> None:
        """Take the clients of Postgres and Temporal."""
        self._log = log
        self._routes = routes
        self._client = client
        self._limit = settings.request_timeout

    async def of_job(self, db: str, collection: str, job_id: str, limit: int, cursor: str | None) -> AttemptsOut:
        """Return a page of a job's attempts.

        A job that Temporal has forgotten is still shown while the log has attempts of it.

        Raises:
            ForbiddenNameError, MalformedError: A name or the cursor is not allowed.
            NoSuchJobError: There are no attempts, and no such job.
        """
        workflow_id, after = check_key(db, collection, job_id), _position(cursor)
        page = await self._log.of_job(db, collection, job_id, limit=limit, after=after)
        if not page.attempts:
            async with temporal_timeout(self._limit):
                await latest_run(self._client, workflow_id)
        return _shown(page)

    async def of_route(
        self,
        db: str,
        route_id: str,
        limit: int,
        cursor: str | None,
        *,
        outcome: OutcomeFilter | None,
        since: int | None,
        until: int | None,
    ) -> AttemptsOut:
        """Return a page of a route's attempts; of one that was deleted, too.

        Raises:
            ForbiddenNameError, MalformedError: A name, the cursor or a time is not allowed.
            NoSuchRouteError: There are no such attempts, and no such route.
        """
        check_route_key(db, route_id)
        check_window(since, until)
        page = await self._log.of_route(
            db,
            route_id,
            limit=limit,
            after=_position(cursor),
            outcome=outcome,
            since=None if since is None else from_ms(since),
            until=None if until is None else from_ms(until),
        )
        if not page.attempts:
            await self._routes.check(db, route_id)
        return _shown(page)


def _position(cursor: str | None) -> PagePosition | None:
    return None if cursor is None else decode_cursor(cursor, PagePosition)


def _shown(page: Page) -> AttemptsOut:
    return AttemptsOut(
        attempts=[_show(attempt) for attempt in page.attempts],
        next=encode_cursor(page.next) if page.next else UNSET,
    )


def _show(attempt: Attempt) -> AttemptOut:
    return AttemptOut(
        collection=attempt.collection,
        id=attempt.job_id,
        route=attempt.route_id,
        webhook_id=attempt.message_id,
        attempt=attempt.attempt,
        started_at=to_ms(attempt.started_at),
        duration_ms=attempt.duration_ms,
        status=UNSET if attempt.status is None else attempt.status,
        kind=attempt.kind,
        error=UNSET if attempt.error is None else attempt.error,
        answer=attempt.answer.decode("utf-8", "replace"),
        worker=attempt.worker,
    )


class AttemptController(Controller):
    """The log of attempts."""

    @get(
        "/job/{db:str}/{collection:str}/{job_id:str}/attempts",
        guards=[requires(Role.READ)],
        operation_id="ListAttemptsOfJob",
        summary="List the attempts of a job",
        tags=("Jobs",),
        responses=refusals(MalformedError, ForbiddenNameError, NoSuchJobError),
    )
    async def of_job(
        self,
        db: Db,
        collection: Collection,
        job_id: JobIdInPath,
        attempts: NamedDependency[Attempts],
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> AttemptsOut:
        """List the attempts of a job, the latest first, those of earlier runs of its id among them."""
        return await attempts.of_job(db, collection, job_id, limit, cursor)

    @get(
        "/route/{db:str}/{route_id:str}/attempts",
        guards=[requires(Role.READ)],
        operation_id="ListAttemptsOfRoute",
        summary="List the attempts at a route",
        tags=("Routes",),
        responses=refusals(MalformedError, ForbiddenNameError, NoSuchRouteError),
    )
    async def of_route(
        self,
        db: Db,
        route_id: RouteIdInPath,
        attempts: NamedDependency[Attempts],
        kind: Ended = None,
        since: Since = None,
        until: Until = None,
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> AttemptsOut:
        """List the attempts on a route, the latest first."""
        return await attempts.of_route(db, route_id, limit, cursor, outcome=kind, since=since, until=until)

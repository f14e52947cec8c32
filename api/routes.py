"""The four endpoints of a route: where the jobs of a db are delivered. Routes live in Postgres."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Annotated
from urllib.parse import urlsplit

from litestar import Controller, delete, get, post, put
from litestar.di import NamedDependency
from litestar.params import JSONBody, QueryParameter
from msgspec import UNSET
from temporalio.client import Client

from api.authentication import AuthenticatedRequest, requires
from api.errors import refusals
from api.known_routes import REMOVAL_TIME
from api.litestar_json import ExactJson, OptionalBody, OptionalJson
from api.pagination import DEFAULT_LIMIT, Cursor, Limit, decode_cursor, encode_cursor
from api.parameters import Db, RouteIdInPath
from api.schemas import Ok, PauseIn, ResumeIn, RouteChange, RouteIn, RouteListed, RouteOut, RoutesPage
from timemachine.domain.audit import Caller
from timemachine.domain.errors import (
    ContentTypeError,
    ForbiddenNameError,
    MalformedError,
    NoSuchRouteError,
    RouteExistsError,
    RouteInUseError,
    TooLargeError,
    WebhookUrlError,
)
from timemachine.domain.job_filter import JobFilter
from timemachine.domain.jobs import check_name, to_ms
from timemachine.domain.keys import Role
from timemachine.domain.releases import ReleaseHeld
from timemachine.domain.routes import (
    HIDDEN,
    RestRoute,
    Route,
    RouteState,
    check_headers,
    target_url,
)
from timemachine.postgres.attempt_log import AttemptLog, Success
from timemachine.postgres.route_store import RoutePosition, RouteStore, StoredRoute
from timemachine.settings import Settings
from timemachine.temporal.client import temporal_timeout
from timemachine.temporal.operations import start_operation
from timemachine.temporal.visibility import open_jobs_query

RATED_OVER = timedelta(hours=1)

Force = Annotated[bool, QueryParameter(description="Delete it even while jobs wait on it, or events go to it.")]


class Routes:
    """The routes, with the rules that a client's request must keep."""

    def __init__(self, store: RouteStore, log: AttemptLog, client: Client, settings: Settings) -> None:
        """Take the clients of Postgres and Temporal."""
        self._store = store
        self._log = log
        self._client = client
        self._settings = settings
        self._targets = settings.address_guard

    def allowed(self, db: str, route_id: str, data: RouteIn | RouteChange) -> Route:
        """Return a route that keeps the rules.

        Raises:
            ForbiddenNameError, WebhookUrlError, MalformedError: It does not.
        """
        check_route_key(db, route_id)
        url = target_url(data.webhook_url, default_scheme=self._settings.default_scheme)
        if not self._targets.may_point_to(urlsplit(url).hostname or ""):
            raise WebhookUrlError(
                "webhook_url: it points where deliveries may not go; an operator allows addresses by "
                "TIMEMACHINE_ALLOWED_TARGETS"
            )
        check_headers(data.headers)
        return RestRoute(
            id=route_id,
            webhook_url=data.webhook_url,
            retry=data.retry.stored(),
            timeout=data.timeout,
            max_in_flight=data.max_in_flight,
            header_names=tuple(sorted(data.headers)),
        )

    async def add(self, db: str, data: RouteIn, caller: Caller) -> None:
        """Add a route; see `RouteStore.add`."""
        await self._store.add(db, self.allowed(db, data.id, data), data.headers, by=caller)

    async def find(self, db: str, route_id: str) -> RouteOut:
        """Return a route; see `RouteStore.find`."""
        stored = await self._store.find(db, route_id)
        route, status = stored.route, stored.status
        return RouteOut(
            id=route.id,
            webhook_url=route.webhook_url,
            retry=route.retry,
            timeout=route.timeout or self._settings.delivery_timeout,
            headers=dict.fromkeys(route.header_names, HIDDEN),
            max_in_flight=route.max_in_flight,
            state=status.state,
            since=to_ms(status.since),
            reason=status.reason or UNSET,
        )

    async def page(self, db: str, limit: int, cursor: str | None) -> RoutesPage:
        """Return a page of the routes of a db, with how their attempts of the last hour went.

        Raises:
            ForbiddenNameError, MalformedError: The db's name or the cursor is not allowed.
        """
        check_name("db", db)
        after = None if cursor is None else decode_cursor(cursor, RoutePosition)
        found = await self._store.of_db(db, limit=limit + 1, after=after)
        shown = found[:limit]
        since = datetime.now(UTC) - RATED_OVER
        success = await self._log.success(db, [stored.route.id for stored in shown], since)
        return RoutesPage(
            routes=[_list(stored, success[stored.route.id]) for stored in shown],
            next=encode_cursor(RoutePosition(shown[-1].route.id)) if len(found) > limit else UNSET,
        )

    async def replace(self, db: str, route_id: str, data: RouteChange, caller: Caller) -> None:
        """Replace a route; see `RouteStore.replace`."""
        await self._store.replace(db, self.allowed(db, route_id, data), data.headers, by=caller)

    async def pause(self, db: str, route_id: str, reason: str | None, caller: Caller) -> None:
        """Hold the jobs of a route, without using up their attempts; see `RouteStore.set_state`."""
        await self._store.set_state(db, route_id, RouteState.PAUSED, reason, by=caller)

    async def resume(self, db: str, route_id: str, spread: float, caller: Caller) -> None:
        """Release the jobs of a paused or disabled route, in the background and over `spread` seconds."""
        await self._store.set_state(db, route_id, RouteState.ACTIVE, by=caller)
        release = ReleaseHeld(db=db, route_id=route_id, spread=spread, all_due=True)
        async with temporal_timeout(self._settings.request_timeout, begun=True):
            await start_operation(
                self._client,
                release.key,
                release,
                task_queue=self._settings.task_queue,
                summary=f"Releases what route {route_id} holds",
                route=route_id,
                started_by=caller.key_id,
                replaces=True,
            )

    async def remove(self, db: str, route_id: str, caller: Caller, *, force: bool) -> None:
        """Remove a route.

        Whether jobs wait on it is asked of Temporal's visibility, which lags behind by a fraction of a second: a job
        created in that moment, or until this returns, keeps trying as its retries say, until the route is there again
        or they are used up. A job that is asked for after this has returned is refused.

        Raises:
            NoSuchRouteError: There is none.
            RouteInUseError: Jobs still wait on it, or events go to it, and `force` is not set.
        """
        try:
            await self._remove(db, route_id, caller, force=force)
        except NoSuchRouteError:
            # It may have been removed a moment ago, by a request that this one repeats.
            await asyncio.sleep(REMOVAL_TIME)
            raise
        await asyncio.sleep(REMOVAL_TIME)

    async def _remove(self, db: str, route_id: str, caller: Caller, *, force: bool) -> None:
        await self._store.check(db, route_id)
        if not force:
            async with temporal_timeout(self._settings.request_timeout):
                waiting = (await self._client.count_workflows(_waiting_query(db, route_id))).count
            if waiting:
                raise RouteInUseError(f"jobs that wait on this route: {waiting}; ?force=true removes it all the same")
        await self._store.remove(db, route_id, force=force, by=caller)


def _waiting_query(db: str, route_id: str) -> str:
    return open_jobs_query(JobFilter(db=db, route=route_id), datetime.now(UTC))


def _list(stored: StoredRoute, success: Success) -> RouteListed:
    route, status = stored.route, stored.status
    return RouteListed(
        id=route.id,
        webhook_url=route.webhook_url,
        state=status.state,
        since=to_ms(status.since),
        reason=status.reason or UNSET,
        attempts=success.attempts,
        success_rate=UNSET if success.rate is None else success.rate,
    )


def check_route_key(db: str, route_id: str) -> None:
    """Refuse names that are not allowed.

    Raises:
        ForbiddenNameError: One of them is not.
    """
    check_name("db", db)
    check_name("id", route_id)


class RouteController(Controller):
    """Routes: where jobs are delivered."""

    path = "/route/{db:str}"
    tags = ("Routes",)

    @post(
        dto=ExactJson[RouteIn],
        return_dto=None,
        status_code=200,
        guards=[requires(Role.ADMIN)],
        operation_id="CreateRoute",
        summary="Create a route",
        responses=refusals(
            MalformedError, ForbiddenNameError, RouteExistsError, WebhookUrlError, TooLargeError, ContentTypeError
        ),
    )
    async def create(
        self, db: Db, data: JSONBody[RouteIn], routes: NamedDependency[Routes], request: AuthenticatedRequest
    ) -> Ok:
        """Create a route. Repeating a create whose answer was lost is safe: the same content is answered 200 again."""
        await routes.add(db, data, request.user)
        return Ok()

    @get(
        guards=[requires(Role.READ)],
        operation_id="ListRoutes",
        summary="List the routes of a db",
        responses=refusals(MalformedError, ForbiddenNameError),
    )
    async def of_db(
        self, db: Db, routes: NamedDependency[Routes], limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
    ) -> RoutesPage:
        """List the routes of a db in the order of their ids, with how their attempts of the last hour went."""
        return await routes.page(db, limit, cursor)

    @get(
        "/{route_id:str}",
        guards=[requires(Role.READ)],
        operation_id="GetRoute",
        summary="Get a route",
        responses=refusals(ForbiddenNameError, NoSuchRouteError),
    )
    async def read(self, db: Db, route_id: RouteIdInPath, routes: NamedDependency[Routes]) -> RouteOut:
        """Return a route."""
        check_route_key(db, route_id)
        return await routes.find(db, route_id)

    @put(
        "/{route_id:str}",
        dto=ExactJson[RouteChange],
        return_dto=None,
        guards=[requires(Role.ADMIN)],
        operation_id="ChangeRoute",
        summary="Change a route",
        responses=refusals(
            MalformedError, ForbiddenNameError, NoSuchRouteError, WebhookUrlError, TooLargeError, ContentTypeError
        ),
    )
    async def change(
        self,
        db: Db,
        route_id: RouteIdInPath,
        data: JSONBody[RouteChange],
        routes: NamedDependency[Routes],
        request: AuthenticatedRequest,
    ) -> Ok:
        """Replace a route. The next attempt of every job on it goes to the new one."""
        if data.id not in (UNSET, route_id):
            raise MalformedError("id: it must be left out, or be the one in the path")
        await routes.replace(db, route_id, data, request.user)
        return Ok()

    @delete(
        "/{route_id:str}",
        status_code=200,
        guards=[requires(Role.ADMIN)],
        operation_id="DeleteRoute",
        summary="Delete a route",
        responses=refusals(MalformedError, ForbiddenNameError, NoSuchRouteError, RouteInUseError),
    )
    async def remove(
        self,
        db: Db,
        route_id: RouteIdInPath,
        routes: NamedDependency[Routes],
        request: AuthenticatedRequest,
        force: Force = False,
    ) -> Ok:
        """Delete a route. While jobs wait on it, only with `force=true`; their attempts then fail and are retried.

        The same holds while events go to it, which then end. Jobs for the route that are sent after the answer are
        refused.
        """
        check_route_key(db, route_id)
        await routes.remove(db, route_id, request.user, force=force)
        return Ok()

    @post(
        "/{route_id:str}/pause",
        dto=OptionalJson[PauseIn],
        return_dto=None,
        status_code=200,
        operation_class=OptionalBody,
        guards=[requires(Role.ADMIN)],
        operation_id="PauseRoute",
        summary="Pause a route",
        responses=refusals(MalformedError, ForbiddenNameError, NoSuchRouteError, TooLargeError, ContentTypeError),
    )
    async def pause(
        self,
        db: Db,
        route_id: RouteIdInPath,
        data: JSONBody[PauseIn],
        routes: NamedDependency[Routes],
        request: AuthenticatedRequest,
    ) -> Ok:
        """Hold the jobs of a route. No attempt is used up; what is in flight ends."""
        check_route_key(db, route_id)
        await routes.pause(db, route_id, data.reason or None, request.user)
        return Ok()

    @post(
        "/{route_id:str}/resume",
        dto=OptionalJson[ResumeIn],
        return_dto=None,
        status_code=200,
        operation_class=OptionalBody,
        guards=[requires(Role.ADMIN)],
        operation_id="ResumeRoute",
        summary="Resume a route",
        responses=refusals(MalformedError, ForbiddenNameError, NoSuchRouteError, TooLargeError, ContentTypeError),
    )
    async def resume(
        self,
        db: Db,
        route_id: RouteIdInPath,
        data: JSONBody[ResumeIn],
        routes: NamedDependency[Routes],
        request: AuthenticatedRequest,
    ) -> Ok:
        """Open a paused or disabled route again, and release its held jobs, spread over some time."""
        check_route_key(db, route_id)
        await routes.resume(db, route_id, data.spread, request.user)
        return Ok()

"""Events: which ones of a db are sent, and where."""

from litestar import Controller, delete, get, put
from litestar.di import NamedDependency
from litestar.params import JSONBody

from api.authentication import AuthenticatedRequest, requires
from api.errors import refusals
from api.litestar_json import ExactJson
from api.parameters import Db
from api.schemas import EventsIn, EventsOut, Ok
from timemachine.domain.errors import (
    ContentTypeError,
    ForbiddenNameError,
    MalformedError,
    NoSuchRouteError,
    TooLargeError,
)
from timemachine.domain.events import EventSettings, check_kinds
from timemachine.domain.jobs import check_name
from timemachine.domain.keys import Role
from timemachine.postgres.event_store import EventStore


class EventController(Controller):
    """Events: what has happened, sent to a route."""

    path = "/events/{db:str}"
    tags = ("Events",)

    @put(
        dto=ExactJson[EventsIn],
        return_dto=None,
        guards=[requires(Role.ADMIN)],
        operation_id="SetEvents",
        summary="Set which events are sent",
        responses=refusals(MalformedError, ForbiddenNameError, NoSuchRouteError, TooLargeError, ContentTypeError),
    )
    async def replace(
        self,
        db: Db,
        data: JSONBody[EventsIn],
        event_store: NamedDependency[EventStore],
        request: AuthenticatedRequest,
    ) -> Ok:
        """Have what happens in a db from now on sent to one of its routes, each event as a job of its own."""
        check_name("db", db)
        check_name("route", data.route)
        check_kinds(data.on)
        await event_store.replace(db, EventSettings(route_id=data.route, kinds=tuple(data.on)), by=request.user)
        return Ok()

    @get(
        guards=[requires(Role.READ)],
        operation_id="GetEvents",
        summary="Get which events are sent",
        responses=refusals(ForbiddenNameError),
    )
    async def read(self, db: Db, event_store: NamedDependency[EventStore]) -> EventsOut:
        """Return which events of a db are sent, and where."""
        check_name("db", db)
        settings = await event_store.find(db)
        return EventsOut(route=settings.route_id if settings else None, on=list(settings.kinds) if settings else [])

    @delete(
        status_code=200,
        guards=[requires(Role.ADMIN)],
        operation_id="DeleteEvents",
        summary="Stop sending events",
        responses=refusals(ForbiddenNameError),
    )
    async def remove(self, db: Db, event_store: NamedDependency[EventStore], request: AuthenticatedRequest) -> Ok:
        """Send no more events of a db. Those whose jobs are created already are sent."""
        check_name("db", db)
        await event_store.remove(db, by=request.user)
        return Ok()

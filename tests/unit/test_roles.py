"""Each handler of the API names the role that it needs, or is open on purpose."""

from collections.abc import Iterator

import pytest
from litestar import Controller, Litestar, get
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.routes import HTTPRoute

from api.app import create_app
from api.authentication import OPEN, Requires, requires
from api.parameters import Db
from tests.support.settings import service_settings
from timemachine.domain.errors import SettingsError
from timemachine.domain.keys import Role

OPEN_PATHS = {"/livez", "/healthz", "/readyz", "/docs"}
"""What needs no key: this, and what is below `/docs`."""

READ, WRITE, ADMIN = Role.READ, Role.WRITE, Role.ADMIN

ROLES = {
    "CreateJob": WRITE,
    "GetJob": READ,
    "ListJobs": READ,
    "ListJobsOfCollection": READ,
    "CountJobs": READ,
    "ListRoutes": READ,
    "ChangeJob": WRITE,
    "CancelJob": WRITE,
    "TriggerJob": WRITE,
    "CreateJobs": WRITE,
    "RedeliverJob": WRITE,
    "ListAttemptsOfJob": READ,
    "ListFailed": READ,
    "CreateRoute": ADMIN,
    "GetRoute": READ,
    "ChangeRoute": ADMIN,
    "DeleteRoute": ADMIN,
    "PauseRoute": ADMIN,
    "ResumeRoute": ADMIN,
    "GetSecret": ADMIN,
    "RotateSecret": ADMIN,
    "ListAttemptsOfRoute": READ,
    "RedeliverRoute": ADMIN,
    "GetRedelivery": READ,
    "CancelJobs": ADMIN,
    "ListOperations": READ,
    "GetOperation": READ,
    "StopOperation": ADMIN,
    "SetEvents": ADMIN,
    "GetEvents": READ,
    "DeleteEvents": ADMIN,
    "CreateKey": ADMIN,
    "ListKeys": ADMIN,
    "RotateKey": ADMIN,
    "RevokeKey": ADMIN,
    "ListAudit": ADMIN,
}


def handlers(app: Litestar) -> Iterator[tuple[str, BaseRouteHandler]]:
    """Every handler with its path. What answers OPTIONS is Litestar's own, and is not reached: see `HeadAndOptions`."""
    for route in app.routes:
        found = route.route_handlers if isinstance(route, HTTPRoute) else [route.route_handler]
        for handler in found:
            if not (isinstance(handler, HTTPRouteHandler) and handler.http_methods == {"OPTIONS"}):
                yield route.path, handler


def roles(handler: BaseRouteHandler) -> list[Role]:
    return [guard.role for guard in handler.resolve_guards() if isinstance(guard, Requires)]


def is_open(handler: BaseRouteHandler) -> bool:
    return OPEN.items() <= handler.opt.items()


def is_open_path(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith("/docs/")


def unnamed(app: Litestar) -> list[str]:
    """Where a handler is that names neither a role nor that it is open; or both, or two roles."""
    return [f"{path} {handler}" for path, handler in handlers(app) if len(roles(handler)) + is_open(handler) != 1]


@pytest.fixture(scope="module")
def app() -> Litestar:
    return create_app(service_settings(postgres_dsn="postgresql://nowhere/none"))


def test_every_handler_names_its_role_or_is_open(app: Litestar) -> None:
    assert unnamed(app) == []


def test_what_is_open_is_what_is_meant_to_be(app: Litestar) -> None:
    for path, handler in handlers(app):
        assert is_open(handler) == is_open_path(path), path


def test_the_roles_are_those_that_are_documented(app: Litestar) -> None:
    found = {
        handler.operation_id: roles(handler)[0]
        for _, handler in handlers(app)
        if isinstance(handler, HTTPRouteHandler) and not is_open(handler)
    }

    assert found == ROLES


def test_a_handler_that_names_no_role_is_found() -> None:
    class Forgotten(Controller):
        @get("/a/{db:str}")
        async def forgotten(self, db: Db) -> None: ...

        @get("/b/{db:str}", guards=[requires(Role.READ)])
        async def named(self, db: Db) -> None: ...

        @get("/c/{db:str}", guards=[requires(Role.READ), requires(Role.ADMIN)])
        async def named_twice(self, db: Db) -> None: ...

        @get("/d", guards=[requires(Role.READ)], opt=OPEN)
        async def open_after_all(self) -> None: ...

    found = unnamed(Litestar([Forgotten], openapi_config=None))

    assert [place.split(" ")[0] for place in found] == ["/a/{db:str}", "/c/{db:str}", "/d"]


def test_an_api_that_would_serve_everybody_on_any_address_is_not_made() -> None:
    with pytest.raises(SettingsError, match=r"^TIMEMACHINE_AUTH=none"):
        create_app(service_settings(postgres_dsn="postgresql://nowhere/none", http_host="192.0.2.1"))

"""Ways to reach a foreign db, or to do more than a key's role allows, over every handler: all are refused."""

from collections.abc import AsyncIterator
from itertools import product
from typing import Any

import httpx
import msgspec
import pytest
from litestar.handlers import HTTPRouteHandler
from litestar.routes import HTTPRoute
from msgspec.structs import replace

from api.app import create_app
from api.authentication import Requires
from devstack.temporal import Temporal
from tests.conftest import serving
from tests.support.cases import each_case
from tests.support.keys import bearer, id_of, make_key
from tests.support.refusals import NO_SUCH_KEY, NOT_ALLOWED
from tests.support.service import Service, a_job, new_id, refused
from tests.support.settings import service_settings
from timemachine.domain.keys import Role
from timemachine.settings import Auth, Settings

JOB_ID = "waiting"
OWN = "own"
"""The db of the keys that try."""


class Operation(msgspec.Struct, frozen=True):
    """One handler of the app."""

    method: str
    path: str
    role: Role

    def at(self, db: str) -> str:
        """Return a path within a db at which there may be something."""
        names = {"db": db, "collection": "c", "job_id": JOB_ID, "route_id": "hook", "redelivery_id": "0-1"}
        return self.path.format(**names | {"key_id": "k" * 12, "operation_id": "release:hook:0"})


def operations() -> list[Operation]:
    app = create_app(service_settings(postgres_dsn="postgresql://nowhere/none"))
    found = [
        Operation(method, route.path_format, guard.role)
        for route in app.routes
        if isinstance(route, HTTPRoute)
        for handler in route.route_handlers
        if isinstance(handler, HTTPRouteHandler)
        for method in sorted(handler.http_methods)
        for guard in handler.resolve_guards()
        if isinstance(guard, Requires)
    ]
    # Litestar has no order of its own, and the processes of pytest-xdist must agree on one.
    return sorted(found, key=lambda operation: (operation.path, operation.method))


OPERATIONS = operations()
OF_A_DB = [operation for operation in OPERATIONS if "{db}" in operation.path]
HIGHER = [(operation, role) for operation in OPERATIONS for role in Role if not role.includes(operation.role)]


def name(value: Any) -> str:
    return f"{value.method} {value.path}" if isinstance(value, Operation) else str(value)


each_of_a_db = each_case("operation", OF_A_DB, ids=name)


@pytest.fixture(scope="module")
async def keyed_settings(settings: Settings) -> Settings:
    return replace(settings, auth=Auth.KEYS)


@pytest.fixture(scope="module")
async def app(keyed_settings: Settings, temporal: Temporal, client: object) -> AsyncIterator[httpx.AsyncClient]:
    """The API with keys."""
    with pytest.MonkeyPatch.context() as env:
        env.setenv("TEMPORAL_ADDRESS", temporal.address)
        async with serving(create_app(keyed_settings)) as http:
            yield http


@pytest.fixture(scope="module")
async def keys(settings: Settings) -> dict[Role, str]:
    """A key of each role, of the db `own` alone."""
    return {role: await make_key(settings, role, (OWN,)) for role in Role}


@pytest.fixture(scope="module")
async def foreign(app: httpx.AsyncClient, settings: Settings) -> str:
    """Another db, with a route and a waiting job."""
    db = f"db-{new_id()[:12]}"
    headers = bearer(await make_key(settings))
    service = Service(httpx.AsyncClient(transport=app._transport, base_url="http://api", headers=headers), db)
    await service.add_route("http://127.0.0.1:9/")
    await service.create(3600, job_id=JOB_ID)
    return db


def shown(answer: httpx.Response) -> tuple[int, str, dict[str, str]]:
    return answer.status_code, answer.text, {**answer.headers, "x-request-id": "each has its own"}


async def send(app: httpx.AsyncClient, operation: Operation, path: str, key: str, body: bytes) -> httpx.Response:
    return await app.request(
        operation.method, path, content=body, headers=bearer(key) | {"content-type": "application/json"}
    )


def test_there_are_ways_to_try() -> None:
    assert len(OPERATIONS) >= 23
    assert len(OF_A_DB) + len(HIGHER) + len(PATHS) > 50


@each_of_a_db
async def test_a_foreign_db_is_refused_whether_there_is_something_or_not(
    app: httpx.AsyncClient, keys: dict[Role, str], foreign: str, operation: Operation
) -> None:
    key = keys[Role.ADMIN]

    there = await send(app, operation, operation.at(foreign), key, b"{}")
    nothing = await send(app, operation, operation.at("nothing-here"), key, b"{}")

    assert refused(there) == NOT_ALLOWED
    assert there.json()["error"] == "this key does not open this db"
    assert shown(there) == shown(nothing)


@each_of_a_db
async def test_nothing_is_read_for_a_foreign_db(
    app: httpx.AsyncClient, keys: dict[Role, str], foreign: str, operation: Operation
) -> None:
    """Neither the body nor the parameters: what is wrong with them would come first otherwise."""
    body = b'{"no": json' + b" " * 300_000
    path = f"{operation.at(foreign)}?limit=no&cursor=no&force=no"

    answer = await send(app, operation, path, keys[Role.ADMIN], body)

    assert refused(answer) == NOT_ALLOWED


@each_case(("operation", "role"), HIGHER, ids=name)
async def test_a_role_does_no_more_than_it_may(
    app: httpx.AsyncClient, keys: dict[Role, str], operation: Operation, role: Role
) -> None:
    answer = await send(app, operation, operation.at(OWN), keys[role], b"{}")

    assert refused(answer) == NOT_ALLOWED
    assert answer.json()["error"] == f"this needs a key with the role {operation.role}; this key has the role {role}"


@each_case("operation", OPERATIONS, ids=name)
async def test_a_role_does_what_it_may(app: httpx.AsyncClient, keys: dict[Role, str], operation: Operation) -> None:
    answer = await send(app, operation, operation.at(OWN), keys[operation.role], b"")

    assert answer.status_code in (200, 400), answer.text


# Names that may be taken for another: each with the db that it must be taken for, if for any.
PATHS = [
    "/job/{foreign}%2Fc/c/waiting",
    "/job/own/../{foreign}/c/waiting",
    "/job/own/..%2f{foreign}/c/waiting",
    "/job/own%2F..%2F{foreign}/c/waiting",
    "/job//{foreign}/c/waiting",
    "//job/{foreign}/c/waiting",
    "/job/./{foreign}/c/waiting",
    "/job/{foreign}/c/waiting/",
    "/job/{foreign}/c/waiting?db=own",
    "/job/{foreign}/c/waiting#own",
    "/job/{encoded}/c/waiting",
    "/job/own,{foreign}/c/waiting",
    "/job/%6fwn%00{foreign}/c/waiting",
    "/job/{foreign}%20/c/waiting",
    "/job/OWN/c/waiting",
    "/job/own%20/c/waiting",
    "/job/own./c/waiting",
    "/job/*/c/waiting",
    "/job/%25/c/waiting",
]


@each_case(("path", "method"), product(PATHS, ["GET", "HEAD", "DELETE"]))
async def test_no_spelling_of_a_path_opens_a_foreign_db(
    app: httpx.AsyncClient, keys: dict[Role, str], foreign: str, path: str, method: str
) -> None:
    encoded = "".join(f"%{ord(character):02x}" for character in foreign)
    url = httpx.URL(f"http://api{path.format(foreign=foreign, encoded=encoded)}")

    answer = await app.request(method, url, headers=bearer(keys[Role.ADMIN]))

    assert answer.status_code in (400, 403, 404)
    if method != "HEAD":
        assert refused(answer)[1] in ("E002", "E013", "E017"), "the key, or no such path, and never what is there"


@pytest.mark.parametrize(
    "headers",
    [
        {"x-http-method-override": "GET"},
        {"x-original-url": "/job/own/c/waiting"},
        {"x-rewrite-url": "/job/own/c/waiting"},
        {"x-forwarded-prefix": "/job/own"},
        {"x-forwarded-for": "127.0.0.1"},
        {"host": "own"},
        {"x-api-key": "own"},
    ],
    ids=lambda headers: next(iter(headers)),
)
async def test_no_header_opens_a_foreign_db(
    app: httpx.AsyncClient, keys: dict[Role, str], foreign: str, headers: dict[str, str]
) -> None:
    answer = await app.delete(f"/job/{foreign}/c/{JOB_ID}", headers=headers | bearer(keys[Role.ADMIN]))

    assert refused(answer) == NOT_ALLOWED


async def test_a_job_of_the_own_db_goes_to_no_route_of_another(
    app: httpx.AsyncClient, keys: dict[Role, str], foreign: str
) -> None:
    headers = bearer(keys[Role.ADMIN])
    for route in (f"{foreign}/hook", f"../{foreign}/hook", "hook"):
        answer = await app.post(f"/job/{OWN}/c", json=a_job(3600, route=route), headers=headers)
        assert refused(answer)[1] in ("E002", "E007")


async def test_the_foreign_db_is_as_it_was(app: httpx.AsyncClient, settings: Settings, foreign: str) -> None:
    """After all that the tests above have tried."""
    headers = bearer(await make_key(settings))

    assert (await app.get(f"/job/{foreign}/c/{JOB_ID}", headers=headers)).json()["state"] == "scheduled"
    assert (await app.get(f"/route/{foreign}/hook", headers=headers)).json()["state"] == "active"
    entries = (await app.get(f"/audit/{foreign}", headers=headers)).json()["entries"]
    assert [entry["action"] for entry in entries if entry["db"] == foreign] == ["route.create"]


@pytest.fixture(scope="module")
async def a_foreign_key(settings: Settings) -> str:
    return await make_key(settings, Role.WRITE, ("shop",))


@pytest.mark.parametrize("dbs", [None, ["shop"], ["own", "shop"], ["Own"]])
@pytest.mark.parametrize("role", Role)
async def test_no_key_is_made_for_foreign_dbs(
    app: httpx.AsyncClient, keys: dict[Role, str], dbs: list[str] | None, role: Role
) -> None:
    body = {"name": "more", "role": role, "dbs": dbs}

    assert refused(await app.post("/key", json=body, headers=bearer(keys[Role.ADMIN]))) == NOT_ALLOWED


async def test_foreign_keys_are_not_seen_rotated_or_revoked(
    app: httpx.AsyncClient, keys: dict[Role, str], a_foreign_key: str, settings: Settings
) -> None:
    headers = bearer(keys[Role.ADMIN])
    everything = await make_key(settings)
    both = await make_key(settings, Role.READ, ("own", "shop"))

    listed = (await app.get("/key?limit=200", headers=headers)).json()["keys"]

    assert {key["id"] for key in listed} >= {id_of(key) for key in keys.values()}
    assert {tuple(key["dbs"]) for key in listed} == {(OWN,)}
    unknown = await app.delete(f"/key/{'k' * 12}", headers=headers)
    assert refused(unknown) == NO_SUCH_KEY
    for key in (a_foreign_key, everything, both):
        revoked = await app.delete(f"/key/{id_of(key)}", headers=headers)
        assert revoked.text == unknown.text.replace("k" * 12, id_of(key))
        assert refused(revoked) == NO_SUCH_KEY
        assert refused(await app.post(f"/key/{id_of(key)}/rotate", headers=headers)) == NO_SUCH_KEY
        opened = await app.get("/failed/shop", headers=bearer(key))
        assert opened.status_code == 200, opened.text


async def test_changes_to_keys_of_all_dbs_are_told_to_such_keys_only(
    app: httpx.AsyncClient, keys: dict[Role, str], settings: Settings
) -> None:
    everything = await make_key(settings)

    own = (await app.get(f"/audit/{OWN}?limit=200", headers=bearer(keys[Role.ADMIN]))).json()["entries"]
    all_of_them = (await app.get(f"/audit/{OWN}?limit=200", headers=bearer(everything))).json()["entries"]

    assert {entry["db"] for entry in own} == {OWN}
    assert {entry["db"] for entry in all_of_them} == {OWN, None}
    assert id_of(everything) in {entry["target"] for entry in all_of_them}


async def test_a_cursor_of_one_db_shows_nothing_of_another(
    app: httpx.AsyncClient, keys: dict[Role, str], settings: Settings, foreign: str
) -> None:
    everything = bearer(await make_key(settings))
    for number in range(3):
        await app.post(f"/route/{foreign}/hook/pause", json={"reason": str(number)}, headers=everything)
    cursor = (await app.get(f"/audit/{foreign}?limit=1", headers=everything)).json()["next"]
    await app.post(f"/route/{foreign}/hook/resume", json={"spread": 0}, headers=everything)

    page = (await app.get(f"/audit/{OWN}?cursor={cursor}", headers=bearer(keys[Role.ADMIN]))).json()

    assert {entry["db"] for entry in page["entries"]} <= {OWN}

"""The API as a process of its own: what HTTP servers do with odd bytes is part of the contract."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from devstack import children
from devstack.parts import Part, running
from devstack.ports import free_port
from devstack.temporal import Temporal
from tests.contract.server import Server
from tests.support.service import Service, new_id
from timemachine.settings import Auth, Settings

WAITING = "waiting"


@asynccontextmanager
async def api_processes(
    settings: Settings, temporal: Temporal, folder: Path, *, auth: Auth, count: int = 1
) -> AsyncIterator[list[Server]]:
    """Run some API processes, which may log no fault."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("TIMEMACHINE_", "TEMPORAL_"))} | {
        "TEMPORAL_ADDRESS": temporal.address,
        "TIMEMACHINE_ALLOW_PRIVATE_TARGETS": "true",
        "TIMEMACHINE_AUTH": auth,
        "TIMEMACHINE_DEFAULT_SCHEME": settings.default_scheme,
        "TIMEMACHINE_REQUEST_TIMEOUT": str(settings.request_timeout),
        "TIMEMACHINE_POSTGRES_DSN": settings.postgres_dsn or "",
        "TIMEMACHINE_SECRET_KEYS": settings.secret_keys or "",
        "TIMEMACHINE_TASK_QUEUE": settings.task_queue,
    }
    servers = [Server(free_port(), folder / f"api-{number}.log") for number in range(count)]
    async with AsyncExitStack() as opened:
        for server in servers:
            own = env | {"TIMEMACHINE_HTTP_PORT": str(server.port)}
            program = replace(children.api(children.Commands(), own, settings), log=server.log)
            await opened.enter_async_context(running(Part(program, children.answers_ready(server.url))))
        yield servers
    for server in servers:
        assert server.faults() == ""


@pytest.fixture(scope="session")
async def api_process(
    settings: Settings, temporal: Temporal, client: object, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    async with api_processes(settings, temporal, tmp_path_factory.mktemp("api"), auth=Auth.NONE) as servers:
        yield servers[0]


@pytest.fixture(scope="session")
async def keyed_pair(
    settings: Settings, temporal: Temporal, client: object, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[list[Server]]:
    """Two API processes that want a key."""
    folder = tmp_path_factory.mktemp("keyed")
    async with api_processes(settings, temporal, folder, auth=Auth.KEYS, count=2) as servers:
        yield servers


@pytest.fixture
def keyed(keyed_pair: list[Server]) -> Server:
    """One of them."""
    return keyed_pair[0]


@pytest.fixture
def server(api_process: Server) -> Iterator[Server]:
    """The API over raw sockets; nothing that a test does to it may make it log an error or a traceback."""
    with api_process.faultless():
        yield api_process


@pytest.fixture(scope="session")
async def api(api_process: Server) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API's process, in place of the API in the tests' own."""
    async with httpx.AsyncClient(base_url=api_process.url, timeout=30) as http:
        yield http


@pytest.fixture
def jobs(server: Server, service: Service) -> Service:
    """A db of the test's own with the route `hook`; the server may log no fault."""
    return service


@pytest.fixture(scope="module")
async def unchanged(api: httpx.AsyncClient) -> AsyncIterator[Service]:
    """A db with the route `hook` and the job `waiting`, which must be all that it has in the end."""
    service = Service(api, f"db-{new_id()[:12]}")
    await service.add_route("http://127.0.0.1:9/")
    await service.create(3600, job_id=WAITING, meta="kept")
    before = await everything(service)
    yield service
    assert await everything(service) == before


async def everything(service: Service) -> list[Any]:
    """Return what the tests' names are answered with: those that are there, and those that may not come to be."""
    routes = [f"/route/{service.db}/{path}" for path in ("hook", "hook/secret", "r")]
    jobs = [f"{service.jobs}/{job_id}" for job_id in (WAITING, "x", "new")]
    return [(await service.api.get(path)).json() for path in routes + jobs]


@pytest.fixture
def refusing(server: Server, unchanged: Service) -> Service:
    """A db that is shared by tests whose requests are all refused; the server may log no fault."""
    return unchanged

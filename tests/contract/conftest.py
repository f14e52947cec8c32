"""The API as a process of its own: what HTTP servers do with odd bytes is part of the contract."""

import os
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from msgspec.structs import replace

from devstack import children
from devstack.parts import Part, running
from devstack.ports import free_port
from devstack.temporal import Temporal
from tests.contract.server import Server
from tests.support.service import Service
from timemachine.settings import Settings


@pytest.fixture(scope="session")
async def api_process(
    settings: Settings, temporal: Temporal, client: object, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    port, log = free_port(), tmp_path_factory.mktemp("api") / "api.log"
    server = Server(port, log)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("TIMEMACHINE_", "TEMPORAL_"))} | {
        "TEMPORAL_ADDRESS": temporal.address,
        "TIMEMACHINE_ALLOW_PRIVATE_TARGETS": "true",
        "TIMEMACHINE_DEFAULT_SCHEME": settings.default_scheme,
        "TIMEMACHINE_HTTP_PORT": str(port),
        "TIMEMACHINE_POSTGRES_DSN": settings.postgres_dsn or "",
        "TIMEMACHINE_SECRET_KEYS": settings.secret_keys or "",
        "TIMEMACHINE_TASK_QUEUE": settings.task_queue,
    }
    program = replace(children.api(children.Commands(), env, settings), log=log)
    async with running(Part(program, children.answers_ready(server.url))):
        yield server
    assert server.faults() == ""


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
    """A db with the route `hook`, in which no test may make the server log a fault."""
    return service

"""The real things, started once: Postgres, a Temporal server, the API, a worker, a receiver."""

import asyncio
import logging
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import httpx
import pytest
from litestar import Litestar
from msgspec.structs import replace
from temporalio.client import Client

from activities.events import EventSender
from api.app import create_app
from devstack.cluster import MAX_CONNECTIONS
from devstack.postgres import Postgres, embedded_postgres
from devstack.temporal import Temporal, embedded_temporal
from devstack.temporal_cli import find_temporal_cli
from devstack.temporal_cluster import ONE_PROCESS, TemporalCluster, temporal_cluster
from devstack.temporal_server import find_temporal_server
from tests.support.collector import Collector, collecting
from tests.support.leaks import LogWatch, leaks_in
from tests.support.ledger import AnotherWorker
from tests.support.receiver import Receiver, receiving
from tests.support.server_logs import ends_of_logs
from tests.support.service import Service
from tests.support.settings import service_settings
from tests.support.spans import Spans, recording
from timemachine.postgres.event_store import EventStore
from timemachine.postgres.migrate import migrate
from timemachine.postgres.pool import Pool, open_pool
from timemachine.settings import Settings
from timemachine.temporal.client import connect
from timemachine.temporal.registered_attributes import ensure_search_attributes
from timemachine.webhooks.client import WebhookClient
from worker import bulk_activities, create_bulk_worker, create_worker

CLI_SETTING = "TIMEMACHINE_TEMPORAL_CLI"

TOGETHER = ("tests/contract/", "tests/e2e/", "tests/cluster/")
"""Folders whose tests run in one process each, as they share programs that are started once in a process."""

FIRST = (*TOGETHER, "tests/integration/test_cancel_many.py", "tests/integration/test_operations.py")
"""What takes longest, so that no process is left with it in the end. Half of it is busy, and half of it waits."""

GIVEN_POSTGRES, GIVEN_TEMPORAL = "TESTS_POSTGRES_DSN", "TESTS_TEMPORAL_ADDRESS"
"""Names of environment variables: the servers of the process that runs a test in one of its own."""

NEEDED_APART = ("_no_settings_from_outside", "settings", "temporal")
"""Fixtures of the process that runs a test in one of its own."""

ONE_PARTITION = {"matching.numTaskqueueReadPartitions": "1", "matching.numTaskqueueWritePartitions": "1"}
"""For the hundreds of task queues of the tests. The stacks that they start have Temporal's default: four for each."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cluster",
        action="store_true",
        help="run the tests on Temporal's own server and Postgres, and the whole service as `make cluster` does",
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what the servers of a run are not for: the tests of the dev server, or those of a cluster."""
    left_out = "tests/integration/devstack" if config.getoption("--cluster") else "tests/cluster"
    return True if collection_path == config.rootpath / left_out else None


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run what measures a whole process in one of its own, beside tests that leave something in this one.

    A job of theirs that is tried again is counted, too. And where a thread of Temporal's SDK enters Python 3.11 while
    `tracemalloc` is being started or stopped, it may crash.
    """
    if not _is_run_apart(pyfuncitem):
        return None
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    for server in pyfuncitem.funcargs.values():
        if isinstance(server, Settings):
            env[GIVEN_POSTGRES] = server.postgres_dsn or ""
        elif isinstance(server, Temporal | TemporalCluster):
            env[GIVEN_TEMPORAL] = server.address
    servers = ("--cluster",) if pyfuncitem.config.getoption("--cluster") else ()
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *servers, pyfuncitem.nodeid)
    ended = subprocess.run(command, cwd=pyfuncitem.config.rootpath, env=env, capture_output=True, check=False)
    assert ended.returncode == 0, (ended.stdout + ended.stderr).decode()
    if b"1 skipped" in ended.stdout:
        pytest.skip("as it does in a process of its own")
    assert b"1 passed" in ended.stdout, ended.stdout.decode()
    return True


def _is_run_apart(item: pytest.Item) -> bool:
    return "PYTEST_XDIST_WORKER" in os.environ and item.get_closest_marker("own_process") is not None


_LOG_WATCH = pytest.StashKey[LogWatch]()


def pytest_configure(config: pytest.Config) -> None:
    """Have each line of the programs' logs looked into, from the level on at which they write."""
    watch = config.stash[_LOG_WATCH] = LogWatch()
    logging.getLogger().addHandler(watch)
    logging.getLogger().setLevel(logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # the tests' own client, which tells what it was given


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test during which something secret was logged or printed, by this process or by those that it started."""
    report = yield
    printed = [leak for _, text in report.sections for leak in leaks_in(text)]
    if report.failed and isinstance(item, pytest.Function):
        report.sections += ends_of_logs(item.funcargs)
    if report.when == "teardown" and (leaks := {*item.config.stash[_LOG_WATCH].taken(), *printed}):
        secret = f"logged or printed, and secret: {sorted(leaks)}"
        report.outcome, report.longrepr = "failed", "\n".join(filter(None, [report.longreprtext, secret]))
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Give the processes of pytest-xdist time to stop their servers after a Ctrl-C, which would go on running."""
    from xdist.workermanage import NodeManager

    NodeManager.EXIT_TIMEOUT = 60


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its folder's name, so that `-m "not e2e"` leaves those out, and put all into their order.

    Of what is run in a process of its own, only the servers are started here. A worker that was would stand still.
    """
    for item in items:
        item.add_marker(item.path.relative_to(Path(__file__).parent).parts[0])
        if isinstance(item, pytest.Function) and _is_run_apart(item):
            item.fixturenames = [name for name in item.fixturenames if name in NEEDED_APART]
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Have each file's tests run in one process, and those of whole folders that share what they start."""
    from xdist.scheduler import LoadFileScheduling

    class ByFileOrFolder(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return next((folder for folder in TOGETHER if file.startswith(folder)), file)

    return ByFileOrFolder(config, log)


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> Iterator[None]:
    """Keep the developer's own Temporal, settings and traces out of the tests, but for where Temporal's program is."""
    with pytest.MonkeyPatch.context() as env:
        for name in list(os.environ):
            if name.startswith(("OTEL_", "TEMPORAL_", "TIMEMACHINE_")) and name != CLI_SETTING:
                env.delenv(name)
        yield


@asynccontextmanager
async def in_one_task(resource: AbstractAsyncContextManager[object]) -> AsyncIterator[None]:
    """Enter and leave a context in one task, which a fixture's set-up and tear-down are not."""
    entered, left = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with resource:
            entered.set()
            await left.wait()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(hold())
        await entered.wait()
        yield
        left.set()


@asynccontextmanager
async def serving(app: Litestar) -> AsyncIterator[httpx.AsyncClient]:
    """Run the app in the tests' own loop, which Litestar's test client does not, and return a client of it."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)  # type: ignore[arg-type]  # scopes typed apart
    async with (
        in_one_task(app.lifespan()),
        httpx.AsyncClient(transport=transport, base_url="http://api", timeout=30) as http,
    ):
        yield http


@asynccontextmanager
async def working(client: Client, pool: Pool, webhooks: WebhookClient, settings: Settings) -> AsyncIterator[None]:
    """Run workers of deliveries, of bulk work and of events, in the tests' own loop."""
    bulk = bulk_activities(client, pool, settings)
    async with (
        create_worker(client, pool, webhooks, settings, bulk=bulk),
        create_bulk_worker(client, bulk, settings),
    ):
        events = asyncio.create_task(EventSender(client, EventStore(pool), settings).watch())
        try:
            yield
        finally:
            events.cancel()


@asynccontextmanager
async def delivering(client: Client, settings: Settings) -> AsyncIterator[None]:
    """Run a worker of deliveries alone, in the tests' own loop."""
    async with (
        open_pool(settings) as pool,
        WebhookClient(timeout=5, max_connections=9, address_guard=settings.address_guard) as webhooks,
        create_worker(client, pool, webhooks, settings),
    ):
        yield


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
async def postgres(data_folder: Path) -> AsyncIterator[Postgres | None]:
    """Our own Postgres; none where one is given."""
    if GIVEN_POSTGRES in os.environ:
        yield None
        return
    async with embedded_postgres(data_folder, max_connections=MAX_CONNECTIONS) as postgres:
        yield postgres


@pytest.fixture(scope="session")
def postgres_dsn(postgres: Postgres | None) -> str:
    return postgres.dsn if postgres else os.environ[GIVEN_POSTGRES]


@pytest.fixture(scope="session")
async def temporal(
    data_folder: Path, postgres: Postgres | None, pytestconfig: pytest.Config
) -> AsyncIterator[Temporal | TemporalCluster]:
    """A Temporal that is set up: readiness asks for the search attributes, also where a test has no client."""
    if not postgres:
        yield TemporalCluster(address=os.environ[GIVEN_TEMPORAL], parts={})
        return
    on_postgres = pytestconfig.getoption("--cluster")
    async with _temporal_on_postgres(data_folder, postgres) if on_postgres else _dev_server(data_folder) as temporal:
        await ensure_search_attributes(await _connected(temporal))
        yield temporal


@asynccontextmanager
async def _dev_server(folder: Path) -> AsyncIterator[Temporal]:
    cli = await find_temporal_cli(os.environ.get(CLI_SETTING), os.environ)
    async with embedded_temporal(cli, folder, dynamic_config=ONE_PARTITION) as temporal:
        yield temporal


@asynccontextmanager
async def _temporal_on_postgres(folder: Path, postgres: Postgres) -> AsyncIterator[TemporalCluster]:
    """Run Temporal's own server on the tests' Postgres, all of its services in one process."""
    cli = await find_temporal_cli(os.environ.get(CLI_SETTING), os.environ)
    async with temporal_cluster(
        await find_temporal_server(os.environ),
        cli,
        postgres,
        folder,
        env=os.environ,
        layout=ONE_PROCESS,
        namespace="default",
        shards=16,
        more_config="".join(f"{name}:\n  - value: {value}\n" for name, value in ONE_PARTITION.items()),
    ) as temporal:
        yield temporal


async def _connected(temporal: Temporal | TemporalCluster) -> Client:
    """Connect to nothing but a server of the tests."""
    with pytest.MonkeyPatch.context() as env:
        env.setenv("TEMPORAL_ADDRESS", temporal.address)
        return await connect()


@pytest.fixture(scope="session")
async def settings(postgres_dsn: str) -> Settings:
    settings = service_settings(
        postgres_dsn=postgres_dsn,
        task_queue="tests",
        default_scheme="http",
        allow_private_targets=True,
        # Some tests are hundreds of clients at once.
        max_requests_in_flight=1000,
        # A busy machine is no failure.
        request_timeout=10,
    )
    await migrate(settings)
    return settings


@pytest.fixture(scope="session")
async def client(temporal: Temporal) -> Client:
    return await _connected(temporal)


@pytest.fixture(scope="session")
async def api(settings: Settings, temporal: Temporal, client: Client) -> AsyncIterator[httpx.AsyncClient]:
    """The API, in the tests' own loop; for what needs no worker."""
    with pytest.MonkeyPatch.context() as env:
        env.setenv("TEMPORAL_ADDRESS", temporal.address)
        async with serving(create_app(settings)) as http:
            yield http


@pytest.fixture(scope="session")
async def impatient_api(settings: Settings, temporal: Temporal, client: Client) -> AsyncIterator[httpx.AsyncClient]:
    """An API that soon gives up what it waits for."""
    with pytest.MonkeyPatch.context() as env:
        env.setenv("TEMPORAL_ADDRESS", temporal.address)
        async with serving(create_app(replace(settings, request_timeout=2))) as http:
            yield http


@pytest.fixture(scope="session")
async def worker(settings: Settings, client: Client) -> AsyncIterator[None]:
    """A worker, in the tests' own loop."""
    async with (
        open_pool(settings) as pool,
        WebhookClient(
            timeout=settings.delivery_timeout, max_connections=100, address_guard=settings.address_guard
        ) as webhooks,
        working(client, pool, webhooks, settings),
    ):
        yield


@pytest.fixture
async def alone(
    settings: Settings, temporal: Temporal, client: Client, db: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Service, Settings]]:
    """A service whose task queue no worker serves."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal.address)
    own = replace(settings, task_queue=f"alone-{uuid.uuid4().hex}", request_timeout=4)
    async with serving(create_app(own)) as api:
        service = Service(api, db)
        await service.add_route(receiver.url)
        yield service, own


@pytest.fixture
async def another(settings: Settings) -> AsyncIterator[AnotherWorker]:
    """Another worker than the one that runs, whose part the test plays."""
    async with open_pool(settings) as pool:
        yield AnotherWorker(pool, settings)


@pytest.fixture
def spans() -> Iterator[Spans]:
    """What is recorded of the API and of the worker, which run in the tests' own process, with traces on."""
    with recording() as spans:
        yield spans


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Where programs in processes of their own may export their spans to."""
    with collecting() as collector:
        yield collector


@pytest.fixture
def db() -> str:
    """A db of the test's own."""
    return f"db-{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def receiver(db: str) -> AsyncIterator[Receiver]:
    """A receiver of what comes from the test's own db, and from those whose names begin so."""
    async with receiving(db) as receiver:
        yield receiver


@pytest.fixture
async def service(api: httpx.AsyncClient, worker: None, receiver: Receiver, db: str) -> AsyncIterator[Service]:
    """The whole service with one route to the receiver, named `hook`. All that it sends must be signed."""
    service = Service(api, db)
    await service.add_route(receiver.url)
    yield service
    service.verify_all(receiver)


@pytest.fixture
def cut(service: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
    """The service, whose jobs go on as new runs after a change or two, or after two looks of a held job."""
    monkeypatch.setattr("timemachine.domain.jobs.HISTORY_LIMIT", 20)
    return service


@pytest.fixture
def impatient(service: Service, impatient_api: httpx.AsyncClient) -> Service:
    """The same db through an API that soon gives up what it waits for."""
    return Service(impatient_api, service.db)

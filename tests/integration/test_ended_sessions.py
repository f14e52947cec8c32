"""Postgres ends sessions, refuses, or is read-only: a client gets 503 and none of Postgres' own words, never 500."""

import asyncio
import collections
import random
import secrets
from collections.abc import AsyncIterator, Callable
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest
from msgspec.structs import replace

from api.app import create_app
from devstack.postgres import Postgres
from devstack.temporal import Temporal
from tests.conftest import serving
from tests.support.settings import service_settings
from timemachine.domain.errors import UnavailableError
from timemachine.postgres.migrate import migrate
from timemachine.postgres.pool import connection, open_pool
from timemachine.settings import Settings

AWAY = {"error": "Postgres does not answer", "code": "E015"}
NOT_READY = {"error": "Temporal answers; Postgres does not answer", "code": "E015"}
ROUTE = {"id": "r", "type": "REST", "webhook_url": "example.org"}


pytestmark = pytest.mark.usefixtures("client")  # which prepares Temporal, so that only Postgres is in trouble


@pytest.fixture
async def admin(postgres: Postgres) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(postgres.dsn)
    yield connection
    await connection.close()


@pytest.fixture
async def own(postgres: Postgres, admin: asyncpg.Connection) -> Settings:
    """The settings of a database of the test's own."""
    name = f"own_{secrets.token_hex(4)}"
    await admin.execute(f"CREATE DATABASE {name}")
    settings = service_settings(postgres_dsn=with_database(postgres.dsn, name))
    await migrate(settings)
    return settings


def with_database(dsn: str, name: str) -> str:
    return urlsplit(dsn)._replace(path=f"/{name}").geturl()


def database(settings: Settings) -> str:
    return urlsplit(settings.postgres_dsn or "").path.strip("/")


@pytest.fixture
async def api(own: Settings, temporal: Temporal, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal.address)
    async with serving(create_app(own)) as http:
        assert (await http.post("/route/d", json=ROUTE)).status_code == 200
        yield http


async def test_sessions_that_are_ended_under_load_are_503_and_never_500(
    api: httpx.AsyncClient, own: Settings, admin: asyncpg.Connection
) -> None:
    answers: collections.Counter[tuple[int, str]] = collections.Counter()
    ended = 0

    async def ask(request: Callable[[], object]) -> None:
        while ended < 300:
            answer = await request()  # type: ignore[misc]
            answers[answer.status_code, answer.json().get("code", "")] += 1

    requests = [
        lambda: api.get("/route/d/r"),
        lambda: api.get("/route/d/r/secret"),
        lambda: api.post("/route/d", json=ROUTE),
        lambda: api.put("/route/d/r", json=ROUTE),
        lambda: api.post("/route/d/r/secret/rotate", json={"overlap": 0}),
        lambda: api.get("/route/d/r/attempts"),
        lambda: api.get("/readyz"),
    ]
    clients = [asyncio.create_task(ask(request)) for request in requests * 3]
    async with asyncio.timeout(50):
        while ended < 300:
            ended += await admin.fetchval(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = $1 AND random() < 0.5",
                database(own),
            )
            await asyncio.sleep(random.uniform(0, 0.03))
        await asyncio.gather(*clients)

    assert answers.keys() == {(200, ""), (503, "E015")}, answers
    assert (await api.get("/route/d/r")).status_code == 200


@pytest.mark.parametrize(
    "refuse",
    [
        "ALTER ROLE {role} NOLOGIN",
        "ALTER ROLE {role} CONNECTION LIMIT 0",
        "ALTER DATABASE {database} RENAME TO {database}_gone",
        "ALTER ROLE {role} PASSWORD 'changed'",
    ],
)
async def test_none_of_the_words_of_postgres_is_shown(
    own: Settings,
    admin: asyncpg.Connection,
    temporal: Temporal,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    refuse: str,
) -> None:
    role = f"role_{secrets.token_hex(4)}"
    await admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    server = urlsplit(own.postgres_dsn or "")
    settings = replace(own, postgres_dsn=server._replace(netloc=f"{role}:secret@127.0.0.1:{server.port}").geturl())
    await admin.execute(refuse.format(role=role, database=database(own)))
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal.address)

    async with serving(create_app(settings)) as api:
        for path, error in (("/route/d/r", AWAY), ("/readyz", NOT_READY)):
            answer = await api.get(path)
            assert (answer.status_code, answer.json()) == (503, error)

    reasons = [vars(record).get("reason", "") for record in caplog.records if record.name == "timemachine.outages"]
    assert any(role in reason or database(own) in reason for reason in reasons)


@pytest.mark.parametrize(
    "sqlstate",
    [
        *("57P01", "58P01", "25006", "08P01", "53300", "42501", "3F000", "42704", "42883", "42P01", "55000", "55P03"),
        *("0A000", "F0000", "72000", "XX000", "XX001", "XC000", "08P02"),
    ],
)
async def test_what_a_server_or_a_pooler_in_trouble_says_is_an_outage(own: Settings, sqlstate: str) -> None:
    async with open_pool(own) as pool:
        with pytest.raises(UnavailableError):
            async with connection(pool) as postgres:
                await postgres.execute(f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{sqlstate}'; END $$")


async def test_a_faulty_statement_is_no_outage(own: Settings) -> None:
    async with open_pool(own) as pool:
        with pytest.raises(asyncpg.PostgresSyntaxError):
            async with connection(pool) as postgres:
                await postgres.execute("SELEC 1")


async def test_an_api_without_its_tables_is_not_ready(
    postgres: Postgres, admin: asyncpg.Connection, temporal: Temporal, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"empty_{secrets.token_hex(4)}"
    await admin.execute(f"CREATE DATABASE {name}")
    settings = service_settings(postgres_dsn=with_database(postgres.dsn, name))
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal.address)

    async with serving(create_app(settings)) as api:
        ready = await api.get("/readyz")
        assert (ready.status_code, ready.json()) == (503, NOT_READY)
        for path in ("/route/d/r", "/route/d/r/attempts", "/job/d/c/j/attempts"):
            answer = await api.get(path)
            assert (answer.status_code, answer.json()) == (503, AWAY), path

        await migrate(settings)
        assert (await api.get("/readyz")).status_code == 200


async def test_what_is_committed_is_on_the_disk_whatever_the_servers_default(
    own: Settings, admin: asyncpg.Connection
) -> None:
    await admin.execute(f"ALTER DATABASE {database(own)} SET synchronous_commit = off")

    async with open_pool(own) as pool, connection(pool) as postgres:
        assert await postgres.fetchval("SHOW synchronous_commit") == "on"


async def test_what_is_connected_to_a_server_that_is_read_only_is_not_kept(
    own: Settings, admin: asyncpg.Connection
) -> None:
    """As after a fail-over: new connections reach the primary, those of before are still with the other."""
    write = "UPDATE routes SET updated_at = now()"
    await admin.execute(f"ALTER DATABASE {database(own)} SET default_transaction_read_only = on")
    async with open_pool(own) as pool:
        async with connection(pool) as one, connection(pool) as two:
            await one.fetch("SELECT 1")
            await two.fetch("SELECT 1")
        await admin.execute(f"ALTER DATABASE {database(own)} RESET default_transaction_read_only")

        with pytest.raises(UnavailableError):
            async with connection(pool) as postgres:
                await postgres.execute(write)

        for _ in range(3):
            async with connection(pool) as postgres:
                await postgres.execute(write)

"""Postgres behind PgBouncer in transaction mode: each transaction may have another session."""

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
from msgspec.structs import replace

from api.app import create_app
from devstack.parts import Part, Program, running
from devstack.ports import free_port
from devstack.postgres import Postgres, as_unprivileged
from devstack.temporal import Temporal
from tests.conftest import serving
from tests.support.ledger import log_attempt, read_target, taken
from tests.support.settings import service_settings
from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.errors import UnavailableError
from timemachine.domain.outcomes import LedgerRow, RowState
from timemachine.domain.routes import RestRoute
from timemachine.postgres.attempt_log import Attempt, AttemptLog
from timemachine.postgres.delivery_ledger import Begun, DeliveryLedger
from timemachine.postgres.migrate import migrate, shipped_migrations
from timemachine.postgres.pool import open_pool, ping
from timemachine.postgres.route_store import RouteStore
from timemachine.settings import Settings
from timemachine.vault import Vault

PGBOUNCER = shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin")

pytestmark = pytest.mark.skipif(
    PGBOUNCER is None, reason="no pgbouncer here (Debian: apt-get install pgbouncer; macOS: brew install pgbouncer)"
)

SESSIONS = 3
"""Sessions with Postgres that all clients share; far fewer than there are clients."""

CONFIGURATION = """
[databases]
* = host={host} port={port} user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {sessions}
max_client_conn = 500
"""


@pytest.fixture(scope="module")
async def pooled(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Settings]:
    """The settings of a database of the tests' own, behind a PgBouncer with nothing but what it has by default."""
    folder, name, port = tmp_path_factory.mktemp("pgbouncer"), f"pooled_{secrets.token_hex(4)}", free_port()
    admin = await asyncpg.connect(postgres.dsn)
    await admin.execute(f"CREATE DATABASE {name}")
    await admin.close()
    async with running(_pgbouncer(folder, port, postgres)):
        yield service_settings(
            postgres_dsn=f"postgresql://anybody@127.0.0.1:{port}/{name}",
            postgres_transaction_pooling=True,
        )


def _pgbouncer(folder: Path, port: int, postgres: Postgres) -> Part:
    server, configuration = urlsplit(postgres.dsn), folder / "pgbouncer.ini"
    configuration.write_text(
        CONFIGURATION.format(
            host=server.hostname,
            port=server.port,
            user=server.username,
            password=server.password,
            listen_port=port,
            sessions=SESSIONS,
        )
    )
    argv = (*as_unprivileged(folder), str(PGBOUNCER), str(configuration))
    return Part(Program(name="PgBouncer", argv=argv, env={}, log=folder / "pgbouncer.log"), lambda: _accepts(port))


async def _accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def test_migrations_at_once_are_applied_once(pooled: Settings) -> None:
    applied = await asyncio.gather(*(migrate(pooled) for _ in range(5)))

    assert sorted(applied) == [*([[]] * 4), [migration.name for migration in shipped_migrations()]]
    assert await migrate(pooled) == []


async def test_all_that_is_asked_of_postgres_works_with_many_clients_and_few_sessions(pooled: Settings) -> None:
    await migrate(pooled)
    async with AsyncExitStack() as opened:
        pools = [await opened.enter_async_context(open_pool(pooled)) for _ in range(4)]

        await asyncio.gather(*(_use(pools[client % 4], pooled, f"client-{client}") for client in range(24)))


async def _use(pool: asyncpg.Pool, settings: Settings, db: str) -> None:
    """Do what a process does, and demand that it gets what is its own."""
    store, log = RouteStore(pool, Vault(settings)), AttemptLog(pool)
    for turn in range(5):
        route = RestRoute(id=f"r{turn}", webhook_url=f"example.org/{db}/{turn}")
        await store.add(db, route, {"x-client": db})
        await store.replace(db, route, {"x-client": f"{db}-{turn}"})
        await store.rotate(db, route.id, timedelta(hours=1))
        target = await read_target(pool, store, db, route.id)
        assert (target.route, target.headers) == (route, {"x-client": f"{db}-{turn}"})
        assert len(target.secrets) == len(await store.secrets(db, route.id)) == 2
        await _decide(DeliveryLedger(pool, store, attempt_time=1), db, route.id, f"{db}-{turn}")
        async with store.in_flight_slot(db, route.id, f"{db}-{turn}", 1):
            await ping(pool)
        await store.note_failure(db, route.id, disable_after=timedelta(hours=1))
        await log_attempt(pool, _attempt(db, turn))
        assert await log.last_errors(db, [("c", f"job-{turn}", f"{db}-{turn}")]) == {f"{db}-{turn}": f"{db} {turn}"}
        assert [row.db for row in (await log.of_route(db, route.id, limit=5)).attempts] == [db]
        await store.remove(db, route.id)


async def _decide(ledger: DeliveryLedger, db: str, route: str, run: str) -> None:
    claim = uuid4()
    assert isinstance(await ledger.begin(run, db, route, claim), Begun)
    assert isinstance(await ledger.begin(run, db, route, uuid4()), LedgerRow)
    assert (await ledger.cancel(run, due=datetime.now(UTC))).state is RowState.CANCELLING
    ended = await ledger.end(run, claim, taken())
    assert ended
    assert ended.state is RowState.TAKEN


def _attempt(db: str, turn: int) -> Attempt:
    return Attempt(
        db=db,
        collection="c",
        job_id=f"job-{turn}",
        route_id=f"r{turn}",
        run_id=f"{db}-{turn}",
        message_id="msg",
        attempt=1,
        started_at=datetime.now(UTC),
        duration_ms=1,
        status=None,
        kind=AttemptKind.CONNECT,
        error=f"{db} {turn}",
        worker="w",
    )


async def test_the_api_is_ready_and_serves(
    pooled: Settings, temporal: Temporal, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate(pooled)
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal.address)
    async with serving(create_app(pooled)) as api:
        assert (await api.get("/readyz")).status_code == 200
        for number in range(20):
            route = {"id": f"api-{number}", "type": "REST", "webhook_url": "example.org"}
            assert (await api.post("/route/api", json=route)).status_code == 200
            assert (await api.get(f"/route/api/api-{number}")).json()["webhook_url"] == "example.org"


async def test_without_the_setting_it_is_not_ready(pooled: Settings) -> None:
    await migrate(pooled)
    async with open_pool(replace(pooled, postgres_transaction_pooling=False)) as pool:
        with pytest.raises(UnavailableError):
            await ping(pool)


async def test_a_statement_that_takes_too_long_is_given_up_and_its_session_is_free_again(pooled: Settings) -> None:
    """Of the pooler's few sessions none is lost to those who do not wait any more."""
    await migrate(pooled)
    async with open_pool(pooled) as pool:
        for _ in range(SESSIONS + 1):
            with pytest.raises(TimeoutError):
                await pool.execute("SELECT pg_sleep(60)", timeout=0.2)

        await ping(pool)

"""The embedded Postgres: what is committed stays, through a kill -9."""

import asyncio
import os
import signal
from pathlib import Path

import asyncpg
import psutil
import pytest

from devstack.postgres import embedded_postgres
from timemachine.domain.errors import LocalStackError
from timemachine.postgres.migrate import migrate
from timemachine.settings import Settings


@pytest.fixture(scope="module")
async def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Postgres that has run."""
    folder = tmp_path_factory.mktemp("made")
    async with embedded_postgres(folder):
        return folder


async def test_a_kill_loses_nothing_that_was_committed(tmp_path: Path) -> None:
    async with embedded_postgres(tmp_path) as postgres:
        connection = await asyncpg.connect(postgres.dsn)
        await connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 10000) AS number")
        os.kill(postgres.part.pid, signal.SIGKILL)
        # Open on purpose until now: the server's child for it holds the memory that the next server wants.
        await postgres.part.restart()
        connection.terminate()
        assert await _count(postgres.dsn) == 10_000


async def test_data_stays_between_runs(tmp_path: Path) -> None:
    async with embedded_postgres(tmp_path) as postgres:
        connection = await asyncpg.connect(postgres.dsn)
        await connection.execute("CREATE TABLE kept AS SELECT 1 AS number")
        await connection.close()
        pid = postgres.part.pid
    assert not psutil.pid_exists(pid)
    async with embedded_postgres(tmp_path) as postgres:
        assert await _count(postgres.dsn) == 1


async def test_it_flushes_to_disk_and_wants_the_password(tmp_path: Path) -> None:
    async with embedded_postgres(tmp_path) as postgres:
        connection = await asyncpg.connect(postgres.dsn)
        assert await connection.fetchval("SHOW fsync") == "on"
        assert await connection.fetchval("SHOW listen_addresses") == "127.0.0.1"
        await connection.close()
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(postgres.dsn, password="wrong")
    assert (tmp_path / "postgres.password").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "variables",
    [
        {"PGSSLMODE": "require"},
        {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": "/nowhere", "PGSSLNEGOTIATION": "direct"},
        {"PGTARGETSESSIONATTRS": "standby"},
        {"PGGSSLIB": "none"},
        {"PGHOST": "nowhere", "PGPORT": "1", "PGUSER": "x", "PGPASSWORD": "x", "PGDATABASE": "x", "PGSERVICE": "x"},
    ],
    ids=str,
)
async def test_what_the_environment_says_of_another_postgres_is_not_read(
    made: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    async with asyncio.timeout(40), embedded_postgres(made) as postgres:
        await migrate(Settings(postgres_dsn=postgres.dsn))


async def test_an_interrupted_first_run_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "postgres.new" / "base").mkdir(parents=True)
    async with embedded_postgres(tmp_path) as postgres:
        assert postgres.part.pid
    assert not (tmp_path / "postgres.new").exists()


async def test_a_pid_that_a_stranger_has_by_now_is_no_obstacle(tmp_path: Path) -> None:
    async with embedded_postgres(tmp_path) as postgres:
        lock = tmp_path / "postgres" / "postmaster.pid"
        stale = lock.read_text().replace(str(postgres.part.pid), str(os.getppid()))
    lock.write_text(stale)
    async with embedded_postgres(tmp_path) as postgres:
        assert lock.read_text().startswith(f"{postgres.part.pid}\n")


async def test_a_failure_to_start_shows_the_end_of_the_log(tmp_path: Path) -> None:
    async with embedded_postgres(tmp_path):
        pass
    (tmp_path / "postgres" / "PG_VERSION").write_text("9\n")
    with pytest.raises(LocalStackError, match=r"Postgres ended with status 1 (?s:.*)not compatible with this version"):
        async with embedded_postgres(tmp_path):
            pass


async def _count(dsn: str) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM kept"))
    finally:
        await connection.close()

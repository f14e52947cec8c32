"""Migrations on a real Postgres, each test in a database of its own."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest
from msgspec.structs import replace

from timemachine.errors import MigrationError, SettingsError, UnavailableError
from timemachine.local.postgres import Postgres
from timemachine.postgres import Migration, migrate, open_pool, shipped_migrations
from timemachine.settings import Settings

FIRST = Migration("0001_first.sql", "CREATE TABLE first (n int);")
SECOND = Migration("0002_second.sql", "CREATE TABLE second (n int); INSERT INTO second VALUES (1);")
BROKEN = Migration("0003_broken.sql", "CREATE TABLE third (n int); SELECT no_such_function();")


@pytest.fixture
async def empty(postgres: Postgres) -> AsyncIterator[Settings]:
    name = f"m{uuid.uuid4().hex}"
    admin = await asyncpg.connect(postgres.dsn)
    await admin.execute(f"CREATE DATABASE {name}")
    base, _, _ = postgres.dsn.rpartition("/")
    yield Settings(postgres_dsn=f"{base}/{name}")
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


async def tables(settings: Settings) -> set[str]:
    connection = await asyncpg.connect(settings.postgres_dsn)
    rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    await connection.close()
    return {row["tablename"] for row in rows}


async def test_what_we_ship_applies_once(empty: Settings) -> None:
    names = [migration.name for migration in shipped_migrations()]

    assert await migrate(empty) == names
    assert await migrate(empty) == []
    assert {"routes", "migrations"} <= await tables(empty)


async def test_only_what_is_missing_is_applied(empty: Settings) -> None:
    assert await migrate(empty, [FIRST]) == [FIRST.name]
    assert await migrate(empty, [FIRST, SECOND]) == [SECOND.name]


async def test_many_at_once_apply_it_once(empty: Settings) -> None:
    applied = await asyncio.gather(*(migrate(empty, [FIRST, SECOND]) for _ in range(8)))

    assert sorted(map(len, applied)) == [0] * 7 + [2]


async def test_a_migration_changed_after_it_was_applied_is_refused(empty: Settings) -> None:
    await migrate(empty, [FIRST])

    with pytest.raises(MigrationError, match=r"0001_first\.sql was changed"):
        await migrate(empty, [Migration(FIRST.name, FIRST.sql + " -- changed"), SECOND])
    assert "second" not in await tables(empty)


async def test_a_database_of_a_newer_version_is_refused(empty: Settings) -> None:
    await migrate(empty, [FIRST, SECOND])

    with pytest.raises(MigrationError, match=r"0002_second\.sql, which this version does not know"):
        await migrate(empty, [FIRST])


async def test_all_or_none_apply(empty: Settings) -> None:
    with pytest.raises(MigrationError, match="no_such_function"):
        await migrate(empty, [FIRST, BROKEN])

    assert await tables(empty) == set()


async def test_a_wrong_password_is_told(empty: Settings) -> None:
    assert empty.postgres_dsn
    before, _, after = empty.postgres_dsn.partition("@")
    with pytest.raises(MigrationError, match="password authentication failed"):
        await migrate(replace(empty, postgres_dsn=f"{before}x@{after}"))


async def test_a_database_that_does_not_answer_is_told() -> None:
    with pytest.raises(UnavailableError):
        await migrate(Settings(postgres_dsn="postgresql://nobody@127.0.0.1:1/nothing"))


@pytest.mark.parametrize("dsn", [None, "", "mysql://somewhere"])
async def test_a_dsn_that_is_none_is_told(dsn: str | None) -> None:
    with pytest.raises(SettingsError, match="TIMEMACHINE_POSTGRES_DSN"):
        await migrate(Settings(postgres_dsn=dsn))
    with pytest.raises(SettingsError, match="TIMEMACHINE_POSTGRES_DSN"):
        async with open_pool(Settings(postgres_dsn=dsn)):
            pass

"""Migrations on a real Postgres, each test in a database of its own."""

import asyncio
import re
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import asyncpg
import pytest
from msgspec.structs import replace

from devstack.postgres import Postgres
from tests.support.own_database import own_database
from tests.support.waiting import eventually
from timemachine.domain.errors import MigrationError, SettingsError, UnavailableError
from timemachine.postgres.migrate import Migration, Part, migrate, shipped_migrations
from timemachine.postgres.pool import open_pool
from timemachine.settings import Settings

FIRST = Migration("0001_first.sql", "CREATE TABLE first (n int);")
SECOND = Migration("0002_second.sql", "CREATE TABLE second (n int); INSERT INTO second VALUES (1);")
BROKEN = Migration("0003_broken.sql", "CREATE TABLE third (n int); SELECT no_such_function();")


INDEX = Migration(
    "0002_index.sql", "-- no transaction\nCREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS one ON first (n)"
)
REMOVAL = Migration("0003_removal.sql", "-- after\n-- What the programs before this version write.\nDROP TABLE second;")


@pytest.fixture
async def empty(postgres: Postgres) -> AsyncIterator[Settings]:
    async with own_database(Settings(postgres_dsn=postgres.dsn)) as own:
        yield own


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


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(settings.postgres_dsn)
    yield connection
    await connection.close()


async def is_valid(settings: Settings, index: str) -> bool | None:
    async with connected(settings) as postgres:
        valid: bool | None = await postgres.fetchval(
            "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)", index
        )
        return valid


async def test_an_index_is_made_beside_those_who_write(empty: Settings) -> None:
    await migrate(empty, [FIRST])

    assert await migrate(empty, [FIRST, INDEX]) == [INDEX.name]

    assert await is_valid(empty, "one")
    assert await migrate(empty, [FIRST, INDEX]) == []


async def test_what_is_outside_of_a_transaction_applies_in_its_order(empty: Settings) -> None:
    third = Migration("0003_third.sql", "ALTER TABLE first ADD CONSTRAINT one UNIQUE USING INDEX one")

    assert await migrate(empty, [FIRST, INDEX, third]) == [FIRST.name, INDEX.name, third.name]


@pytest.mark.parametrize("exists", ["IF NOT EXISTS ", ""])
async def test_an_index_that_could_not_be_made_is_made_by_the_next_run(empty: Settings, exists: str) -> None:
    index = Migration(INDEX.name, INDEX.sql.replace("IF NOT EXISTS ", exists))
    await migrate(empty, [FIRST])
    async with connected(empty) as postgres:
        await postgres.execute("INSERT INTO first VALUES (1), (1)")
        with pytest.raises(MigrationError, match="one"):
            await migrate(empty, [FIRST, index])
        assert await is_valid(empty, "one") is False
        await postgres.execute("TRUNCATE first")

    assert await migrate(empty, [FIRST, index]) == [index.name]

    assert await is_valid(empty, "one")


async def test_many_at_once_make_an_index_once(empty: Settings) -> None:
    """None of those that wait is waited for by the one that makes it."""
    await migrate(empty, [FIRST])

    applied = await asyncio.gather(*(migrate(empty, [FIRST, INDEX]) for _ in range(8)))

    assert sorted(map(len, applied)) == [0] * 7 + [1]


async def test_a_migration_that_waits_lets_others_write(empty: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as somebody reads a table, it cannot be changed; that everybody waits behind the change is worse."""
    monkeypatch.setattr("timemachine.postgres.migrate.LOCK_TIMEOUT", 0.2)
    monkeypatch.setattr("timemachine.postgres.migrate.LOCK_PAUSE", 0.2)
    await migrate(empty, [FIRST])
    change = Migration("0002_change.sql", "ALTER TABLE first ADD COLUMN m int")
    async with connected(empty) as reader, connected(empty) as writer:
        async with reader.transaction():
            await reader.execute("SELECT * FROM first")
            migrating = asyncio.create_task(migrate(empty, [FIRST, change]))
            for _ in range(20):
                await writer.execute("INSERT INTO first VALUES (1)", timeout=2)
                await asyncio.sleep(0.05)
            assert not migrating.done()

        assert await migrating == [change.name]


async def test_a_table_that_is_held_for_too_long_is_told(empty: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timemachine.postgres.migrate.LOCK_TIMEOUT", 0.1)
    monkeypatch.setattr("timemachine.postgres.migrate.LOCK_PAUSE", 0.1)
    monkeypatch.setattr("timemachine.postgres.migrate.LOCK_TRIES", 2)
    await migrate(empty, [FIRST])
    change = Migration("0002_change.sql", "ALTER TABLE first ADD COLUMN m int")
    async with connected(empty) as reader, reader.transaction():
        await reader.execute("SELECT * FROM first")
        with pytest.raises(MigrationError, match=r"0002_change\.sql .* need a lock that others hold"):
            await migrate(empty, [FIRST, change])


@pytest.mark.parametrize(
    "whose", ["query LIKE 'SELECT pg_sleep%'", "query LIKE 'SET LOCAL%'"], ids=["its own", "its guard"]
)
async def test_a_session_that_is_ended_meanwhile_is_told(empty: Settings, whose: str) -> None:
    """As by a fail-over. What was not applied is applied by the next run."""
    slow = Migration("0002_slow.sql", "SELECT pg_sleep(2)")
    await migrate(empty, [FIRST])
    migrating = asyncio.create_task(migrate(empty, [FIRST, slow]))
    async with connected(empty) as admin:
        await eventually(
            lambda: admin.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE query = $1 AND state = 'active'", slow.sql
            ),
            lambda running: running == 1,
        )
        await admin.execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {whose} AND datname = current_database()"  # noqa: S608 - constants
        )

    with pytest.raises((UnavailableError, MigrationError)):
        await migrating
    assert set(await migrate(empty, [FIRST, slow])) <= {slow.name}


async def test_a_server_that_is_not_the_wanted_one_is_told(empty: Settings) -> None:
    dsn = (empty.postgres_dsn or "").split("?")[0]
    async with connected(empty) as admin:
        await admin.execute(f"ALTER DATABASE {urlsplit(dsn).path[1:]} SET default_transaction_read_only = on")
    with pytest.raises(UnavailableError, match="read_write"):
        await migrate(replace(empty, postgres_dsn=f"{dsn}?target_session_attrs=read-write"))


async def test_what_old_programs_need_is_removed_when_they_are_gone(empty: Settings) -> None:
    await migrate(empty, [FIRST])
    shipped = [FIRST, SECOND, REMOVAL, Migration("0004_next.sql", "CREATE TABLE fourth (n int)")]

    assert await migrate(empty, shipped) == [SECOND.name, "0004_next.sql"]
    assert "second" in await tables(empty)

    assert await migrate(empty, shipped, part=Part.AFTER) == [REMOVAL.name]
    assert "second" not in await tables(empty)
    assert await migrate(empty, shipped) == []


async def test_an_empty_database_has_no_old_programs(empty: Settings) -> None:
    assert await migrate(empty, [FIRST, SECOND, REMOVAL]) == [FIRST.name, SECOND.name, REMOVAL.name]


def test_what_is_shipped_outside_of_a_transaction_can_be_repeated() -> None:
    for migration in shipped_migrations():
        assert migration.in_transaction or re.search("IF (NOT )?EXISTS", migration.sql)
        assert migration.in_transaction or migration.sql.count(";") <= 1


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


async def test_a_database_that_cannot_keep_every_text_is_refused(postgres: Postgres) -> None:
    name = f"m{uuid.uuid4().hex}"
    admin = await asyncpg.connect(postgres.dsn)
    await admin.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    settings = Settings(postgres_dsn=f"{postgres.dsn.rpartition('/')[0]}/{name}")
    try:
        with pytest.raises(MigrationError, match=r"LATIN1.*UTF8"):
            await migrate(settings)
        assert await tables(settings) == set()
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()

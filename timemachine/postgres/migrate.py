"""Migrations: what brings the schema of a database up to this version.

A migration is a file of SQL in `migrations`, applied once, in the order of the names. Its first lines may be comments
that say how:

    -- after          once the new programs have taken the place of the old ones, which still need what it removes
    -- no transaction outside of one, as CREATE INDEX CONCURRENTLY must be; a file with this has one statement
"""

import asyncio
import hashlib
import logging
import random
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from enum import StrEnum
from importlib import resources
from itertools import groupby

import asyncpg
import msgspec

from timemachine.domain.errors import MigrationError
from timemachine.postgres.pool import session
from timemachine.settings import Settings

log = logging.getLogger(__name__)

LOCK_TIMEOUT = 1.0
"""Seconds that a migration waits for a lock on a table. So long everybody waits behind it who uses that table."""

LOCK_TRIES = 30
LOCK_PAUSE = 2.0
"""Seconds between two tries, about: time for what has waited behind the last one."""

# One number for all migrations of this product, so that two programs never migrate at the same time.
_MIGRATION_LOCK = 7_460_250_001

_HEAD = re.compile(r"\A(?:--[^\n]*\n)*")
_CONCURRENT_INDEX = re.compile(
    r"\bCREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+(?:IF\s+NOT\s+EXISTS\s+)?(?!ON\b)(\S+)\s+ON\b", re.IGNORECASE
)


class Part(StrEnum):
    """When a migration applies: seen from the start of the programs that it belongs to."""

    BEFORE = "before"
    """What the new programs need, and the old ones do not mind: tables, columns and indexes that are added."""
    AFTER = "after"
    """What the old programs would miss: removals, and constraints that what they write may break."""


class Migration(msgspec.Struct, frozen=True):
    """One numbered file of SQL."""

    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text, in hexadecimal."""
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def part(self) -> Part:
        """When it applies."""
        return Part.AFTER if "after" in self._head else Part.BEFORE

    @property
    def in_transaction(self) -> bool:
        """Whether it applies within a transaction, as all may that do not say otherwise."""
        return "no transaction" not in self._head

    @property
    def _head(self) -> set[str]:
        head = _HEAD.match(self.sql)
        return {line.removeprefix("--").strip() for line in head[0].splitlines()} if head else set()


def shipped_migrations() -> list[Migration]:
    """Return the migrations that belong to this version, in the order in which they apply."""
    folder = resources.files("timemachine.postgres") / "migrations"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return [Migration(file.name, file.read_text(encoding="utf-8")) for file in files]


async def _check_encoding(postgres: asyncpg.Connection) -> None:
    """Refuse a database that cannot keep every text.

    Raises:
        MigrationError: Its encoding is not UTF8.
    """
    if (encoding := await postgres.fetchval("SHOW server_encoding")) != "UTF8":
        raise MigrationError(f"the database's encoding is {encoding}; create it with ENCODING 'UTF8'")


async def migrate(
    settings: Settings, migrations: Sequence[Migration] | None = None, *, part: Part = Part.BEFORE
) -> list[str]:
    """Bring the database's schema up to this version, and return the names of the migrations applied.

    Safe to run from several programs at once: an advisory lock lets one through at a time. Of those that follow each
    other and apply within a transaction, all or none do. One that was interrupted is applied anew by the next run.

    Args:
        part: What to apply. An empty database gets both at once, since no program uses it yet.

    Raises:
        MigrationError: An applied migration is not the one that we ship: changed since, or from a newer version. Or
            Postgres refuses one, or lets us not in; or somebody holds a table for too long.
        UnavailableError: Postgres does not answer.
        SettingsError: No `TIMEMACHINE_POSTGRES_DSN`, or not one that can be read.
    """
    known = shipped_migrations() if migrations is None else migrations
    try:
        async with session(settings) as guard, _one_at_a_time(guard), session(settings) as postgres:
            await _check_encoding(postgres)
            applied = await _applied(postgres)
            _check(applied, known)
            parts = {part} if applied else set(Part)
            pending = [migration for migration in known if migration.name not in applied and migration.part in parts]
            for in_transaction, group in groupby(pending, key=lambda migration: migration.in_transaction):
                await (_apply_together if in_transaction else _apply_each)(postgres, list(group))
    except asyncpg.PostgresError as error:
        raise MigrationError(f"Postgres refuses: {error}") from error
    return [migration.name for migration in pending]


@asynccontextmanager
async def _one_at_a_time(guard: asyncpg.Connection) -> AsyncIterator[None]:
    """Wait until no other program migrates, and keep others from it.

    By a transaction of its own, which a pooler in transaction mode keeps together. Whoever waits has none open
    meanwhile: CREATE INDEX CONCURRENTLY of the one that migrates might wait for its end.
    """
    while True:
        async with guard.transaction():
            if await guard.fetchval("SELECT pg_try_advisory_xact_lock($1)", _MIGRATION_LOCK):
                await guard.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
                yield
                return
        await asyncio.sleep(0.1)


async def _applied(postgres: asyncpg.Connection) -> dict[str, str]:
    """Return the checksums of what was applied, by name."""
    async with postgres.transaction():
        if not await postgres.fetchval("SELECT to_regclass('migrations') IS NOT NULL"):
            return {}
        return {row["name"]: row["checksum"] for row in await postgres.fetch("SELECT name, checksum FROM migrations")}


def _check(applied: dict[str, str], known: Sequence[Migration]) -> None:
    """Refuse a database whose schema this version does not know.

    Raises:
        MigrationError: It does not.
    """
    if unknown := sorted(applied.keys() - {migration.name for migration in known}):
        raise MigrationError(f"the database has {unknown[0]}, which this version does not know; run a newer version")
    for migration in known:
        if applied.get(migration.name, migration.checksum) != migration.checksum:
            raise MigrationError(f"{migration.name} was changed after it had been applied")


async def _apply_together(postgres: asyncpg.Connection, migrations: list[Migration]) -> None:
    """Apply migrations in one transaction, which does not wait long for a table that others use."""
    for left in range(LOCK_TRIES, 0, -1):
        try:
            async with postgres.transaction():
                await postgres.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT * 1000:.0f}ms'")
                for migration in migrations:
                    await postgres.execute(migration.sql)
                    await _note(postgres, migration)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
            log.warning("migrations wait for a lock", extra={"reason": str(error), "tries_left": left - 1})
            await asyncio.sleep(LOCK_PAUSE * random.uniform(0.5, 1.5))  # noqa: S311 - guards nothing
        else:
            return
    raise MigrationError(
        f"{migrations[0].name} and what follows it need a lock that others hold: see pg_locks, and run this again"
    )


async def _apply_each(postgres: asyncpg.Connection, migrations: list[Migration]) -> None:
    """Apply migrations outside of a transaction. They may take hours, and nobody waits behind them."""
    for migration in migrations:
        await _drop_unfinished(postgres, migration)
        await postgres.execute(migration.sql)
        async with postgres.transaction():
            await _note(postgres, migration)


async def _drop_unfinished(postgres: asyncpg.Connection, migration: Migration) -> None:
    """Remove the index that an interrupted run has left, which is kept up to date and never used."""
    for name in _CONCURRENT_INDEX.findall(migration.sql):
        async with postgres.transaction():
            unfinished = await postgres.fetchval(
                "SELECT true FROM pg_index WHERE indexrelid = to_regclass($1) AND NOT indisvalid", name
            )
        if unfinished:
            log.warning("an index is made anew whose making was interrupted", extra={"index": name})
            await postgres.execute(f"DROP INDEX CONCURRENTLY {name}")


async def _note(postgres: asyncpg.Connection, migration: Migration) -> None:
    """Note that a migration is applied."""
    await postgres.execute(
        "CREATE TABLE IF NOT EXISTS migrations ("
        "name text PRIMARY KEY, checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
    )
    await postgres.execute(
        "INSERT INTO migrations (name, checksum) VALUES ($1, $2)", migration.name, migration.checksum
    )

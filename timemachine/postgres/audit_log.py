"""The audit log in Postgres: a row for each thing that was done, written with it where that is in Postgres, too."""

from datetime import datetime
from typing import Annotated

import msgspec
from asyncpg import Pool, Record
from asyncpg.pool import PoolConnectionProxy
from msgspec import Meta

from timemachine.domain.audit import AuditAction, AuditEntry, Caller
from timemachine.postgres.pool import connection, delete

ALL_DBS = ""
"""What stands in place of a db where something is about all of them; no db has this name."""


class AuditPosition(msgspec.Struct, frozen=True, array_like=True):
    """Where a page ended. Handed out as a cursor, so that what comes back may be anything."""

    id: Annotated[int, Meta(ge=0, le=2**63 - 1)]


class AuditPage(msgspec.Struct, frozen=True):
    """Some entries, the latest first, and where to go on; None at the end."""

    entries: list[AuditEntry]
    next: AuditPosition | None


async def write_audit(
    postgres: PoolConnectionProxy, caller: Caller, action: AuditAction, db: str | None, target: str
) -> None:
    """Write an entry, within the transaction of what it tells of.

    Args:
        db: The db that it is about; None for all.
        target: What it is done to.
    """
    await postgres.execute(
        _WRITE, caller.key_id, action, ALL_DBS if db is None else db, target, caller.address, caller.request_id
    )


class AuditLog:
    """What was done to all dbs. Each method raises UnavailableError when Postgres does not answer."""

    def __init__(self, pool: Pool) -> None:
        """Use the given pool, which the caller opens and closes."""
        self._pool = pool

    async def write(self, caller: Caller, action: AuditAction, db: str, target: str) -> None:
        """Write an entry for what is done outside of Postgres, before it is done: nothing makes up for a missing one.

        Args:
            target: What it is done to.
        """
        async with connection(self._pool) as postgres:
            await write_audit(postgres, caller, action, db, target)

    async def page(
        self,
        db: str,
        *,
        with_all_dbs: bool,
        limit: int,
        after: AuditPosition | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> AuditPage:
        """Return entries of a db, the latest first.

        Args:
            with_all_dbs: Show what is about all dbs, too.
            after: Where the page before this one ended.
            since: Only those from then on.
            until: Only those from before.
        """
        dbs = [db, ALL_DBS] if with_all_dbs else [db]
        async with connection(self._pool) as postgres:
            rows = await postgres.fetch(_PAGE, dbs, after.id if after else None, since, until, limit + 1)
        shown = rows[:limit]
        return AuditPage([_entry(row) for row in shown], AuditPosition(shown[-1]["id"]) if len(rows) > limit else None)

    async def remove_before(self, at: datetime, limit: int) -> int:
        """Remove the oldest of the entries from before a time, at most `limit`, and return how many.

        Raises:
            SlowStatementError: There was no time for so many.
        """
        return await delete(self._pool, _REMOVE_BEFORE, at, limit)


_WRITE = """
    INSERT INTO audit (key_id, action, db, target, address, request_id) VALUES ($1, $2, $3, $4, $5, $6)
"""

# Of each db the first ones by the index, then merged.
_PAGE = """
    SELECT found.* FROM unnest($1::text[]) AS wanted (db)
    CROSS JOIN LATERAL (
        SELECT * FROM audit
        WHERE audit.db = wanted.db AND id < coalesce($2::bigint, 9223372036854775807)
            AND at >= coalesce($3::timestamptz, '-infinity') AND at < coalesce($4::timestamptz, 'infinity')
        ORDER BY id DESC LIMIT $5
    ) AS found
    ORDER BY id DESC LIMIT $5
"""

_REMOVE_BEFORE = """
    WITH chosen AS (SELECT id FROM audit WHERE at < $1 ORDER BY at LIMIT $2 FOR UPDATE SKIP LOCKED)
    DELETE FROM audit USING chosen WHERE audit.id = chosen.id
"""


def _entry(row: Record) -> AuditEntry:
    return AuditEntry(
        at=row["at"],
        key_id=row["key_id"],
        action=row["action"],
        db=None if row["db"] == ALL_DBS else row["db"],
        target=row["target"],
        address=row["address"],
        request_id=row["request_id"],
    )

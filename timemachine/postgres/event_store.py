"""Events in Postgres: which ones each db asks for, and those that are not sent yet.

An event is written by the statement that makes it happen, so that there is none without the other.
"""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from asyncpg import ForeignKeyViolationError, Pool

from timemachine.domain.audit import AuditAction, Caller
from timemachine.domain.errors import NoSuchRouteError
from timemachine.domain.events import EventKind, EventSettings, WaitingEvent
from timemachine.postgres.audit_log import write_audit
from timemachine.postgres.pool import connection


class EventStore:
    """The events of every db. Each method raises UnavailableError when Postgres does not answer.

    Where a change is given who makes it, as `by`, it has an entry in the audit log.
    """

    def __init__(self, pool: Pool) -> None:
        """Use the given pool, which the caller opens and closes."""
        self._pool = pool

    async def find(self, db: str) -> EventSettings | None:
        """Return which events a db asks for; None where it asks for none."""
        async with connection(self._pool) as postgres:
            row = await postgres.fetchrow("SELECT route_id, kinds FROM event_routes WHERE db = $1", db)
        if row is None:
            return None
        # Without those of a later version, which a db may ask for that has gone back to this one.
        known = {kind.value for kind in EventKind}
        return EventSettings(
            route_id=row["route_id"], kinds=tuple(EventKind(kind) for kind in row["kinds"] if kind in known)
        )

    async def replace(self, db: str, settings: EventSettings, *, by: Caller | None = None) -> None:
        """Set which events a db asks for. What happens from then on is sent, and of what waits only those kinds.

        Raises:
            NoSuchRouteError: The route does not exist.
        """
        try:
            async with connection(self._pool) as postgres, postgres.transaction():
                await postgres.execute(_REPLACE, db, settings.route_id, list(settings.kinds))
                # Only of kinds that this version knows: a later one's are what somebody has asked for there.
                unwanted = [kind for kind in EventKind if kind not in settings.kinds]
                await postgres.execute("DELETE FROM events WHERE db = $1 AND kind = ANY ($2)", db, unwanted)
                if by is not None:
                    await write_audit(postgres, by, AuditAction.EVENTS_CHANGED, db, settings.route_id)
        except ForeignKeyViolationError as error:
            raise NoSuchRouteError(f"no route {settings.route_id} in {db}") from error

    async def remove(self, db: str, *, by: Caller | None = None) -> None:
        """Have a db ask for no events, if it does. Those that are not sent yet are not sent any more."""
        async with connection(self._pool) as postgres, postgres.transaction():
            route_id = await postgres.fetchval("DELETE FROM event_routes WHERE db = $1 RETURNING route_id", db)
            await postgres.execute("DELETE FROM events WHERE db = $1", db)
            if route_id is not None and by is not None:
                await write_audit(postgres, by, AuditAction.EVENTS_DELETED, db, route_id)

    async def claim(self, limit: int, *, lease: timedelta) -> list[WaitingEvent]:
        """Return events that are to be sent, the oldest first, which nobody else is given meanwhile.

        Args:
            lease: Time after which they are given to others, unless they are removed.
        """
        async with connection(self._pool) as postgres:
            rows = await postgres.fetch(_CLAIM, limit, lease)
        return [
            WaitingEvent(
                id=row["id"],
                db=row["db"],
                kind=row["kind"],
                what=row["what"].encode(),
                at=row["at"],
                route_id=row["route_id"],
            )
            for row in rows
        ]

    async def discard(self, ids: Sequence[UUID]) -> None:
        """Remove events whose jobs are started, or which nobody asks for any more."""
        async with connection(self._pool) as postgres:
            await postgres.execute("DELETE FROM events WHERE id = ANY ($1::uuid[])", ids)


def writing_event(source: str, *, kind: str, db: str, route: str, what: str) -> str:
    """Return a statement that writes an event for each row of another one, if its db asks for it.

    For all other dbs it looks one row up, and for a row that is no event none. All arguments are SQL, and never what a
    client sent.

    Args:
        source: Name of the other statement within the same one.
        kind: The event's kind; null for a row that is no event.
        db: Where it happened; null for what no events are about.
        route: The route that it is about, or that its job is on.
        what: What happened, as jsonb.
    """
    return f"""
        INSERT INTO events (db, kind, what)
        SELECT wanted.db, {kind}, {what} FROM {source}
        JOIN event_routes AS wanted
            ON wanted.db = {db} AND wanted.route_id <> {route} AND {kind} = ANY (wanted.kinds)
        WHERE {kind} IS NOT NULL
    """  # noqa: S608 - constants


_REPLACE = """
    INSERT INTO event_routes (db, route_id, kinds) VALUES ($1, $2, $3)
    ON CONFLICT (db) DO UPDATE SET route_id = excluded.route_id, kinds = excluded.kinds
"""

# Rows are chosen apart, and once: as a condition of the UPDATE they may be chosen anew for each row of the table, by a
# plan from when it was empty, and then more than the limit are claimed.
_CLAIM = """
    WITH chosen AS (
        SELECT id FROM events WHERE send_at <= now() ORDER BY send_at LIMIT $1 FOR UPDATE SKIP LOCKED
    ),
    claimed AS (
        UPDATE events SET send_at = clock_timestamp() + $2::interval FROM chosen WHERE events.id = chosen.id
        RETURNING events.id, db, kind, what, at
    )
    SELECT claimed.*, wanted.route_id FROM claimed LEFT JOIN event_routes AS wanted
        ON wanted.db = claimed.db
        AND wanted.route_id IS DISTINCT FROM coalesce(claimed.what -> 'job' ->> 'route', claimed.what ->> 'route')
    ORDER BY at
"""

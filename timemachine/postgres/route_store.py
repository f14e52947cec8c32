"""The routes in Postgres: what they are, what they are signed with, and whether deliveries may go there."""

import asyncio
import math
import random
import secrets as randomness
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated
from weakref import WeakValueDictionary

import msgspec
from asyncpg import Pool, Record
from asyncpg.pool import PoolConnectionProxy
from msgspec import Meta

from timemachine.clean_up import clean_up
from timemachine.domain.audit import AuditAction, Caller
from timemachine.domain.errors import (
    NoSlotError,
    NoSuchRouteError,
    RouteExistsError,
    RouteInUseError,
    TooManySecretsError,
    UnavailableError,
)
from timemachine.domain.events import EventKind, RecoveredBy
from timemachine.domain.jobs import MAX_NAME, NAME_PATTERN
from timemachine.domain.routes import Route, RouteNews, RouteState, RouteStatus
from timemachine.domain.signing import SECRET_BYTES
from timemachine.postgres.audit_log import write_audit
from timemachine.postgres.event_store import writing_event
from timemachine.postgres.pool import connection
from timemachine.vault import Vault

Headers = dict[str, str]

MAX_SECRETS = 5
"""Secrets of one route that may sign at a time: each adds 48 bytes to a header of every request."""

PLACE_TIME = timedelta(seconds=75)
"""Time after which a slot is free again whose worker died. Longer than an attempt can take."""

PLACE_WAIT = 1.0
"""Seconds that an attempt waits in place for others that ask for a slot of the same route."""

_PLACE_PAUSE = 0.02


class RoutePosition(msgspec.Struct, frozen=True, array_like=True):
    """Where a page ended. Handed out as a cursor, so that what comes back may be anything."""

    id: Annotated[str, Meta(pattern=NAME_PATTERN, max_length=MAX_NAME)]


class StoredRoute(msgspec.Struct, frozen=True, kw_only=True):
    """A route with its status."""

    route: Route
    status: RouteStatus


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """All that an attempt needs to know of a route. Holds secrets: never to be logged or put into an error."""

    route: Route
    headers: Headers
    secrets: tuple[bytes, ...]
    """The valid ones, the newest first. Each signs."""
    failing_since: datetime | None = None
    """When attempts began to fail; None if the last one did not."""


class Secret(msgspec.Struct, frozen=True, kw_only=True):
    """One secret of a route. Never to be logged."""

    value: bytes
    expires_at: datetime | None
    """None for the newest."""


class RouteStore:
    """The routes of every db. Each method raises UnavailableError when Postgres does not answer.

    Where a change is given who makes it, as `by`, it has an entry in the audit log.
    """

    def __init__(self, pool: Pool, vault: Vault) -> None:
        """Use the given pool, which the caller opens and closes, and the vault for what is secret."""
        self._pool = pool
        self._vault = vault
        self._slot_locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        """One for each route that slots are being asked for, so that no more than one connection asks."""

    async def find(self, db: str, route_id: str) -> StoredRoute:
        """Return a route.

        Raises:
            NoSuchRouteError: There is none.
        """
        query = "SELECT route, state, state_since, state_reason FROM routes WHERE db = $1 AND id = $2"
        async with connection(self._pool) as postgres:
            row = await postgres.fetchrow(query, db, route_id)
        if row is None:
            raise NoSuchRouteError(f"no route {route_id} in {db}")
        return StoredRoute(route=msgspec.json.decode(row["route"], type=Route), status=_standing(row))

    async def of_db(self, db: str, *, limit: int, after: RoutePosition | None = None) -> list[StoredRoute]:
        """Return routes of a db in the order of their ids, those after one."""
        async with connection(self._pool) as postgres:
            rows = await postgres.fetch(_OF_DB, db, after.id if after else "", limit)
        return [StoredRoute(route=msgspec.json.decode(row["route"], type=Route), status=_standing(row)) for row in rows]

    async def check(self, db: str, route_id: str) -> None:
        """Refuse a route that does not exist.

        Raises:
            NoSuchRouteError: There is none.
        """
        async with connection(self._pool) as postgres:
            found = await postgres.fetchval("SELECT 1 FROM routes WHERE db = $1 AND id = $2", db, route_id)
        if found is None:
            raise NoSuchRouteError(f"no route {route_id} in {db}")

    async def open_target(self, db: str, route_id: str, row: Record) -> Target:
        """Return what an attempt needs, from a row that the `TARGET` query gave.

        Raises:
            VaultError: Its secrets cannot be read with the keys that are set.
        """
        return Target(
            route=msgspec.json.decode(row["route"], type=Route),
            headers=self._open_headers(row["sealed_headers"]),
            # A route from before there were secrets is given its first one.
            secrets=tuple(self._vault.open(sealed) for sealed in row["secrets"])
            or tuple(secret.value for secret in await self.secrets(db, route_id)),
            failing_since=row["failing_since"],
        )

    async def add(self, db: str, route: Route, headers: Headers, *, by: Caller | None = None) -> None:
        """Add a route with a new secret; adding the same one again changes nothing.

        Raises:
            RouteExistsError: A route with this id and other content exists.
        """
        async with connection(self._pool) as postgres, postgres.transaction():
            # What is there already is returned by the same statement, lest it be removed before a second one.
            row = await postgres.fetchrow(
                _ADD, db, route.id, msgspec.json.encode(route).decode(), self._seal_headers(headers)
            )
            if row is None:
                raise UnavailableError("Postgres returned no row")
            if row["added"]:
                await postgres.execute(_ADD_SECRET, db, route.id, self._vault.seal(_new_secret()))
                await _audit(postgres, by, AuditAction.ROUTE_CREATED, db, route.id)
                return
        existing = msgspec.json.decode(row["route"], type=Route), self._open_headers(row["sealed_headers"])
        if existing != (route, headers):
            raise RouteExistsError(f"another route {route.id} exists in {db}")

    async def replace(self, db: str, route: Route, headers: Headers, *, by: Caller | None = None) -> None:
        """Replace a route; its secrets and status stay. The next attempt of every job on it uses the new one.

        Raises:
            NoSuchRouteError: There is none to replace.
        """
        async with connection(self._pool) as postgres, postgres.transaction():
            replaced = await postgres.fetchval(
                "UPDATE routes SET route = $3, sealed_headers = $4, updated_at = now() "
                "WHERE db = $1 AND id = $2 RETURNING id",
                db,
                route.id,
                msgspec.json.encode(route).decode(),
                self._seal_headers(headers),
            )
            if replaced is None:
                raise NoSuchRouteError(f"no route {route.id} in {db}")
            await _audit(postgres, by, AuditAction.ROUTE_CHANGED, db, route.id)

    async def remove(self, db: str, route_id: str, *, force: bool = False, by: Caller | None = None) -> None:
        """Remove a route with its secrets.

        Args:
            force: Remove it even where events go to it. The db then asks for none any more.

        Raises:
            NoSuchRouteError: There is none.
            RouteInUseError: Events go to it, and `force` is not set.
        """
        async with connection(self._pool) as postgres, postgres.transaction():
            # Locked first, so that who has events go to it meanwhile comes before or after all of this.
            if not await postgres.fetchval(_LOCK_FOR_REMOVAL, db, route_id):
                raise NoSuchRouteError(f"no route {route_id} in {db}")
            if not force and await postgres.fetchval(_IS_FOR_EVENTS, db, route_id):
                raise RouteInUseError("events go to this route; ?force=true removes it all the same, and ends them")
            await postgres.execute("DELETE FROM routes WHERE db = $1 AND id = $2", db, route_id)
            await _audit(postgres, by, AuditAction.ROUTE_DELETED, db, route_id)

    async def secrets(self, db: str, route_id: str) -> list[Secret]:
        """Return the secrets that sign now, the newest first.

        Raises:
            NoSuchRouteError: There is no such route.
            VaultError: They cannot be read with the keys that are set.
        """
        async with connection(self._pool) as postgres:
            rows = await postgres.fetch(_SECRETS, db, route_id)
        if not rows:
            # From before there were any, or no route.
            await self._first_secret(db, route_id)
            return await self.secrets(db, route_id)
        return [self._open_secret(row) for row in rows]

    async def rotate(self, db: str, route_id: str, overlap: timedelta, *, by: Caller | None = None) -> list[Secret]:
        """Add a new secret, let the present ones sign for the overlap at most, and return those that sign now.

        Raises:
            NoSuchRouteError: There is no such route.
            TooManySecretsError: As many sign already as may at a time. Without an overlap this cannot be.
            VaultError: The present ones cannot be read with the keys that are set.
        """
        async with connection(self._pool) as postgres, postgres.transaction():
            await _lock_route(postgres, db, route_id)
            await postgres.execute(_EXPIRE_SECRETS, db, route_id, overlap)
            # Not kept longer than they are good for.
            await postgres.execute(_DROP_EXPIRED_SECRETS, db, route_id)
            present = [self._open_secret(row) for row in await postgres.fetch(_SECRETS, db, route_id)]
            if len(present) >= MAX_SECRETS:
                raise _too_many(present)
            new = _new_secret()
            await postgres.execute(_ADD_SECRET, db, route_id, self._vault.seal(new))
            await _audit(postgres, by, AuditAction.SECRET_ROTATED, db, route_id)
        return [Secret(value=new, expires_at=None), *present]

    async def reseal(self) -> int:
        """Encrypt everything anew with the first key, and return how much it was. Safe beside all that goes on.

        Raises:
            VaultError: Something cannot be read with the keys that are set. What came before it stays done.
        """
        count = 0
        for read, write in _RESEAL:
            async with connection(self._pool) as postgres:
                rows = await postgres.fetch(read)
            for *key, sealed in rows:
                async with connection(self._pool) as postgres:
                    await postgres.execute(write, *key, sealed, self._vault.reseal(sealed))
            count += len(rows)
        return count

    async def set_state(
        self, db: str, route_id: str, state: RouteState, reason: str | None = None, *, by: Caller | None = None
    ) -> None:
        """Pause, disable or resume a route. Nothing changes where it is in that state already.

        A resume also has its failures counted anew.

        Raises:
            NoSuchRouteError: There is none.
        """
        async with connection(self._pool) as postgres, postgres.transaction():
            if state is RouteState.ACTIVE:
                await postgres.execute(_WRITE_RECOVERY_BY_RESUME, db, route_id)
            found = await postgres.fetchval(_SET_STATE, db, route_id, state, reason)
            if found is None:
                raise NoSuchRouteError(f"no route {route_id} in {db}")
            await _audit(postgres, by, _STATE_ACTIONS[state], db, route_id)

    async def count_by_state(self) -> dict[RouteState, int]:
        """Return how many routes of all dbs there are in each state."""
        async with connection(self._pool) as postgres:
            rows = await postgres.fetch(_COUNT_BY_STATE)
        found = {row["state"]: row["count"] for row in rows}
        return {state: found.get(state, 0) for state in RouteState}

    async def note_failure(self, db: str, route_id: str, *, disable_after: timedelta) -> None:
        """Note that an attempt failed, and disable a route that has failed everything for so long."""
        async with connection(self._pool) as postgres:
            await postgres.execute(_NOTE_FAILURE, db, route_id)
            await postgres.execute(
                _DISABLE_FAILING,
                db,
                route_id,
                f"everything failed for {disable_after / timedelta(hours=1):g} hours",
                disable_after,
            )

    @asynccontextmanager
    async def in_flight_slot(self, db: str, route_id: str, run_id: str, limit: int) -> AsyncIterator[None]:
        """Hold one of a route's slots for requests in flight, which all workers share.

        Raises:
            NoSlotError: All are taken, or others have been asking for one for a while.
            UnavailableError: Postgres does not answer. What is raised, or returned, inside is never replaced by it.
        """
        if not await self._acquire_slot(db, route_id, run_id, limit):
            raise NoSlotError(1.0)
        try:
            yield
        finally:
            await clean_up(self._release_slot(db, route_id, run_id), "release a route's slot")

    async def _acquire_slot(self, db: str, route_id: str, run_id: str, limit: int) -> bool:
        """Return whether there was a slot. Whoever waits for others that ask holds no connection meanwhile.

        Raises:
            NoSlotError: The wait is over.
        """
        until = asyncio.get_running_loop().time() + PLACE_WAIT
        lock = self._slot_locks.setdefault((db, route_id), asyncio.Lock())
        try:
            async with asyncio.timeout_at(until):
                await lock.acquire()
        except TimeoutError:
            raise NoSlotError(_soon()) from None
        try:
            while asyncio.get_running_loop().time() < until:
                taken = await self._try_acquire(db, route_id, run_id, limit)
                if taken is not None:
                    return taken
                await asyncio.sleep(_PLACE_PAUSE * _soon())
            raise NoSlotError(_soon())
        finally:
            lock.release()

    async def _try_acquire(self, db: str, route_id: str, run_id: str, limit: int) -> bool | None:
        """Return whether there was a slot; None while another transaction holds the route, or when it is gone."""
        async with connection(self._pool) as postgres, postgres.transaction():
            # Locks the route, so that two who ask at once are counted one after the other.
            if not await postgres.fetchval(_LOCK_FOR_PLACE, db, route_id):
                return None
            return await postgres.fetchval(_TAKE_PLACE, db, route_id, run_id, PLACE_TIME, limit) is not None

    async def _release_slot(self, db: str, route_id: str, run_id: str) -> None:
        async with connection(self._pool) as postgres:
            await postgres.execute(_GIVE_PLACE_BACK, db, route_id, run_id)

    async def _first_secret(self, db: str, route_id: str) -> None:
        """Give a route its first secret, unless it has been given one meanwhile."""
        async with connection(self._pool) as postgres, postgres.transaction():
            await _lock_route(postgres, db, route_id)
            if not await postgres.fetch(_SECRETS, db, route_id):
                await postgres.execute(_ADD_SECRET, db, route_id, self._vault.seal(_new_secret()))

    def _open_secret(self, row: Record) -> Secret:
        return Secret(value=self._vault.open(row["sealed"]), expires_at=row["expires_at"])

    def _seal_headers(self, headers: Headers) -> bytes | None:
        return self._vault.seal(msgspec.json.encode(headers)) if headers else None

    def _open_headers(self, sealed: bytes | None) -> Headers:
        return msgspec.json.decode(self._vault.open(sealed), type=Headers) if sealed else {}


async def write_news(
    postgres: PoolConnectionProxy, db: str, route_id: str, news: RouteNews, *, failing_since: datetime | None
) -> None:
    """Write what the answer to an attempt means for its route, within the transaction of the attempt's end.

    Args:
        failing_since: When the failures began that it may end. Later ones are none of these.
    """
    match news:
        case RouteNews.GONE:
            await postgres.execute(_DISABLE_GONE, db, route_id, "the receiver answered 410 Gone")
        case RouteNews.RECOVERED:
            await postgres.execute(_RECOVER, db, route_id, failing_since)


# xmax is 0 in a row that this statement inserted.
_OF_DB = """
    SELECT route, state, state_since, state_reason FROM routes
    WHERE db = $1 AND id > $2 ORDER BY id LIMIT $3
"""

_ADD = """
    INSERT INTO routes (db, id, route, sealed_headers) VALUES ($1, $2, $3, $4)
    ON CONFLICT (db, id) DO UPDATE SET route = routes.route
    RETURNING route, sealed_headers, xmax = 0 AS added
"""

_TARGET_COLUMNS = """
    route, state, state_since, state_reason, sealed_headers, failing_since, ARRAY(
        SELECT sealed FROM route_secrets AS secret
        WHERE secret.db = routes.db AND secret.route_id = routes.id
            AND (expires_at IS NULL OR expires_at > clock_timestamp())
        ORDER BY secret.id DESC
    ) AS secrets
"""

TARGET = f"SELECT {_TARGET_COLUMNS} FROM routes WHERE db = $1 AND id = $2"  # noqa: S608
"""Asks for all that an attempt needs to know of a route; for `RouteStore.open_target`."""

_SECRETS = """
    SELECT sealed, expires_at FROM route_secrets
    WHERE db = $1 AND route_id = $2 AND (expires_at IS NULL OR expires_at > clock_timestamp()) ORDER BY id DESC
"""

_ADD_SECRET = "INSERT INTO route_secrets (db, route_id, sealed) VALUES ($1, $2, $3)"  # noqa: S105 - no password

# By the clock, not by `now()`, which is the start of the transaction, from before it waited for its turn.
_EXPIRE_SECRETS = """
    UPDATE route_secrets
    SET expires_at = least(coalesce(expires_at, 'infinity'), clock_timestamp() + $3::interval)
    WHERE db = $1 AND route_id = $2
"""

_DROP_EXPIRED_SECRETS = """
    DELETE FROM route_secrets WHERE db = $1 AND route_id = $2 AND expires_at <= clock_timestamp()
"""

# Pairs of statements: what there is, by its key, and what it becomes where it is still that.
_RESEAL = (
    (
        "SELECT id, sealed FROM route_secrets",
        "UPDATE route_secrets SET sealed = $3 WHERE id = $1 AND sealed = $2",
    ),
    (
        "SELECT db, id, sealed_headers FROM routes WHERE sealed_headers IS NOT NULL",
        "UPDATE routes SET sealed_headers = $4 WHERE db = $1 AND id = $2 AND sealed_headers = $3",
    ),
)

# One that is paused while it is disabled counts as failing, as it has not recovered until it is resumed.
_SET_STATE = """
    UPDATE routes SET
        state = $3,
        state_since = CASE WHEN state = $3 THEN state_since ELSE now() END,
        state_reason = CASE WHEN state = $3 THEN state_reason ELSE $4 END,
        failing_since = CASE
            WHEN $3 = 'active' THEN NULL
            WHEN state = 'disabled' THEN coalesce(failing_since, state_since)
            ELSE failing_since
        END
    WHERE db = $1 AND id = $2 RETURNING id
"""

_COUNT_BY_STATE = "SELECT state, count(*) FROM routes GROUP BY state"

# Written once when the failures begin, and once when they have lasted.
_NOTE_FAILURE = """
    UPDATE routes SET failing_since = now()
    WHERE db = $1 AND id = $2 AND failing_since IS NULL
"""


def _disabling(condition: str) -> str:
    """Return the statement that disables a route, with $3 as the reason, and writes the event."""
    event = writing_event(
        "disabled",
        kind=f"'{EventKind.ROUTE_DISABLED}'",
        db="disabled.db",
        route="disabled.id",
        what="jsonb_build_object('db', disabled.db, 'route', disabled.id, 'reason', disabled.state_reason)",
    )
    return f"""
        WITH disabled AS (
            UPDATE routes SET state = 'disabled', state_since = now(), state_reason = $3
            WHERE db = $1 AND id = $2 AND {condition}
            RETURNING db, id, state_reason
        )
        {event}
    """  # noqa: S608 - constants


_DISABLE_GONE = _disabling("state <> 'disabled'")

_DISABLE_FAILING = _disabling("state = 'active' AND failing_since < now() - $4::interval")


def _recovery_event(by: RecoveredBy) -> str:
    return writing_event(
        "recovered",
        kind=f"'{EventKind.ROUTE_RECOVERED}'",
        db="recovered.db",
        route="recovered.id",
        what=f"""jsonb_build_object(
            'db', recovered.db, 'route', recovered.id, 'by', '{by}',
            'since', floor(extract(epoch FROM recovered.since) * 1000)::bigint
        )""",
    )


# Locked before it is looked at, so that of several at once one finds that it has failed.
_RECOVER = f"""
    WITH failing AS (
        SELECT db, id, failing_since FROM routes
        WHERE db = $1 AND id = $2 AND failing_since = $3 AND state <> 'disabled' FOR NO KEY UPDATE
    ),
    recovered AS (
        UPDATE routes SET failing_since = NULL FROM failing
        WHERE routes.db = failing.db AND routes.id = failing.id
        RETURNING routes.db, routes.id, failing.failing_since AS since
    )
    {_recovery_event(RecoveredBy.SUCCESS)}
"""  # noqa: S608 - constants

_WRITE_RECOVERY_BY_RESUME = f"""
    WITH locked AS ( -- whatever its state: a failure that is being written is waited for
        SELECT db, id, state, state_since, failing_since FROM routes WHERE db = $1 AND id = $2 FOR NO KEY UPDATE
    ),
    recovered AS (
        SELECT db, id, coalesce(failing_since, state_since) AS since FROM locked
        WHERE state = 'disabled' OR failing_since IS NOT NULL
    )
    {_recovery_event(RecoveredBy.RESUME)}
"""  # noqa: S608 - constants

_LOCK_FOR_REMOVAL = "SELECT true FROM routes WHERE db = $1 AND id = $2 FOR UPDATE"

_IS_FOR_EVENTS = "SELECT true FROM event_routes WHERE db = $1 AND route_id = $2"

# Held by another transaction, it is not waited for: that would take a connection from everybody else.
_LOCK_FOR_PLACE = "SELECT true FROM routes WHERE db = $1 AND id = $2 FOR NO KEY UPDATE SKIP LOCKED"

_GIVE_PLACE_BACK = "DELETE FROM in_flight WHERE db = $1 AND route_id = $2 AND run_id = $3"

# A slot whose release failed counts no longer than its attempt, whose end is written after that.
_TAKE_PLACE = """
    WITH expired AS (DELETE FROM in_flight WHERE db = $1 AND route_id = $2 AND expires_at <= now())
    INSERT INTO in_flight (db, route_id, run_id, expires_at)
    SELECT $1, $2, $3, now() + $4::interval
    WHERE $5 > (
        SELECT count(*) FROM in_flight AS slot
        WHERE db = $1 AND route_id = $2 AND expires_at > now() AND run_id <> $3 AND NOT EXISTS (
            SELECT FROM delivery_ledger AS run
            WHERE run.run_id = slot.run_id AND run.state NOT IN ('under_way', 'cancelling')
        )
    )
    ON CONFLICT (db, route_id, run_id) DO UPDATE SET expires_at = excluded.expires_at
    RETURNING run_id
"""


_STATE_ACTIONS = {
    RouteState.ACTIVE: AuditAction.ROUTE_RESUMED,
    RouteState.PAUSED: AuditAction.ROUTE_PAUSED,
    RouteState.DISABLED: AuditAction.ROUTE_DISABLED,
}


async def _audit(postgres: PoolConnectionProxy, by: Caller | None, action: AuditAction, db: str, route_id: str) -> None:
    if by is not None:
        await write_audit(postgres, by, action, db, route_id)


def _standing(row: Record) -> RouteStatus:
    return RouteStatus(state=RouteState(row["state"]), since=row["state_since"], reason=row["state_reason"])


def _soon() -> float:
    """Return about a second, another one each time, so that those who wait together do not come back together."""
    return random.uniform(0.5, 1.5)  # noqa: S311 - guards nothing


def _new_secret() -> bytes:
    return randomness.token_bytes(SECRET_BYTES)


async def _lock_route(postgres: PoolConnectionProxy, db: str, route_id: str) -> None:
    """Let other changes to a route's secrets wait until this transaction ends. Deliveries do not wait.

    Raises:
        NoSuchRouteError: There is no such route.
    """
    query = "SELECT 1 FROM routes WHERE db = $1 AND id = $2 FOR NO KEY UPDATE"
    if not await postgres.fetchval(query, db, route_id):
        raise NoSuchRouteError(f"no route {route_id} in {db}")


def _too_many(present: list[Secret]) -> TooManySecretsError:
    """Return the error that says when the next slot is free."""
    first = min(secret.expires_at for secret in present if secret.expires_at)
    return TooManySecretsError(
        f"{len(present)} secrets sign already, the first of them until {first.isoformat(timespec='seconds')}; "
        "with an overlap of 0 none of them would",
        retry_after=max(1, math.ceil((first - datetime.now(UTC)).total_seconds())),
    )

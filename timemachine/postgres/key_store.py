"""The keys in Postgres, and the hashes of their secrets."""

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec
from asyncpg import Pool, Record
from asyncpg.pool import PoolConnectionProxy
from msgspec import Meta

from timemachine.domain.audit import AuditAction, Caller
from timemachine.domain.errors import (
    ForbiddenError,
    LastAdminKeyError,
    NoSuchKeyError,
    TooManySecretsError,
    UnauthorizedError,
    UnavailableError,
)
from timemachine.domain.keys import ApiKey, KeyRequest, NewKey, Role, generate_key, is_key_id, is_same_hash, new_key_id
from timemachine.postgres.audit_log import write_audit
from timemachine.postgres.pool import connection

MAX_SECRETS = 5
"""Secrets of one key that may be valid at a time."""

# One number for all changes to keys, which are rare, so that each sees what the one before has done.
_CHANGES_LOCK = 7_460_250_002


class KeySecret(msgspec.Struct, frozen=True):
    """What is kept of a secret."""

    hash: bytes
    expires_at: datetime | None
    """None for the newest."""

    def is_valid(self, now: datetime) -> bool:
        """Return whether it has not expired."""
        return self.expires_at is None or now < self.expires_at


class StoredKey(msgspec.Struct, frozen=True):
    """A key with what its secrets are checked by: those that are valid, and those that were."""

    key: ApiKey
    secrets: tuple[KeySecret, ...]

    def is_valid_with(self, secret_hash: bytes, now: datetime) -> bool:
        """Return whether the key is valid, and this secret of it."""
        return self.key.is_valid(now) and any(
            is_same_hash(secret.hash, secret_hash) and secret.is_valid(now) for secret in self.secrets
        )


class KeyPosition(msgspec.Struct, frozen=True, array_like=True):
    """Where a page ended. Handed out as a cursor, so that what comes back may be anything."""

    number: Annotated[int, Meta(ge=0, le=2**63 - 1)]


class KeyPage(msgspec.Struct, frozen=True):
    """Some keys, the newest first, and where to go on; None at the end."""

    keys: list[ApiKey]
    next: KeyPosition | None


class KeyStore:
    """All keys. Each method raises UnavailableError when Postgres does not answer.

    A caller sees, replaces and revokes the keys whose dbs are among its own, and makes such keys only. Each change is
    refused with UnauthorizedError when the caller's own key was revoked, or it or its secret has expired by then.
    """

    def __init__(self, pool: Pool) -> None:
        """Use the given pool, which the caller opens and closes."""
        self._pool = pool

    async def find(self, key_ids: Sequence[str]) -> dict[str, StoredKey]:
        """Return the keys that there are among these, revoked and expired ones too, by their ids."""
        async with connection(self._pool) as postgres:
            return await _find(postgres, key_ids)

    async def note_use(self, key_id: str, at: datetime) -> None:
        """Note that a key was used."""
        async with connection(self._pool) as postgres:
            await postgres.execute(_NOTE_USE, key_id, at)

    async def count_expiring(self, within: timedelta) -> int:
        """Return how many valid keys expire within a time."""
        async with connection(self._pool) as postgres:
            return int(await postgres.fetchval(_COUNT_EXPIRING, within))

    async def page(self, caller: Caller, *, limit: int, after: KeyPosition | None = None) -> KeyPage:
        """Return the keys that the caller may see, the newest first.

        Args:
            after: Where the page before this one ended.
        """
        dbs = None if caller.dbs is None else list(caller.dbs)
        async with connection(self._pool) as postgres:
            rows = await postgres.fetch(_PAGE, dbs, after.number if after else None, limit + 1)
        shown = rows[:limit]
        return KeyPage([_key(row) for row in shown], KeyPosition(shown[-1]["number"]) if len(rows) > limit else None)

    async def create(self, asked: KeyRequest, caller: Caller) -> tuple[ApiKey, NewKey]:
        """Make a key. A db that is named twice counts once.

        Raises:
            MalformedError, ForbiddenNameError: It is not allowed; see `KeyRequest.check`.
            ForbiddenError: It would open dbs that the caller may not deal with.
        """
        asked.check(datetime.now(UTC))
        if not caller.covers(asked.dbs):
            raise ForbiddenError("this key does not open all of these dbs, so it can make no key that does")
        dbs = None if asked.dbs is None else list(dict.fromkeys(asked.dbs))
        new = generate_key(new_key_id())
        async with connection(self._pool) as postgres, postgres.transaction():
            await _begin_change(postgres, caller)
            row = await postgres.fetchrow(
                _CREATE,
                new.id,
                asked.name,
                asked.role,
                dbs,
                caller.key_id,
                asked.expires_at,
                asked.requests_per_second,
            )
            if row is None:
                raise UnavailableError("Postgres returned no row")
            await postgres.execute(_ADD_SECRET, new.id, new.hash)
            key = _key(row)
            await _audit(postgres, caller, AuditAction.KEY_CREATED, key)
        return key, new

    async def rotate(self, key_id: str, overlap: timedelta, caller: Caller) -> tuple[ApiKey, NewKey]:
        """Give a key a new secret. Those of before stay valid for the overlap at most.

        Raises:
            NoSuchKeyError: There is no such key that is valid, or the caller may not see it.
            TooManySecretsError: As many are valid already as may be at a time. Without an overlap this cannot be.
        """
        new = generate_key(key_id)
        async with connection(self._pool) as postgres, postgres.transaction():
            await _begin_change(postgres, caller)
            key = await _find_visible(postgres, key_id, caller)
            if not key.is_valid(datetime.now(UTC)):
                raise NoSuchKeyError(f"the key {key_id} was revoked, or has expired; make another one")
            await postgres.execute(_EXPIRE_SECRETS, key_id, overlap)
            await _check_room(postgres, key_id)
            await postgres.execute(_ADD_SECRET, key_id, new.hash)
            await _audit(postgres, caller, AuditAction.KEY_ROTATED, key)
        return key, new

    async def revoke(self, key_id: str, caller: Caller, *, keep_admin: bool) -> None:
        """Revoke a key for good. Revoking it again changes nothing.

        Args:
            keep_admin: Refuse to revoke an admin key where no other one opens all that it does.

        Raises:
            NoSuchKeyError: There is none, or the caller may not see it.
            LastAdminKeyError: It is to be kept.
        """
        async with connection(self._pool) as postgres, postgres.transaction():
            await _begin_change(postgres, caller)
            key = await _find_visible(postgres, key_id, caller)
            if key.revoked_at is not None:
                return
            if keep_admin:
                await _check_not_last_admin(postgres, key)
            await postgres.execute("UPDATE api_keys SET revoked_at = clock_timestamp() WHERE id = $1", key_id)
            await _audit(postgres, caller, AuditAction.KEY_REVOKED, key)


async def _find(postgres: PoolConnectionProxy, key_ids: Sequence[str]) -> dict[str, StoredKey]:
    rows = await postgres.fetch(_FIND, key_ids)
    return {row["id"]: StoredKey(_key(row), _secrets(row)) for row in rows}


async def _begin_change(postgres: PoolConnectionProxy, caller: Caller) -> None:
    """Wait for other changes to keys, and see that the caller's key is valid now: it was looked up seconds ago.

    Raises:
        UnauthorizedError: It is not, so that a leaked key that was just revoked or rotated can make no other one.
    """
    await postgres.execute("SELECT pg_advisory_xact_lock($1)", _CHANGES_LOCK)
    if caller.key is not None:
        stored = (await _find(postgres, [caller.key.id])).get(caller.key.id)
        if stored is None or not stored.is_valid_with(caller.secret_hash or b"", datetime.now(UTC)):
            raise UnauthorizedError


async def _find_visible(postgres: PoolConnectionProxy, key_id: str, caller: Caller) -> ApiKey:
    """Return a key that the caller may see.

    Raises:
        NoSuchKeyError: There is none.
    """
    row = await postgres.fetchrow(_KEY, key_id) if is_key_id(key_id) else None
    if row is None or not caller.covers(_key(row).dbs):
        raise NoSuchKeyError(f"no key {key_id}")
    return _key(row)


async def _check_room(postgres: PoolConnectionProxy, key_id: str) -> None:
    """Refuse yet another secret of a key that has many valid ones.

    Raises:
        TooManySecretsError: It has as many as it may; the error says when the first of them ends.
    """
    ends = [row["expires_at"] for row in await postgres.fetch(_VALID_SECRETS, key_id)]
    if len(ends) >= MAX_SECRETS:
        first = min(ends)
        raise TooManySecretsError(
            f"{len(ends)} secrets of this key are valid already, the first of them until "
            f"{first.isoformat(timespec='seconds')}; with an overlap of 0 none of them would be",
            retry_after=max(1, math.ceil((first - datetime.now(UTC)).total_seconds())),
        )


async def _check_not_last_admin(postgres: PoolConnectionProxy, key: ApiKey) -> None:
    """Refuse where nobody could take the place of an admin key.

    Raises:
        LastAdminKeyError: No other valid admin key opens all dbs that this one does.
    """
    now = datetime.now(UTC)
    if key.role is not Role.ADMIN or not key.is_valid(now):
        return
    others = [_key(row) for row in await postgres.fetch(_OTHER_ADMINS, key.id)]
    if not any(other.is_valid(now) and other.covers(key.dbs) for other in others):
        raise LastAdminKeyError


async def _audit(postgres: PoolConnectionProxy, caller: Caller, action: AuditAction, key: ApiKey) -> None:
    """Write an entry for each db of a key."""
    dbs: Iterable[str | None] = (None,) if key.dbs is None else key.dbs
    for db in dbs:
        await write_audit(postgres, caller, action, db, key.id)


_COLUMNS = """
    id, number, name, role, dbs, created_at, created_by, expires_at, last_used_at, revoked_at, requests_per_second
"""

_KEY = f"SELECT {_COLUMNS} FROM api_keys WHERE id = $1"  # noqa: S608 - a constant

_FIND = f"""
    SELECT {_COLUMNS}, ARRAY(
        SELECT hash FROM api_key_secrets WHERE key_id = api_keys.id ORDER BY api_key_secrets.id
    ) AS hashes, ARRAY(
        SELECT expires_at FROM api_key_secrets WHERE key_id = api_keys.id ORDER BY api_key_secrets.id
    ) AS ends
    FROM api_keys WHERE id = ANY($1::text[])
"""  # noqa: S608 - a constant

_NOTE_USE = "UPDATE api_keys SET last_used_at = greatest(last_used_at, $2) WHERE id = $1"

_COUNT_EXPIRING = """
    SELECT count(*) FROM api_keys
    WHERE revoked_at IS NULL AND expires_at > clock_timestamp() AND expires_at <= clock_timestamp() + $1::interval
"""

_PAGE = f"""
    SELECT {_COLUMNS} FROM api_keys
    WHERE ($1::text[] IS NULL OR dbs <@ $1) AND number < coalesce($2::bigint, 9223372036854775807)
    ORDER BY number DESC LIMIT $3
"""  # noqa: S608 - a constant

_CREATE = f"""
    INSERT INTO api_keys (id, name, role, dbs, created_by, expires_at, requests_per_second)
    VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING {_COLUMNS}
"""  # noqa: S608 - a constant

_ADD_SECRET = "INSERT INTO api_key_secrets (key_id, hash) VALUES ($1, $2)"  # noqa: S105 - no password

# What has ended is kept until then, so that the log can tell an old secret from one that never was.
_EXPIRE_SECRETS = """
    WITH dropped AS (DELETE FROM api_key_secrets WHERE key_id = $1 AND expires_at <= clock_timestamp())
    UPDATE api_key_secrets
    SET expires_at = least(coalesce(expires_at, 'infinity'), clock_timestamp() + $2::interval)
    WHERE key_id = $1 AND (expires_at IS NULL OR expires_at > clock_timestamp())
"""

_VALID_SECRETS = "SELECT expires_at FROM api_key_secrets WHERE key_id = $1 AND expires_at > clock_timestamp()"

_OTHER_ADMINS = f"""
    SELECT {_COLUMNS} FROM api_keys WHERE role = 'admin' AND revoked_at IS NULL AND id <> $1
"""  # noqa: S608 - a constant


def _key(row: Record) -> ApiKey:
    values = {name: row[name] for name in ApiKey.__struct_fields__}
    return ApiKey(**values | {"role": Role(row["role"]), "dbs": None if row["dbs"] is None else tuple(row["dbs"])})


def _secrets(row: Record) -> tuple[KeySecret, ...]:
    return tuple(KeySecret(hashed, ends) for hashed, ends in zip(row["hashes"], row["ends"], strict=True))

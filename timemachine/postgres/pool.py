"""The door to Postgres: pool and connections."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import asyncpg

from timemachine import metrics
from timemachine.clean_up import clean_up
from timemachine.domain.errors import SlowStatementError, UnavailableError
from timemachine.outages import OutageLog
from timemachine.postgres.dsn import Addresses, left_out, read_dsn
from timemachine.settings import Settings

log = logging.getLogger(__name__)

Pool = asyncpg.Pool

STATEMENT_TIMEOUT = 3.0
"""Seconds that Postgres may take for one statement, and for a connect."""

ANSWER_LIMIT = 4.0
"""Seconds that we wait for Postgres in all, for a free connection and the statement on it."""


_OUTAGES = OutageLog("Postgres does not answer")


@asynccontextmanager
async def open_pool(settings: Settings) -> AsyncIterator[asyncpg.Pool]:
    """Open a pool that connects when it is first used, and again by itself after the database was away.

    Raises:
        SettingsError: No `TIMEMACHINE_POSTGRES_DSN`, or not one that can be read.
    """
    dsn = read_dsn(settings)
    if options := left_out(settings.postgres_dsn or ""):
        log.info(
            "options that asyncpg does not know are left out of TIMEMACHINE_POSTGRES_DSN", extra={"options": options}
        )
    pool = await asyncpg.create_pool(
        dsn.text,
        connect=partial(_connect_for_pool, dsn.addresses),
        min_size=0,
        max_size=settings.postgres_pool_size,
        # Nothing of ours changes what a connection is set to, so that there is nothing to undo at its return.
        reset=_leave_as_it_is,
        timeout=STATEMENT_TIMEOUT,
        command_timeout=STATEMENT_TIMEOUT,
        **_of_sessions(settings),
    )
    try:
        yield pool
    finally:
        await clean_up(asyncio.wait_for(pool.close(), STATEMENT_TIMEOUT), "close the pool of Postgres")


def _of_sessions(settings: Settings) -> dict[str, Any]:
    """Return how sessions are opened. In transaction mode each transaction may have another one, which others had."""
    own = {"application_name": "timemachine"}
    if settings.postgres_transaction_pooling:
        return {"server_settings": own, "statement_cache_size": 0}
    limits = {
        "statement_timeout": str(int(STATEMENT_TIMEOUT * 1000)),
        "idle_in_transaction_session_timeout": "10000",
        # What the ledger says is committed must be on the disk, whatever the server's default.
        "synchronous_commit": "on",
    }
    return {"server_settings": own | limits}


async def _leave_as_it_is(_: asyncpg.Connection) -> None:
    """Do nothing, in place of the query that asyncpg sends whenever a connection is given back."""


async def _connect_for_pool(addresses: Addresses, text: str, **how: Any) -> asyncpg.Connection:
    """Connect for the pool, whose users are not to blame for what the server refuses a session for.

    As an option of the DSN that it does not know, or a value that it does not take.

    Raises:
        ConnectionRefusedError: The server refuses the session.
    """
    try:
        return await _connect(addresses, text, **how)
    except asyncpg.PostgresError as error:
        raise ConnectionRefusedError(f"the session is refused: {type(error).__name__}: {error}") from error


async def _connect(
    addresses: Addresses,
    text: str,
    *,
    timeout: float,  # noqa: ASYNC109 - of each attempt, as asyncpg calls it
    **how: Any,
) -> asyncpg.Connection:
    """Connect to the first address that can be used, each with its share of the time.

    asyncpg's own limit is for all of them together: a host that does not answer at all, as one without power, would
    hide those after it.
    """
    *others, last = addresses
    how["timeout"] = timeout / len(addresses)
    for host, port in others:
        with suppress(*_NEXT):
            return await asyncpg.connect(text, host=host, port=port, **how)
    return await asyncpg.connect(text, host=last[0], port=last[1], **how)


# After these libpq asks the next host, too.
_NEXT = (OSError, TimeoutError, asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched)


# A session that was ended; a server or a pooler that starts, shuts down, is full, has lost its disk, was made read-only
# or a replica, lets us not in, or is in trouble itself; a lost race for a lock; what the setup of this version has not
# made yet, or makes in this moment; and, of a pooler in transaction mode that the settings do not know of, a statement
# prepared in another session.
_PASSING = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.PostgresSystemError,
    asyncpg.InternalServerError,
    asyncpg.UnknownPostgresError,
    asyncpg.ConfigFileError,
    asyncpg.SnapshotTooOldError,
    asyncpg.InvalidTransactionStateError,
    asyncpg.TransactionRollbackError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InvalidSchemaNameError,
    asyncpg.FeatureNotSupportedError,
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedFunctionError,
    asyncpg.UndefinedObjectError,
    asyncpg.InvalidSQLStatementNameError,
    asyncpg.DuplicatePreparedStatementError,
)

# What asyncpg itself raises: of the network; and of sessions that end, which its own state may not be ready for.
_AWAY = (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError)


@asynccontextmanager
async def connection(pool: asyncpg.Pool, *, longer_by: float = 0.0) -> AsyncIterator[asyncpg.pool.PoolConnectionProxy]:
    """Acquire a connection, with every way in which Postgres can be away made one error, and its reason logged.

    Args:
        longer_by: Seconds to wait beyond `ANSWER_LIMIT`, where nobody waits for the answer.

    Raises:
        UnavailableError: Postgres is away. The message is the same whatever the reason, which may name machines and
            users.
    """
    asked_at = time.monotonic()
    acquired: asyncpg.pool.PoolConnectionProxy | None = None
    try:
        async with asyncio.timeout(ANSWER_LIMIT + longer_by), pool.acquire() as acquired:
            metrics.POOL_WAIT.record(time.monotonic() - asked_at)
            yield acquired
    except (*_AWAY, *_PASSING) as error:
        if acquired is None:
            metrics.POOL_WAIT.record(time.monotonic() - asked_at)
        if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
            # Another server is the primary now, or will be: what is connected stays connected to this one.
            await pool.expire_connections()
        metrics.POSTGRES_UNANSWERED.add()
        _OUTAGES.note(error)
        raise UnavailableError("Postgres does not answer") from error


async def delete(pool: asyncpg.Pool, statement: str, *arguments: object) -> int:
    """Run a DELETE, and return how many rows it removed.

    Raises:
        SlowStatementError: It took too long; nothing was removed.
        UnavailableError: Postgres does not answer.
    """
    # A busy pool must not take the statement's time, or nobody could tell that it is the statement that is too slow.
    async with connection(pool, longer_by=STATEMENT_TIMEOUT) as postgres:
        try:
            done: str = await postgres.execute(statement, *arguments)
        except (TimeoutError, asyncpg.QueryCanceledError) as error:
            raise SlowStatementError from error
    return int(done.rpartition(" ")[2])


# Rights and tables are looked at, and no row is: anybody may ask for it, and some tables are large.
PING = "SELECT FROM routes, api_keys, audit, events LIMIT 0"


async def ping(pool: asyncpg.Pool) -> None:
    """Find out whether Postgres answers what requests ask of it.

    Raises:
        UnavailableError: It does not, or has not the tables that they need.
    """
    async with connection(pool) as postgres:
        await postgres.fetch(PING)


@asynccontextmanager
async def session(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    """Connect for what needs its own session, outside of the pool and without its limits on time.

    Raises:
        UnavailableError: Postgres does not answer, or ends the session.
        SettingsError: No `TIMEMACHINE_POSTGRES_DSN`, or not one that can be read.
    """
    dsn = read_dsn(settings)
    try:
        # Nothing is kept prepared, for a pooler in transaction mode.
        own = await _connect(dsn.addresses, dsn.text, timeout=10, statement_cache_size=0)
    except _AWAY as error:
        raise UnavailableError(f"Postgres does not answer: {error}") from error
    try:
        yield own
    except _AWAY as error:
        raise UnavailableError(f"Postgres does not answer any more: {error}") from error
    finally:
        await clean_up(own.close(timeout=STATEMENT_TIMEOUT), "close a session of Postgres")

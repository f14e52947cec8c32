"""The log of attempts in Postgres: one row per request that was made, and how it ended."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated
from uuid import UUID

import msgspec
from asyncpg import Pool, Record
from msgspec import Meta

from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.jobs import EPOCH
from timemachine.postgres.pool import connection, delete

MAX_ANSWER = 1024
MAX_ERROR = 1000
MAX_DURATION = 2**31 - 1
"""Milliseconds that the column takes: 24 days, which a machine may be suspended for within an attempt."""

_COLUMNS = (
    "db, collection, job_id, route_id, run_id, message_id, attempt, started_at, duration_ms, status, kind, error, "
    "answer, worker"
)
ATTEMPT_COLUMNS = f"{_COLUMNS}, claim"
"""What `attempt_values` returns values of."""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One request to a receiver, and how it ended."""

    db: str
    collection: str
    job_id: str
    route_id: str
    run_id: str
    """The workflow's run, so that a redelivery is told from what was before."""
    message_id: str
    attempt: int
    """From 1, within the run."""
    started_at: datetime
    duration_ms: int
    status: int | None
    """None without an answer."""
    kind: AttemptKind
    error: str | None
    """None when the receiver took the job."""
    answer: bytes = b""
    """Its first KiB; more is cut off."""
    worker: str


_MICROSECOND = timedelta(microseconds=1)


class PagePosition(msgspec.Struct, frozen=True, array_like=True):
    """Where a page ended. Handed out as a cursor, so that what comes back may be anything."""

    at: Annotated[int, Meta(ge=0, le=(datetime(9999, 12, 31, tzinfo=UTC) - EPOCH) // _MICROSECOND)]
    """When its last attempt started, in microseconds since the epoch, as exact as Postgres keeps it."""
    id: Annotated[int, Meta(ge=0, le=2**63 - 1)]

    @property
    def started_at(self) -> datetime:
        """When its last attempt started."""
        return EPOCH + self.at * _MICROSECOND


class Page(msgspec.Struct, frozen=True):
    """Some attempts, the latest first, and where to go on; None at the end."""

    attempts: list[Attempt]
    next: PagePosition | None


class OutcomeFilter(StrEnum):
    """What attempts are asked for by."""

    TAKEN = "taken"
    FAILED = "failed"


class Success(msgspec.Struct, frozen=True, kw_only=True):
    """How the attempts on a route went."""

    attempts: int
    taken: int

    @property
    def rate(self) -> float | None:
        """The share that was taken; None without attempts."""
        return self.taken / self.attempts if self.attempts else None


class AttemptLog:
    """The attempts of every db. Each method raises UnavailableError when Postgres does not answer."""

    def __init__(self, pool: Pool) -> None:
        """Use the given pool, which the caller opens and closes."""
        self._pool = pool

    async def taken(self, run_id: str) -> Attempt | None:
        """Return the attempt by which a run's job was taken, if there is one."""
        async with connection(self._pool) as postgres:
            row = await postgres.fetchrow(_TAKEN, run_id)
        return _attempt(row) if row else None

    async def of_job(
        self, db: str, collection: str, job_id: str, *, limit: int, after: PagePosition | None = None
    ) -> Page:
        """Return attempts of a job, over all of its runs, the latest first.

        Args:
            after: Where the page before this one ended.
        """
        async with connection(self._pool) as postgres:
            rows = await postgres.fetch(_OF_JOB, db, collection, job_id, *_from(after), limit + 1)
        return _page(rows, limit)

    async def of_route(
        self,
        db: str,
        route_id: str,
        *,
        limit: int,
        after: PagePosition | None = None,
        outcome: OutcomeFilter | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Page:
        """Return attempts on a route, the latest first.

        Args:
            after: Where the page before this one ended.
            outcome: Only those that ended so.
            since: Only those that started then or later.
            until: Only those that started before.
        """
        async with connection(self._pool) as postgres:
            rows = await postgres.fetch(_OF_ROUTE[outcome], db, route_id, *_from(after), limit + 1, since, until)
        return _page(rows, limit)

    async def last_errors(self, db: str, runs: Iterable[tuple[str, str, str]]) -> dict[str, str]:
        """Return the error of each run's last attempt, by run id; nothing for a run that made none.

        Args:
            runs: Collection, job id and run id of each.
        """
        wanted = list(runs)
        columns = ([run[part] for run in wanted] for part in range(3))
        async with connection(self._pool) as postgres:
            rows = await postgres.fetch(_LAST_ERRORS, db, *columns)
        return {row["run_id"]: row["error"] for row in rows if row["error"] is not None}

    async def success(self, db: str, route_ids: Sequence[str], since: datetime) -> dict[str, Success]:
        """Return how the attempts on some routes went that started at a time or later, by route."""
        async with connection(self._pool) as postgres:
            rows = await postgres.fetch(_SUCCESS, db, route_ids, since)
        return {row["route_id"]: Success(attempts=row["taken"] + row["failed"], taken=row["taken"]) for row in rows}

    async def remove_before(self, at: datetime, limit: int) -> int:
        """Remove the oldest of the attempts that started before a time, at most `limit`, and return how many.

        Raises:
            SlowStatementError: There was no time for so many.
        """
        return await delete(self._pool, _REMOVE_BEFORE, at, limit)


_TAKEN = f"SELECT {_COLUMNS} FROM attempts WHERE run_id = $1 AND kind = 'taken' ORDER BY id LIMIT 1"  # noqa: S608

# By time and not by id alone, so that a window of time is a stretch of the index; the id tells equal times apart.
_OF_JOB = f"""
    SELECT id, {_COLUMNS} FROM attempts
    WHERE db = $1 AND collection = $2 AND job_id = $3
        AND (started_at, id) < (coalesce($4::timestamptz, 'infinity'), coalesce($5::bigint, 0))
    ORDER BY started_at DESC, id DESC LIMIT $6
"""  # noqa: S608 - a constant


def _of_route(*kinds: str) -> str:
    """Return the query for attempts on a route: of each kind the first ones by that kind's own index, then merged."""
    parts = (
        f"""
        (SELECT id, {_COLUMNS} FROM attempts
        WHERE db = $1 AND route_id = $2 AND {kind}
            AND (started_at, id) < (coalesce($3::timestamptz, 'infinity'), coalesce($4::bigint, 0))
            AND started_at >= coalesce($6::timestamptz, '-infinity')
            AND started_at < coalesce($7::timestamptz, 'infinity')
        ORDER BY started_at DESC, id DESC LIMIT $5)
        """  # noqa: S608 - constants
        for kind in kinds
    )
    merged = " UNION ALL ".join(parts)
    return f"SELECT * FROM ({merged}) AS merged ORDER BY started_at DESC, id DESC LIMIT $5"  # noqa: S608


_OF_ROUTE = {
    None: _of_route("kind = 'taken'", "kind <> 'taken'"),
    OutcomeFilter.TAKEN: _of_route("kind = 'taken'"),
    OutcomeFilter.FAILED: _of_route("kind <> 'taken'"),
}

_LAST_ERRORS = """
    SELECT wanted.run_id, last.error
    FROM unnest($2::text[], $3::text[], $4::text[]) AS wanted (collection, job_id, run_id)
    CROSS JOIN LATERAL (
        SELECT error FROM attempts
        WHERE db = $1 AND collection = wanted.collection AND job_id = wanted.job_id AND run_id = wanted.run_id
        ORDER BY started_at DESC, id DESC LIMIT 1
    ) AS last
"""

# Each kind has an index of its own, of which a stretch is counted.
_SUCCESS = """
    SELECT wanted.route_id, taken.count AS taken, failed.count AS failed
    FROM unnest($2::text[]) AS wanted (route_id)
    CROSS JOIN LATERAL (
        SELECT count(*) FROM attempts
        WHERE db = $1 AND attempts.route_id = wanted.route_id AND kind = 'taken' AND started_at >= $3
    ) AS taken
    CROSS JOIN LATERAL (
        SELECT count(*) FROM attempts
        WHERE db = $1 AND attempts.route_id = wanted.route_id AND kind <> 'taken' AND started_at >= $3
    ) AS failed
"""

_REMOVE_BEFORE = """
    WITH chosen AS (SELECT id FROM attempts WHERE started_at < $1 ORDER BY started_at LIMIT $2 FOR UPDATE SKIP LOCKED)
    DELETE FROM attempts USING chosen WHERE attempts.id = chosen.id
"""


def attempt_values(attempt: Attempt, claim: UUID) -> list[object]:
    """Return what a row of the log holds, in the order of `ATTEMPT_COLUMNS`.

    Args:
        claim: Of the attempt, by which it is logged once.
    """
    values = msgspec.structs.asdict(attempt) | {
        "error": storable(attempt.error) if attempt.error is not None else None,
        "answer": attempt.answer[:MAX_ANSWER],
        "worker": storable(attempt.worker),
        "duration_ms": min(attempt.duration_ms, MAX_DURATION),
    }
    return [*values.values(), claim]


def storable(text: str) -> str:
    """Return a text as Postgres takes it: without the null character and lone surrogates, and not endless."""
    return text[:MAX_ERROR].replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _from(after: PagePosition | None) -> tuple[datetime | None, int | None]:
    return (after.started_at, after.id) if after else (None, None)


def _page(rows: list[Record], limit: int) -> Page:
    """Return a page of the rows, of which one more than the limit was asked for to see whether there is a next one."""
    shown = rows[:limit]
    more = len(rows) > limit
    return Page([_attempt(row) for row in shown], _position(shown[-1]) if more else None)


def _position(row: Record) -> PagePosition:
    return PagePosition((row["started_at"] - EPOCH) // _MICROSECOND, row["id"])


def _attempt(row: Record) -> Attempt:
    values = {name: row[name] for name in Attempt.__struct_fields__} | {"kind": AttemptKind(row["kind"])}
    return Attempt(**values)

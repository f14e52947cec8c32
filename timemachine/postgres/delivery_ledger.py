"""The ledger in Postgres: for each run of a job one row, which decides what becomes of it.

Every attempt and every cancel is one of three conditional writes. Each may be repeated freely, which is the answer to
every lost answer. Who does not get `Begun` sends nothing. `docs/architecture.md` has the states and what each caller
does with each answer.
"""

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

import msgspec
from asyncpg import Pool, Record
from asyncpg.pool import PoolConnectionProxy
from msgspec.structs import replace

from timemachine import metrics
from timemachine.clock import boot_time
from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.errors import UnavailableError
from timemachine.domain.events import EventKind, JobFacts
from timemachine.domain.outcomes import DECIDED, AttemptResult, LedgerRow, RowState
from timemachine.domain.routes import RouteNews
from timemachine.postgres.attempt_log import ATTEMPT_COLUMNS, Attempt, attempt_values, storable
from timemachine.postgres.event_store import writing_event
from timemachine.postgres.pool import connection, delete
from timemachine.postgres.route_store import TARGET, RouteStore, Target, write_news

log = logging.getLogger(__name__)

BEGIN_TIME = 5.0
"""Seconds after the first call of `begin` within which an attempt has to have begun; it gives up after that."""

CLAIM_MARGIN = 10.0
"""Seconds for which a claim holds beyond the longest that its attempt can take: the time to begin it and as much again
to write its end."""

GRACE = 2.0
"""Seconds after which one who has seen an expired claim may take it over. A worker that lives, and could not reach
Postgres before, has written its end by then."""

END_RETRY = 0.5
"""Seconds after which an end that could not be written is written again. Well below `GRACE`."""

LOST_REASON = "an attempt was lost with its worker, and the receiver may have taken it; no other will be made"


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt may be made, by who holds the claim and by nobody else."""

    number: int
    """Of the attempt, from 1."""
    target: Target | None
    """Where it goes; None when there is no such route."""
    at: datetime
    """When it was begun, by the clock of Postgres, which all workers share."""
    _boot_time: float = msgspec.field(default_factory=boot_time)

    def now(self) -> datetime:
        """Return the time by the clock of Postgres; the worker's own may be wrong."""
        return self.at + timedelta(seconds=boot_time() - self._boot_time)


class RouteClosed(msgspec.Struct, frozen=True, kw_only=True):
    """No attempt may be made, because the route is or was paused or disabled."""

    reason: str
    """For a person to read."""
    attempts_made: int
    """Attempts made before, one that was lost with its worker among them."""
    holds: int
    """Number of the last hold that is noted. An attempt that was asked for without knowing of it is not begun."""
    is_over: bool = False
    """Whether the route is open, and the attempt was asked for without knowing of the last hold."""


class AttemptReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an attempt has come to, as `DeliveryLedger.end` writes it."""

    counts: bool
    """Whether it reached out to the receiver, or failed for good without that; else nothing is used up."""
    attempts: int = 0
    """Attempts made in all, this one included."""
    outcome: AttemptResult | None = None
    """How it ended; None for one that was not made."""
    wait: timedelta | None = None
    """Time until the next attempt; None when there is to be no other."""
    logged: Attempt | None = None
    """What the log of attempts keeps of it."""
    route_news: RouteNews | None = None
    """What it means for the route of `logged`."""
    failing_since: datetime | None = None
    """When the failures began that it may end: those that were there when it began, and no later ones."""


class DeliveryLedger:
    """The rows of every run. Each method raises UnavailableError when Postgres does not answer, and may be repeated.

    What may decide a run takes its `job`: where the run ends as taken or failed by that, the event is written with it.
    Without a job none is.
    """

    def __init__(self, pool: Pool, routes: RouteStore, *, attempt_time: float) -> None:
        """Use the given pool, which the caller opens and closes.

        Args:
            attempt_time: Seconds that an attempt may take whose route does not say.
        """
        self._pool = pool
        self._routes = routes
        self._attempt_time = attempt_time

    async def begin(
        self,
        run_id: str,
        db: str,
        route_id: str,
        claim: UUID,
        *,
        expired_claim: str | None = None,
        attempts_made: int = 0,
        holds: int | None = None,
        job: JobFacts | None = None,
    ) -> Begun | LedgerRow | RouteClosed:
        """Claim the next attempt of a run, and read where it goes, in one look.

        Args:
            claim: Of this attempt alone. The same one may begin again, when its answer was lost.
            expired_claim: An expired claim that the caller itself saw at least `GRACE` ago, to be taken over.
            attempts_made: Attempts made before there was a row.
            holds: Number of the last hold that was known when the attempt was asked for. The job may have been changed
                at each hold. None is not compared.

        Returns:
            Begun: The attempt may be made.
            LedgerRow: It may not, because of what the row says.
            RouteClosed: It may not, because the route is paused or disabled, or was so since the attempt was asked for.

        Raises:
            VaultError: The route's secrets cannot be read with the keys that are set. The attempt has been begun.
        """
        async with connection(self._pool) as postgres:
            answer = await postgres.fetchrow(
                _BEGIN,
                db,
                route_id,
                run_id,
                claim,
                expired_claim and UUID(expired_claim),
                self._attempt_time,
                attempts_made,
                holds,
                _encode_facts(job),
            )
        if answer is None:
            raise UnavailableError("Postgres returned no row")
        _count_if_decided(answer["run_state"])
        if answer["run_state"] == RowState.UNDER_WAY:
            target = await self._routes.open_target(db, route_id, answer) if answer["state"] else None
            return Begun(number=answer["made"] + 1, target=target, at=answer["now"])
        if answer["holds"] is not None:
            return _closed(answer)
        row = await self.find(run_id)
        if row and row.claim == str(claim) and row.state in (RowState.UNDER_WAY, RowState.CANCELLING):
            # Begun, without our knowing, before the route was closed.
            row = await self.end(run_id, claim, AttemptReport(counts=False), job=job)
        if row is None:
            raise UnavailableError("the ledger's row went away")
        is_free = row.state is RowState.WAITING or (row.is_expired and row.claim == expired_claim)
        if is_free and holds is not None and holds < row.holds:
            reason = "the route was closed since the attempt was asked for"
            made = row.attempts_made + row.has_lost_attempt
            return RouteClosed(reason=reason, attempts_made=made, holds=row.holds, is_over=True)
        return row

    async def outdate(self, run_id: str) -> LedgerRow:
        """Have no attempt begin any more that was asked for before, as a hold does, and return the row.

        One that was attempted, or is decided, stays as it is.
        """
        async with connection(self._pool) as postgres:
            row = await postgres.fetchrow(_OUTDATE, run_id)
        return await self._written_or_found(run_id, row)

    async def end(
        self, run_id: str, claim: UUID, end: AttemptReport, *, job: JobFacts | None = None
    ) -> LedgerRow | None:
        """Write what an attempt has come to, and return the row after it: that, and not the end, is what counts.

        That the receiver took the job wins over everything but a cancel that was answered, however late it is written.
        All else counts only while the row has this claim. What Postgres refuses of the receiver's words is left out.
        """
        try:
            return await self._write_end(run_id, claim, end, job)
        except UnavailableError:
            raise
        except Exception as error:
            metrics.WRITE_FAILURES.add("attempts")
            log.error("end of an attempt refused", extra={"reason": str(error), "run_id": run_id})
        try:
            return await self._write_end(run_id, claim, _without_words(end), job)
        except UnavailableError:
            raise
        except Exception as error:
            raise UnavailableError("Postgres refuses the end of an attempt") from error

    async def _write_end(self, run_id: str, claim: UUID, end: AttemptReport, job: JobFacts | None) -> LedgerRow | None:
        async with connection(self._pool) as postgres:
            if end.logged and end.route_news:
                # Who dies in between would leave a route as it is that nobody else may ever look at.
                async with postgres.transaction():
                    is_repeated = await postgres.fetchval(_IS_LOGGED, run_id, claim)
                    row = await _end(postgres, run_id, claim, end, job)
                    if not is_repeated:  # the answer to the first one was lost, and somebody may have resumed the route
                        await write_news(
                            postgres,
                            end.logged.db,
                            end.logged.route_id,
                            end.route_news,
                            failing_since=end.failing_since,
                        )
            else:
                row = await _end(postgres, run_id, claim, end, job)
        if row is None:
            return await self.find(run_id)
        _count_if_decided(row["run_state"])
        return _row(row)

    async def cancel(
        self, run_id: str, *, due: datetime, expired_claim: str | None = None, job: JobFacts | None = None
    ) -> LedgerRow:
        """Cancel a run, and return its row.

        While an attempt is under way the row says so; the wish is noted, no attempt begins any more, and to ask again
        tells how it ended. After an attempt was lost with its worker a run ends as failed, never as cancelled.

        Args:
            due: When the job is due. The row is kept until then at least.
            expired_claim: As for `begin`.
        """
        async with connection(self._pool) as postgres:
            row = await postgres.fetchrow(
                _CANCEL, run_id, due, expired_claim and UUID(expired_claim), _encode_facts(job)
            )
        if row:
            _count_if_decided(row["run_state"])
        return await self._written_or_found(run_id, row)

    async def _written_or_found(self, run_id: str, written: Record | None) -> LedgerRow:
        """Return the row as it was written, or as it is where there was nothing to write."""
        row = _row(written) if written else await self.find(run_id)
        if row is None:
            raise UnavailableError("the ledger's row went away")
        return row

    async def states(self, run_ids: Sequence[str]) -> dict[str, RowState]:
        """Return the state of each run's row, by the id of its first run; nothing of those that have none."""
        query = "SELECT run_id, state FROM delivery_ledger WHERE run_id = ANY($1)"
        async with connection(self._pool) as postgres:
            return {row["run_id"]: RowState(row["state"]) for row in await postgres.fetch(query, list(run_ids))}

    async def at_work(self, run_ids: Sequence[str], *, since: timedelta) -> set[str]:
        """Return those of some runs whose claim expires, or whose next attempt may begin, later than `since` ago."""
        query = "SELECT run_id FROM delivery_ledger WHERE run_id = ANY($1) AND at > clock_timestamp() - $2::interval"
        async with connection(self._pool) as postgres:
            return {row["run_id"] for row in await postgres.fetch(query, list(run_ids), since)}

    async def find(self, run_id: str) -> LedgerRow | None:
        """Return the row of a run; None when nobody has begun it, nor cancelled it."""
        async with connection(self._pool) as postgres:
            row = await postgres.fetchrow(f"SELECT {_ROW} FROM delivery_ledger AS run WHERE run_id = $1", run_id)  # noqa: S608
        return _row(row) if row else None

    async def remove_before(self, at: datetime, limit: int) -> int:
        """Remove rows of runs that were decided and due before a time, the oldest first, and return how many.

        Args:
            limit: The most that are removed.

        Raises:
            SlowStatementError: There was no time for so many.
        """
        return await delete(self._pool, _REMOVE_BEFORE, at, limit)


def _count_if_decided(written: str | None) -> None:
    """Count a run whose state was written by this very statement. One that was repeated, or came late, writes none."""
    if written in DECIDED:
        metrics.JOBS_ENDED.add("delivered" if written == RowState.TAKEN else written)


async def _end(
    postgres: PoolConnectionProxy, run_id: str, claim: UUID, end: AttemptReport, job: JobFacts | None
) -> Record | None:
    """Write an end, and return the row if that has changed it."""
    outcome = _encode_result(end.outcome) if end.outcome else None
    log_values = attempt_values(end.logged, claim) if end.logged else []
    facts = _encode_facts(job)
    if end.outcome and end.outcome.kind is AttemptKind.TAKEN:
        query = _END_TAKEN_LOGGED if log_values else _END_TAKEN
        return await postgres.fetchrow(query, run_id, claim, end.attempts, outcome, facts, *log_values)
    made = end.attempts if end.counts else None
    wait = end.wait if end.counts else timedelta(0)
    query = _END_LOGGED if log_values else _END
    return await postgres.fetchrow(query, run_id, claim, made, outcome, wait, facts, *log_values)


def _encode_facts(job: JobFacts | None) -> str | None:
    """Return a job's facts as Postgres takes them; None where no event tells of it."""
    return None if job is None or job.is_of_event else msgspec.json.encode(job).decode()


def _closed(answer: Record) -> RouteClosed:
    reason = f"the route is {answer['state']}" + (f": {answer['state_reason']}" if answer["state_reason"] else "")
    return RouteClosed(reason=reason, attempts_made=answer["held_made"], holds=answer["holds"])


def _row(row: Record) -> LedgerRow:
    return LedgerRow(
        state=RowState(row["run_state"]),
        claim=str(row["claim"]) if row["claim"] else None,
        seconds_left=row["left"].total_seconds(),
        attempts_made=row["made"],
        has_lost_attempt=row["doubt"],
        holds=row["holds"],
        end=msgspec.json.decode(row["outcome"], type=AttemptResult) if row["outcome"] else None,
    )


def _without_words(end: AttemptReport) -> AttemptReport:
    """Return an end with what it decides alone."""
    logged = replace(end.logged, error=end.logged.error and "?", answer=b"") if end.logged else None
    return replace(end, logged=logged, outcome=replace(end.outcome, reason=None) if end.outcome else None)


def _encode_result(end: AttemptResult) -> str:
    """Return an end as Postgres takes it, whatever the receiver said: one that it refuses would be tried for ever."""
    reason = storable(end.reason) if end.reason is not None else None
    return msgspec.json.encode(replace(end, reason=reason)).decode()


_LOST_OUTCOME = _encode_result(AttemptResult(number=0, kind=AttemptKind.LOST, reason=LOST_REASON, ended_at=0))

# `at`: when the claim expires of an attempt under way, or when the next attempt may begin of a run that waits. `made`:
# attempts whose end is known. `doubt`: an attempt was lost with its worker. `holds`: number of the last hold.
# `outcome`: the result of the last attempt.
_ROW = (
    "run.state AS run_state, run.claim, run.at - clock_timestamp() AS left, run.made, run.doubt, run.holds, run.outcome"
)


def _state_after_cancel(doubt: str) -> str:
    """Return what a cancel makes of a run: nobody may be told "cancelled" of one that a receiver may have taken."""
    return f"CASE WHEN {doubt} THEN 'failed' ELSE 'cancelled' END"


def _outcome_after_cancel(doubt: str) -> str:
    """Return the outcome of a run that a cancel ends."""
    return f"CASE WHEN {doubt} THEN '{_LOST_OUTCOME}'::jsonb ELSE run.outcome END"


def _may_take_over(claim: str) -> str:
    """Return whether the claim is one that the caller has seen expired before, and still is."""
    # Without a claim that was seen the comparison is null, and so would be what is computed with it.
    is_seen = f"coalesce(run.claim = {claim}, false) AND run.at <= clock_timestamp()"
    return f"(run.state IN ('under_way', 'cancelling') AND {is_seen})"


_BY_BEGIN, _BY_CANCEL = _may_take_over("$5::uuid"), _may_take_over("$3::uuid")


def _event_of(decided: str, job: str) -> str:
    """Return the statement that writes the event of a run that is decided by another statement.

    Args:
        decided: The other statement's name. It returns `run_state`, `made` and `outcome`.
        job: The parameter that holds the job's facts.
    """
    return writing_event(
        decided,
        kind=f"""CASE {decided}.run_state
            WHEN 'taken' THEN '{EventKind.JOB_DELIVERED}' WHEN 'failed' THEN '{EventKind.JOB_FAILED}'
        END""",
        db=f"{job}::jsonb ->> 'db'",
        route=f"{job}::jsonb ->> 'route'",
        what=f"""jsonb_build_object(
            'job', {job}::jsonb, 'attempts', {decided}.made, 'outcome', {decided}.outcome
        )""",
    )


def _with_event(statement: str, job: str, *, before: str = "") -> str:
    """Return a statement that decides a run, or may do so, together with the event of that."""
    return f"""
        WITH {before} decided AS ({statement}), event AS ({_event_of("decided", job)}) SELECT * FROM decided
    """  # noqa: S608 - constants


_KNOWS_HOLDS = "run.holds <= coalesce($8::int, run.holds)"

# $1 db, $2 route (both of TARGET), $3 run, $4 claim, $5 expired claim, $6 default time-out in seconds, $7 attempts made
# before, $8 holds that are known, $9 the job's facts. `(SELECT) AS one` gives one row even where there is no such
# route. Whether the route is open decides in one look about a row to be inserted and one to be updated; where it is
# closed the hold is noted, each under a number of its own.
_BEGIN = f"""
    WITH target AS ({TARGET}),
    begun AS (
        INSERT INTO delivery_ledger AS run (run_id, state, claim, at, made)
        SELECT $3, 'under_way', $4::uuid, clock_timestamp() + make_interval(
            secs => {CLAIM_MARGIN} + coalesce((target.route ->> 'timeout')::float8, $6::float8)
        ), $7::int
        FROM (SELECT) AS one LEFT JOIN target ON true
        WHERE target.state IS NULL OR target.state = 'active'
        ON CONFLICT (run_id) DO UPDATE SET
            state = CASE
                WHEN run.state = 'cancelling' THEN {_state_after_cancel(f"run.doubt OR {_BY_BEGIN}")}
                ELSE 'under_way'
            END,
            outcome = CASE
                WHEN run.state = 'cancelling' THEN {_outcome_after_cancel(f"run.doubt OR {_BY_BEGIN}")}
                ELSE run.outcome
            END,
            doubt = run.doubt OR {_BY_BEGIN},
            claim = CASE WHEN run.state = 'cancelling' THEN run.claim ELSE excluded.claim END,
            at = CASE WHEN run.state = 'under_way' AND run.claim = excluded.claim THEN run.at ELSE excluded.at END
        WHERE (run.state = 'waiting' AND run.at <= clock_timestamp() AND {_KNOWS_HOLDS})
            OR (run.state = 'under_way' AND (run.claim = excluded.claim OR ({_BY_BEGIN} AND {_KNOWS_HOLDS})))
            OR (run.state = 'cancelling' AND (run.claim = excluded.claim OR {_BY_BEGIN}))
        RETURNING run.state AS run_state, run.made, run.outcome
    ),
    event AS ({_event_of("begun", "$9")}),
    held AS (
        INSERT INTO delivery_ledger AS run (run_id, state, at, made, holds)
        SELECT $3, 'waiting', 'epoch', $7::int, coalesce($8::int, 0) + 1
        FROM target WHERE target.state <> 'active'
        ON CONFLICT (run_id) DO UPDATE SET holds = greatest(run.holds + 1, excluded.holds)
        WHERE run.state = 'waiting' OR {_BY_BEGIN}
        RETURNING run.holds, run.made + (run.doubt OR run.state <> 'waiting')::int AS held_made
    )
    SELECT begun.run_state, begun.made, held.*, target.*, clock_timestamp() AS now
    FROM (SELECT) AS one LEFT JOIN target ON true LEFT JOIN begun ON true LEFT JOIN held ON true
"""  # noqa: S608 - constants

# $1 run.
_OUTDATE = f"""
    INSERT INTO delivery_ledger AS run (run_id, state, at, made, holds) VALUES ($1, 'waiting', 'epoch', 0, 1)
    ON CONFLICT (run_id) DO UPDATE SET holds = run.holds + 1
    WHERE run.state = 'waiting' AND run.made = 0 AND NOT run.doubt
    RETURNING {_ROW}
"""  # noqa: S608 - constants

# $1 run, $2 claim, $3 attempts made, $4 outcome, $5 wait until the next attempt (null: there is none), $6 the job's
# facts; then the log's.
_FAIL = f"""
    UPDATE delivery_ledger AS run SET
        state = CASE
            WHEN run.state = 'cancelling' THEN {_state_after_cancel("run.doubt")}
            WHEN $5::interval IS NULL THEN 'failed'
            ELSE 'waiting'
        END,
        at = clock_timestamp() + coalesce($5::interval, '0'),
        made = coalesce($3::int, run.made),
        outcome = CASE
            WHEN run.state = 'cancelling' AND run.doubt THEN '{_LOST_OUTCOME}'::jsonb
            ELSE coalesce($4::jsonb, run.outcome)
        END
    WHERE run.run_id = $1 AND run.claim = $2::uuid AND run.state IN ('under_way', 'cancelling')
    RETURNING {_ROW}
"""  # noqa: S608 - constants


def _logged(first: int) -> str:
    values = ", ".join(f"${first + at}" for at in range(len(ATTEMPT_COLUMNS.split(", "))))
    return f"""
        logged AS (
            INSERT INTO attempts ({ATTEMPT_COLUMNS}) VALUES ({values}) ON CONFLICT (claim) DO NOTHING
        )
    """  # noqa: S608 - constants


_END, _END_LOGGED = _with_event(_FAIL, "$6"), _with_event(_FAIL, "$6", before=f"{_logged(7)},")

# $1 run, $2 claim, $3 attempts made, $4 outcome, $5 the job's facts; then the log's.
_TAKE = f"""
    INSERT INTO delivery_ledger AS run (run_id, state, claim, at, made, outcome)
    VALUES ($1, 'taken', $2::uuid, clock_timestamp(), $3::int, $4::jsonb)
    ON CONFLICT (run_id) DO UPDATE SET
        state = 'taken', at = excluded.at, made = greatest(run.made, excluded.made), outcome = excluded.outcome
    WHERE run.state NOT IN ('taken', 'cancelled')
    RETURNING {_ROW}
"""  # noqa: S608 - constants

_END_TAKEN, _END_TAKEN_LOGGED = _with_event(_TAKE, "$5"), _with_event(_TAKE, "$5", before=f"{_logged(6)},")

# $1 run, $2 when the job is due, $3 expired claim, $4 the job's facts.
_CANCEL_UNDECIDED = f"""
    INSERT INTO delivery_ledger AS run (run_id, state, at, made) VALUES ($1, 'cancelled', $2, 0)
    ON CONFLICT (run_id) DO UPDATE SET
        state = CASE
            WHEN run.state = 'waiting' THEN {_state_after_cancel("run.doubt")}
            WHEN {_BY_CANCEL} THEN 'failed'
            ELSE 'cancelling'
        END,
        at = CASE
            WHEN run.state = 'waiting' OR {_BY_CANCEL} THEN greatest(run.at, excluded.at, clock_timestamp())
            ELSE run.at
        END,
        outcome = {_outcome_after_cancel(f"{_BY_CANCEL} OR (run.state = 'waiting' AND run.doubt)")},
        doubt = run.doubt OR {_BY_CANCEL}
    WHERE run.state IN ('waiting', 'under_way') OR (run.state = 'cancelling' AND {_BY_CANCEL})
    RETURNING {_ROW}
"""  # noqa: S608 - constants

_CANCEL = _with_event(_CANCEL_UNDECIDED, "$4")

_IS_LOGGED = "SELECT true FROM attempts WHERE run_id = $1 AND claim = $2"

_REMOVE_BEFORE = """
    WITH chosen AS (
        SELECT run_id FROM delivery_ledger
        WHERE created_at < $1 AND at < $1 AND state IN ('taken', 'failed', 'cancelled')
        ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED
    )
    DELETE FROM delivery_ledger USING chosen WHERE delivery_ledger.run_id = chosen.run_id
"""

"""The ledger in Postgres: each statement in each state of a row, against its rules in plain Python."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path

import asyncpg
import msgspec
import psutil
import pytest
from asyncpg import Pool
from msgspec.structs import replace

from devstack.postgres import embedded_postgres
from tests.support import ledger_rules as rules
from tests.support.cases import each_case
from tests.support.ledger_rules import At, Row
from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.errors import UnavailableError
from timemachine.domain.events import JobFacts
from timemachine.domain.outcomes import (
    AttemptResult,
    Cancelled,
    Deferred,
    Delivered,
    Failed,
    LedgerRow,
    Outcome,
    RowState,
    Unknown,
    outcome_of,
)
from timemachine.domain.routes import RestRoute, RouteState
from timemachine.postgres.attempt_log import Attempt
from timemachine.postgres.delivery_ledger import (
    CLAIM_MARGIN,
    LOST_REASON,
    AttemptReport,
    Begun,
    DeliveryLedger,
    RouteClosed,
)
from timemachine.postgres.migrate import migrate
from timemachine.postgres.pool import open_pool
from timemachine.postgres.route_store import RouteStore
from timemachine.settings import Settings
from timemachine.vault import Vault, new_key

ATTEMPT_TIME = 15.0
WAIT = timedelta(hours=1)
YEARS = 1e9
"""Seconds."""
DUE = datetime(2026, 1, 1, tzinfo=UTC)
NUMBER = 3
"""Of the attempt that the tests end; two were made before."""

MINE, OTHERS = str(uuid.uuid4()), str(uuid.uuid4())
ENDS = {
    "taken": AttemptResult(number=NUMBER, kind=AttemptKind.TAKEN, status=204, ended_at=1, late_ms=2),
    "again": AttemptResult(
        number=NUMBER, kind=AttemptKind.REFUSED, status=503, reason="503 from the receiver", ended_at=1
    ),
    "final": AttemptResult(number=NUMBER, kind=AttemptKind.EXPIRED, reason="the deadline has passed", ended_at=1),
    "lost": AttemptResult(number=0, kind=AttemptKind.LOST, reason=LOST_REASON, ended_at=0),
    "before": AttemptResult(number=NUMBER - 1, kind=AttemptKind.TIMEOUT, reason="no answer", ended_at=1),
}


@pytest.fixture(scope="module")
async def pool(settings: Settings) -> AsyncIterator[Pool]:
    async with open_pool(settings) as pool:
        yield pool


@pytest.fixture
async def store(pool: Pool, settings: Settings, db: str) -> RouteStore:
    store = RouteStore(pool, Vault(settings))
    await store.add(db, RestRoute(id="hook", webhook_url="http://x"), {})
    return store


class Run:
    """One run of a job, in the ledger."""

    def __init__(self, pool: Pool, store: RouteStore, db: str) -> None:
        self.ledger = DeliveryLedger(pool, store, attempt_time=ATTEMPT_TIME)
        self.pool, self.id, self.db = pool, uuid.uuid4().hex, db

    async def begin(
        self,
        claim: str = MINE,
        *,
        expired_claim: str | None = None,
        route: str = "hook",
        attempts_made: int = 0,
        holds: int | None = None,
    ) -> Begun | LedgerRow | RouteClosed:
        return await self.ledger.begin(
            self.id,
            self.db,
            route,
            uuid.UUID(claim),
            expired_claim=expired_claim,
            attempts_made=attempts_made,
            holds=holds,
        )

    async def end(self, how: str, claim: str = MINE) -> LedgerRow | None:
        return await self.ledger.end(self.id, uuid.UUID(claim), an_end(self, how))

    async def cancel(self, *, expired_claim: str | None = None) -> LedgerRow:
        return await self.ledger.cancel(self.id, due=DUE, expired_claim=expired_claim)

    async def put(self, row: Row | None) -> datetime | None:
        """Go on with another run that has a given row, and return the row's time."""
        self.id = uuid.uuid4().hex
        # In truth no two runs have the same claims.
        await self.pool.execute("DELETE FROM attempts WHERE claim = ANY($1)", [uuid.UUID(MINE), uuid.UUID(OTHERS)])
        if row is None:
            return None
        at = datetime.now(UTC) + (WAIT if row.at is At.FUTURE else -WAIT)
        end = msgspec.json.encode(ENDS[row.end]).decode() if row.end else None
        await self.pool.execute(
            "INSERT INTO delivery_ledger (run_id, state, claim, at, made, doubt, outcome, holds) "
            "VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            *(self.id, row.state, row.claim and uuid.UUID(row.claim), at, row.attempts_made, row.has_lost_attempt, end),
            row.holds,
        )
        return await self.at()

    async def at(self) -> datetime:
        at = await self.pool.fetchval("SELECT at FROM delivery_ledger WHERE run_id = $1", self.id)
        assert isinstance(at, datetime)
        return at

    async def expire(self) -> None:
        """Let the row's time pass: of the claim, or of the next attempt."""
        await self.pool.execute(
            "UPDATE delivery_ledger SET at = clock_timestamp() - interval '1 s' WHERE run_id = $1", self.id
        )

    async def find(self) -> LedgerRow | None:
        return await self.ledger.find(self.id)

    async def log(self) -> list[tuple[int, str]]:
        """Number and kind of each attempt in the log."""
        rows = await self.pool.fetch("SELECT attempt, kind FROM attempts WHERE run_id = $1 ORDER BY id", self.id)
        return [(row["attempt"], row["kind"]) for row in rows]


@pytest.fixture
def run(pool: Pool, store: RouteStore, db: str) -> Run:
    return Run(pool, store, db)


def an_end(run: Run, how: str) -> AttemptReport:
    if how == "not made":
        return AttemptReport(counts=False)
    end = ENDS[how]
    logged = None if how == "final" else logged_of(run, end)
    return AttemptReport(
        counts=True, attempts=NUMBER, outcome=end, wait=WAIT if how == "again" else None, logged=logged
    )


def logged_of(run: Run, end: AttemptResult) -> Attempt:
    return Attempt(
        db=run.db,
        collection="c",
        job_id="j",
        route_id="hook",
        run_id=run.id,
        message_id="msg_1",
        attempt=end.number,
        started_at=datetime.now(UTC),
        duration_ms=1,
        status=end.status,
        kind=end.kind,
        error=end.reason,
        worker="w",
    )


def every_row() -> Iterator[Row | None]:
    """Every row that matters: no row, then each state, its time past or not, with and without doubt."""
    yield None
    for state, at, doubt in product(RowState, (At.PAST, At.FUTURE), (False, True)):
        yield Row(str(state), OTHERS, at, NUMBER - 1, doubt, "before")
    # By a cancel before anybody began.
    yield Row(rules.CANCELLED, None, At.PAST, 0)


ROWS = [*every_row()]


def name_of(row: Row | None) -> str:
    return f"{row.state} {row.at}{' doubt' if row.has_lost_attempt else ''}" if row else "none"


def check_answer(answer: LedgerRow | None, expected: Row | None) -> None:
    said = answer and (answer.state, answer.claim, answer.attempts_made, answer.has_lost_attempt, answer.holds)
    assert said == (
        expected and (expected.state, expected.claim, expected.attempts_made, expected.has_lost_attempt, expected.holds)
    )


async def check_row(run: Run, expected: Row | None, before: datetime | None) -> None:
    """Compare the row in Postgres with the one that the rules give."""
    found = await run.find()
    assert (found is None) == (expected is None)
    if found is None or expected is None:
        return
    assert found.state == expected.state
    assert found.claim == expected.claim
    assert (found.attempts_made, found.has_lost_attempt) == (expected.attempts_made, expected.has_lost_attempt)
    assert found.holds == expected.holds
    assert found.end == (ENDS[expected.end] if expected.end else None)
    lasts = {At.CLAIM: ATTEMPT_TIME + CLAIM_MARGIN, At.NOW: 0, At.NEXT: WAIT.total_seconds()}
    if expected.at in lasts:
        assert found.seconds_left == pytest.approx(lasts[expected.at], abs=10)
    elif expected.at is At.LONG_AGO:
        assert found.seconds_left < -YEARS
    elif expected.at is not At.ANY:
        assert await run.at() == (DUE if expected.at is At.DUE else before)


SIGHTED = [None, OTHERS, str(uuid.uuid4())]

CLAIMS = [*((MINE, expired_claim) for expired_claim in SIGHTED), (OTHERS, None), (OTHERS, SIGHTED[2])]
"""Who begins, and whose claim he has seen expired: nobody takes his own over."""

HOLDS = [(0, None), (0, 0), (2, None), (2, 1), (2, 2)]
"""Holds that the row has, and those that are known to who begins."""


@pytest.mark.parametrize(("noted", "known"), HOLDS)
@each_case("row", ROWS, ids=name_of)
async def test_begin(run: Run, row: Row | None, noted: int, known: int | None) -> None:
    row = row and replace(row, holds=noted)
    for claim, expired_claim in CLAIMS:
        before = await run.put(row)
        expected, may = rules.begin(row, claim, expired_claim, holds=known)

        answer = await run.begin(claim, expired_claim=expired_claim, holds=known)

        await check_row(run, expected, before)
        match answer:
            case Begun():
                assert may
                assert answer.number == expected.attempts_made + 1
                assert answer.target
                assert answer.target.route.id == "hook"
            case RouteClosed():
                assert not may
                assert (answer.is_over, answer.holds, known) == (True, 2, 1)
                assert rules.begin(row, claim, expired_claim)[1] or expected.at is At.FUTURE
            case LedgerRow():
                assert not may
                assert known != 1 or expected.state != rules.WAITING, "outdated, and not told so"
                check_answer(answer, expected)


@pytest.mark.parametrize(("noted", "known"), HOLDS)
@each_case("row", ROWS, ids=name_of)
async def test_begin_on_a_route_that_is_closed(
    run: Run, store: RouteStore, row: Row | None, noted: int, known: int | None
) -> None:
    await store.set_state(run.db, "hook", RouteState.PAUSED)
    row = row and replace(row, holds=noted)
    for claim, expired_claim in CLAIMS:
        before = await run.put(row)
        expected, is_held = rules.begin_on_closed(row, claim, expired_claim, holds=known)

        answer = await run.begin(claim, expired_claim=expired_claim, holds=known)

        await check_row(run, expected, before)
        if is_held:
            assert isinstance(answer, RouteClosed)
            assert (answer.is_over, answer.holds) == (False, expected.holds)
        elif expected.state == rules.WAITING and known == 1:
            assert isinstance(answer, RouteClosed), "given back, and outdated"
            assert (answer.is_over, answer.holds) == (True, noted)
        else:
            assert isinstance(answer, LedgerRow), "what is decided or under way is said, whatever the route"
            check_answer(answer, expected)


@each_case("row", ROWS, ids=name_of)
async def test_cancel(run: Run, row: Row | None) -> None:
    for expired_claim in SIGHTED:
        before = await run.put(row)
        expected = rules.cancel(row, expired_claim)

        check_answer(await run.cancel(expired_claim=expired_claim), expected)

        await check_row(run, expected, before)
        again = rules.cancel(expected, expired_claim)
        check_answer(await run.cancel(expired_claim=expired_claim), again)
        await check_row(run, again, await run.at())


@each_case("row", ROWS, ids=name_of)
async def test_end(run: Run, row: Row | None) -> None:
    for claim, how in product((OTHERS, MINE), ("taken", "again", "final", "not made")):
        before = await run.put(row)
        expected = rules.end(row, claim, how, NUMBER)

        check_answer(await run.end(how, claim), expected)

        await check_row(run, expected, before)
        # It may be repeated freely, and is logged once, also by a claim that is no longer the row's.
        check_answer(await run.end(how, claim), expected)
        await check_row(run, expected and replace(expected, at=At.ANY), None)
        assert await run.log() == ([] if how in ("not made", "final") else [(NUMBER, str(ENDS[how].kind))])


async def test_a_job_of_many_statements(run: Run) -> None:
    """Begun, failed, begun by another one, cancelled meanwhile."""
    begun = await run.begin(MINE)
    assert isinstance(begun, Begun)
    refused = await run.begin(OTHERS)
    assert isinstance(refused, LedgerRow)
    assert refused.state is RowState.UNDER_WAY
    assert not refused.is_expired
    await run.end("again", MINE)
    early = await run.begin(OTHERS)
    assert isinstance(early, LedgerRow)
    assert early.state is RowState.WAITING
    await run.expire()
    begun = await run.begin(OTHERS)
    assert isinstance(begun, Begun)
    assert begun.number == NUMBER + 1
    assert (await run.cancel()).state is RowState.CANCELLING
    ended = await run.end("not made", OTHERS)
    assert ended
    assert ended.state is RowState.CANCELLED


async def test_attempts_made_before_there_was_a_row_count(run: Run) -> None:
    begun = await run.begin(attempts_made=4)
    assert isinstance(begun, Begun)
    assert begun.number == 5
    await run.end("not made")
    begun = await run.begin(attempts_made=0)
    assert isinstance(begun, Begun)
    assert begun.number == 5


@pytest.mark.parametrize(("limit", "lasts"), [(None, ATTEMPT_TIME), (3.5, 3.5), (30, 30)])
async def test_a_claim_lasts_as_long_as_its_attempt_can_take(
    run: Run, store: RouteStore, limit: float | None, lasts: float
) -> None:
    await store.replace(run.db, RestRoute(id="hook", webhook_url="http://x", timeout=limit), {})
    for claim in (MINE, OTHERS):
        await run.begin(claim)
        row = await run.find()
        assert row
        assert lasts + CLAIM_MARGIN - 2 < row.seconds_left <= lasts + CLAIM_MARGIN
        await run.end("not made", claim)


async def test_to_begin_again_does_not_prolong_the_claim(run: Run) -> None:
    """Or one who saw the old claim expire would take over one that has not."""
    await run.begin()
    first = await run.at()
    assert isinstance(await run.begin(), Begun)
    assert await run.at() == first
    await run.expire()
    first = await run.at()
    assert isinstance(await run.begin(), Begun)
    assert await run.at() == first


@pytest.mark.parametrize("state", [RouteState.PAUSED, RouteState.DISABLED])
async def test_no_attempt_begins_on_a_route_that_is_closed(run: Run, store: RouteStore, state: RouteState) -> None:
    await store.set_state(run.db, "hook", state, "asked for")
    refused = await run.begin()
    assert isinstance(refused, RouteClosed)
    assert refused.reason == f"the route is {state}: asked for"
    row = await run.find()
    assert row
    assert row.is_unattempted


async def test_a_hold_is_noted_though_an_attempt_ends_while_the_row_is_looked_at(
    run: Run, store: RouteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def find_later(run_id: str) -> LedgerRow | None:
        monkeypatch.undo()
        await run.end("not made", OTHERS)
        return await run.ledger.find(run_id)

    await run.begin(OTHERS)
    await store.set_state(run.db, "hook", RouteState.PAUSED)
    monkeypatch.setattr(run.ledger, "find", find_later)

    assert isinstance(await run.begin(MINE, holds=0), LedgerRow), "not said to be held, of which nothing is noted"

    answer = await run.begin(MINE, holds=0)
    assert isinstance(answer, RouteClosed)
    assert answer.holds == 1
    row = await run.find()
    assert row
    assert row.holds == 1


async def test_a_held_run_that_is_cancelled_is_remembered_until_its_job_is_due(run: Run, store: RouteStore) -> None:
    """Its workflow may learn of the cancel only then."""
    await store.set_state(run.db, "hook", RouteState.PAUSED)
    await run.begin()
    due = datetime.now(UTC) + timedelta(days=400)

    assert (await run.ledger.cancel(run.id, due=due)).state is RowState.CANCELLED

    assert await run.at() == due


@pytest.mark.parametrize("is_lost", [False, True], ids=["no attempt", "attempt lost"])
async def test_the_cancel_of_a_run_that_was_held_for_long_is_not_old(
    run: Run, store: RouteStore, is_lost: bool
) -> None:
    """Its workflow, or a worker that is frozen, may not have learned of it yet."""
    if is_lost:
        await run.begin(OTHERS)
    await store.set_state(run.db, "hook", RouteState.PAUSED)
    held_since = datetime(2001, 1, 1, tzinfo=UTC)
    await run.begin(MINE)
    await run.pool.execute("UPDATE delivery_ledger SET created_at = $2, at = $2 WHERE run_id = $1", run.id, held_since)

    cancelled = await run.ledger.cancel(run.id, due=held_since, expired_claim=OTHERS if is_lost else None)
    await run.ledger.remove_before(held_since + timedelta(days=1), 10)

    assert cancelled.state is (RowState.FAILED if is_lost else RowState.CANCELLED)
    row = await run.find()
    assert row
    assert row.state is cancelled.state


async def test_an_attempt_on_a_route_that_is_gone_begins_without_a_target(run: Run) -> None:
    begun = await run.begin(route="none")
    assert isinstance(begun, Begun)
    assert (begun.number, begun.target) == (1, None)
    row = await run.find()
    assert row
    assert row.seconds_left == pytest.approx(ATTEMPT_TIME + CLAIM_MARGIN, abs=10)


async def test_of_many_at_once_one_begins(run: Run) -> None:
    answers = await asyncio.gather(*(run.begin(str(uuid.uuid4())) for _ in range(30)))
    assert sum(isinstance(answer, Begun) for answer in answers) == 1


async def test_of_an_attempt_and_a_cancel_at_once_one_wins(run: Run) -> None:
    for _ in range(30):
        run.id = uuid.uuid4().hex
        begun, cancelled = await asyncio.gather(run.begin(), run.cancel())
        assert isinstance(begun, Begun) == (cancelled.state is RowState.CANCELLING)
        assert isinstance(begun, Begun) or cancelled.state is RowState.CANCELLED


async def test_of_many_who_saw_a_claim_expire_one_takes_over(run: Run) -> None:
    await run.begin()
    await run.expire()
    answers = await asyncio.gather(*(run.begin(str(uuid.uuid4()), expired_claim=MINE) for _ in range(30)))
    assert sum(isinstance(answer, Begun) for answer in answers) == 1


@pytest.mark.parametrize("reason", ["a null \0 in a body", "half a \ud800 pair", "long " * 10_000])
async def test_what_a_receiver_says_cannot_keep_an_end_from_being_written(run: Run, reason: str) -> None:
    await run.begin()
    end = AttemptResult(number=1, kind=AttemptKind.REFUSED, reason=reason, ended_at=1)
    row = await run.ledger.end(run.id, uuid.UUID(MINE), AttemptReport(counts=True, attempts=1, outcome=end, wait=WAIT))
    assert row
    assert row.state is RowState.WAITING
    assert row.end
    assert row.end.reason
    assert row.end.reason[:5] == reason[:5]


async def test_a_job_can_be_taken_without_an_entry_in_the_log(run: Run) -> None:
    await run.begin()
    row = await run.ledger.end(run.id, uuid.UUID(MINE), AttemptReport(counts=True, attempts=1, outcome=ENDS["taken"]))
    assert row
    assert row.state is RowState.TAKEN
    assert await run.log() == []


async def test_only_rows_that_are_decided_and_were_due_are_removed(run: Run) -> None:
    old, later = datetime(2001, 1, 1, tzinfo=UTC), datetime(2001, 1, 2, tzinfo=UTC)

    async def put(state: str, made: datetime, at: datetime) -> str:
        run.id = uuid.uuid4().hex
        await run.pool.execute(
            "INSERT INTO delivery_ledger (run_id, state, at, made, created_at) VALUES ($1, $2, $3, 0, $4)",
            *(run.id, state, at, made),
        )
        return run.id

    decided = {rules.TAKEN, rules.FAILED, rules.CANCELLED}
    kept = [await put(state, old, old) for state in set(RowState) - decided]
    kept += [await put(state, old, later) for state in sorted(decided)]
    kept += [await put(state, later, old) for state in sorted(decided)]
    removed = [await put(state, old, old) for state in sorted(decided)]

    assert await run.ledger.remove_before(later, 2) == 2
    assert await run.ledger.remove_before(later, 2) == 1
    assert await run.ledger.remove_before(later, 2) == 0
    assert [run_id for run_id in removed if await run.ledger.find(run_id)] == []
    assert [run_id for run_id in kept if not await run.ledger.find(run_id)] == []


async def test_what_was_answered_outlives_a_crash_of_postgres(tmp_path: Path, db: str) -> None:
    async with embedded_postgres(tmp_path) as postgres:
        settings = Settings(postgres_dsn=postgres.dsn, secret_keys=new_key())
        await migrate(settings)
        async with open_pool(settings) as pool:
            run = Run(pool, RouteStore(pool, Vault(settings)), db)
            assert isinstance(await run.begin(), Begun)
            begun = run.id
            run.id = uuid.uuid4().hex
            assert (await run.cancel()).state is RowState.CANCELLED
            ended = uuid.uuid4().hex
            cancelled, run.id = run.id, ended
            await run.begin()
            await run.end("again")

            for process in [psutil.Process(postgres.part.pid), *psutil.Process(postgres.part.pid).children()]:
                process.kill()
            with pytest.raises(UnavailableError):
                await run.find()
            await postgres.part.restart()

            rows = [await run.ledger.find(run_id) for run_id in (begun, cancelled, ended)]
            assert [row and row.state for row in rows] == [RowState.UNDER_WAY, RowState.CANCELLED, RowState.WAITING]
            assert await run.log() == [(NUMBER, "refused")]
            run.id = begun
            refused = await run.begin(OTHERS)
            assert isinstance(refused, LedgerRow)
            assert refused.claim == MINE


def a_row(state: RowState, **fields: object) -> LedgerRow:
    row = LedgerRow(
        state=state,
        claim=MINE,
        seconds_left=60.0,
        attempts_made=2,
        has_lost_attempt=False,
        end=ENDS["before"],
    )
    return replace(row, **fields)


@pytest.mark.parametrize(
    ("row", "outcome"),
    [
        (a_row(RowState.WAITING), Failed(reason="no answer", attempts=2, next_at=61_000, next_in=60)),
        (a_row(RowState.WAITING, seconds_left=-5.0), Failed(reason="no answer", attempts=2, next_at=1_000, next_in=0)),
        (
            a_row(RowState.WAITING, attempts_made=0, end=None),
            Deferred(reason="no attempt was made yet", next_at=61_000, next_in=60),
        ),
        (a_row(RowState.UNDER_WAY), Unknown(reason="an attempt is under way", ask_after=2.0)),
        (a_row(RowState.CANCELLING, seconds_left=1.5), Unknown(reason="an attempt is under way", ask_after=1.5)),
        (a_row(RowState.UNDER_WAY, seconds_left=-9.0), Unknown(reason="an attempt is under way", ask_after=0.1)),
        (
            a_row(RowState.TAKEN, attempts_made=3, end=ENDS["taken"]),
            Delivered(status=204, attempts=3, delivered_at=1, late_ms=2),
        ),
        (a_row(RowState.FAILED), Failed(reason="no answer", attempts=2)),
        (a_row(RowState.FAILED, end=ENDS["lost"]), Failed(reason=LOST_REASON, attempts=2)),
        (a_row(RowState.FAILED, end=None), Failed(reason="not delivered", attempts=2)),
        (a_row(RowState.CANCELLED), Cancelled()),
        (a_row(RowState.CANCELLED, claim=None, end=None, attempts_made=0), Cancelled()),
    ],
)
def test_what_a_row_says_of_a_run(row: LedgerRow, outcome: Outcome) -> None:
    assert outcome_of(row, 1_000) == outcome
    assert row.is_decided == isinstance(outcome, Delivered | Cancelled) or outcome.__class__ is Failed


@pytest.mark.parametrize("state", RowState)
def test_a_claim_is_expired_only_while_an_attempt_is_under_way(state: RowState) -> None:
    under_way = state in (RowState.UNDER_WAY, RowState.CANCELLING)
    assert a_row(state, seconds_left=-0.1).is_expired == under_way
    assert not a_row(state, seconds_left=0.1).is_expired


def test_only_a_cancel_of_a_lost_attempt_is_in_doubt() -> None:
    assert a_row(RowState.FAILED, end=ENDS["lost"]).is_cancelled_in_doubt
    assert not a_row(RowState.FAILED, has_lost_attempt=True).is_cancelled_in_doubt
    assert not a_row(RowState.TAKEN, has_lost_attempt=True, end=ENDS["taken"]).is_cancelled_in_doubt


def refusing(run: Run, monkeypatch: pytest.MonkeyPatch, *errors: asyncpg.PostgresError) -> None:
    """Let Postgres refuse the ends of a run that are written first."""
    write, left = run.ledger._write_end, list(errors)

    async def write_end(run_id: str, claim: uuid.UUID, end: AttemptReport, job: JobFacts | None) -> LedgerRow | None:
        if left:
            raise left.pop(0)
        return await write(run_id, claim, end, job)

    monkeypatch.setattr(run.ledger, "_write_end", write_end)


@pytest.mark.parametrize(("how", "state"), [("taken", RowState.TAKEN), ("again", RowState.WAITING)])
async def test_an_end_that_is_refused_for_its_words_is_written_without_them(
    run: Run, monkeypatch: pytest.MonkeyPatch, how: str, state: RowState
) -> None:
    await run.put(None)
    await run.begin()
    refusing(run, monkeypatch, asyncpg.UntranslatableCharacterError("no equivalent in this encoding"))

    row = await run.end(how)

    assert row
    assert (row.state, row.attempts_made, row.end) == (state, NUMBER, replace(ENDS[how], reason=None))
    assert await run.log() == [(NUMBER, ENDS[how].kind)]


@pytest.mark.parametrize("error", [asyncpg.UntranslatableCharacterError, asyncpg.DiskFullError])
async def test_an_end_that_is_refused_whatever_it_says_is_to_be_repeated(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: type[asyncpg.PostgresError]
) -> None:
    await run.put(None)
    await run.begin()
    refusing(run, monkeypatch, error("refused"), error("refused"))

    with pytest.raises(UnavailableError):
        await run.end("taken")

    row = await run.end("taken")
    assert row
    assert row.state is RowState.TAKEN

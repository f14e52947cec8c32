"""Workers and clients who cancel, step by step and in any order, over a real Postgres, with faults between the steps.

Each step is one statement of the ledger, or one thing that happens to who calls it: a connection is cut before Postgres
has the statement or before its answer is back, a worker crashes or freezes, a claim expires. The route is closed and
opened meanwhile, and the job is changed while its workflow knows that it is held, or was reset. After each step the
promises hold.

What is taken for granted: a claim expires only when its worker is dead, frozen, or could not reach Postgres; and who
lives and reaches Postgres writes the end of its attempt before somebody else takes it over.
"""

import asyncio
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from typing import Any, TypeVar
from urllib.parse import urlsplit

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from msgspec import Struct
from msgspec.structs import replace

from tests.support.postgres_proxy import Cut, PostgresProxy
from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.errors import UnavailableError
from timemachine.domain.outcomes import AttemptResult, LedgerRow, RowState
from timemachine.domain.routes import RestRoute, RouteState
from timemachine.postgres.attempt_log import Attempt as Logged
from timemachine.postgres.delivery_ledger import AttemptReport, Begun, DeliveryLedger, RouteClosed
from timemachine.postgres.pool import open_pool
from timemachine.postgres.route_store import RouteStore
from timemachine.settings import Settings
from timemachine.vault import Vault

T = TypeVar("T")

ATTEMPTS = 3
"""That a job is given in all."""
WORKERS, CANCELLERS = 2, 2
FAR = timedelta(hours=1)
"""How long everything lasts that is not made to end: longer than any example takes."""
DB = "machine"
DECIDED = {RowState.TAKEN, RowState.FAILED, RowState.CANCELLED}
CLAIMED = {RowState.UNDER_WAY, RowState.CANCELLING}


class World:
    """What all examples share: an event loop, and a ledger behind a proxy that cuts."""

    def __init__(self, settings: Settings) -> None:
        self._loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()
        self.run(self._open(settings))

    async def _open(self, settings: Settings) -> None:
        dsn = urlsplit(settings.postgres_dsn or "")
        self.proxy = PostgresProxy(dsn.hostname or "", dsn.port or 0, "delivery_ledger")
        port = await self.proxy.start()
        self._stack.callback(self.proxy.stop)
        # Nothing here crashes Postgres, so that nothing has to wait for its disk.
        query = "sslmode=disable&synchronous_commit=off"
        address = dsn._replace(netloc=f"{dsn.netloc.rpartition(':')[0]}:{port}", query=query).geturl()
        pool = await self._stack.enter_async_context(open_pool(replace(settings, postgres_dsn=address)))
        store = RouteStore(pool, Vault(settings))
        await store.add(DB, RestRoute(id="hook", webhook_url="http://x"), {})
        self._cut_ledger = DeliveryLedger(pool, store, attempt_time=FAR.total_seconds())
        straight = replace(settings, postgres_dsn=dsn._replace(query=query).geturl())
        pool = await self._stack.enter_async_context(open_pool(straight))
        self.store = RouteStore(pool, Vault(settings))
        self._ledger = DeliveryLedger(pool, self.store, attempt_time=FAR.total_seconds())
        self.direct = await asyncpg.connect(settings.postgres_dsn, server_settings={"synchronous_commit": "off"})
        self._stack.push_async_callback(self.direct.close)

    def ledger(self, cut: object) -> DeliveryLedger:
        """Return the ledger: behind the proxy for a statement that is to be cut."""
        return self._cut_ledger if cut else self._ledger

    def run(self, doing: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(doing)

    def close(self) -> None:
        self.run(self._stack.aclose())
        self.run(self._loop.shutdown_asyncgens())
        self._loop.close()


class Row(Struct, frozen=True):
    """What Postgres has of the run."""

    state: RowState
    claim: uuid.UUID | None
    at: datetime
    is_past: bool
    has_lost_attempt: bool
    attempts_made: int
    holds: int

    @property
    def is_unattempted(self) -> bool:
        return self.state is RowState.WAITING and not self.attempts_made and not self.has_lost_attempt


class Stage(Enum):
    """How far an attempt is in its worker's memory."""

    SIGHTED = auto()
    """It has seen another's claim expired, and lets a grace pass."""
    BEGIN = auto()
    BEGUN = auto()
    CHECKED = auto()
    """It has looked at the clock, and froze just before its request."""
    REQUEST = auto()
    END = auto()


class Attempt:
    def __init__(self, number_of_ask: int, version: int, holds: int) -> None:
        self.number_of_ask = number_of_ask
        self.version = version
        """Of the job, as it was when the workflow asked for the attempt."""
        self.holds = holds
        """Holds that the workflow knew of then."""
        self.claim = uuid.uuid4()
        self.stage = Stage.BEGIN
        self.expired_claim: str | None = None
        self.asked = False
        """Whether an answer of `begin` was lost."""
        self.number = 0
        self.kind: AttemptKind | None = None
        """How it ended; None when it was not made."""
        self.late = False
        """Whether its claim has expired, which its clock tells it."""
        self.overtaken = False
        """Whether it was frozen when its claim had expired."""

    @property
    def is_owner(self) -> bool:
        return self.stage is not Stage.SIGHTED

    @property
    def was_taken(self) -> bool:
        return self.stage is Stage.END and self.kind is AttemptKind.TAKEN


class Worker:
    def __init__(self) -> None:
        self.attempt: Attempt | None = None
        self.frozen = False


class Request:
    """A request at the receiver, which it may take although the worker is gone."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt: Attempt | None = attempt


class Canceller:
    """Who cancels: a DELETE, or the workflow once it was asked to."""

    def __init__(self) -> None:
        self.told = False
        """Whether it knows that the run is cancelled, and is about to answer 200."""
        self.expired_claim: str | None = None
        self.waits = False
        """Whether it lets a grace pass since it saw a claim expired."""


class Lost(Enum):
    ANSWER = auto()


cuts = st.sampled_from([*[None] * 6, (Cut.AFTER, 0), (Cut.BEFORE, 0), (Cut.AFTER, 1)])
"""Where a statement's connection is cut; the last: while the row is read that refuses it."""

heard = st.sampled_from([True, True, False])
"""Whether the workflow hears what an attempt came to: its task may be lost."""


class Step(Struct, frozen=True):
    """One thing that may happen, how often, and when it can."""

    name: str
    weight: int
    when: Callable[["LedgerMachine"], object]


STEPS: list[Step] = []


def step(weight: int, when: Callable[["LedgerMachine"], object] = bool) -> Callable[[T], T]:
    def note(method: T) -> T:
        STEPS.append(Step(method.__name__, weight, when))  # type: ignore[attr-defined]
        return method

    return note


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.is_whole = self.is_open = True

    @initialize(data=st.data())
    def start(self, data: st.DataObject) -> None:
        # Else most runs are cancelled before much has happened.
        self.patience, self.steps = data.draw(st.sampled_from([0, 5, 15, 30, 60])), 0
        self.run_id = uuid.uuid4().hex
        self.row: Row | None = None
        self.refused_by: Row | None = None
        self.workers = [Worker() for _ in range(WORKERS)]
        self.cancellers = [Canceller() for _ in range(CANCELLERS)]
        self.requests: list[Request] = []
        self.has_postgres = True
        self.pauses = data.draw(st.sampled_from([0, 1, 1, 2]))
        self.set_route(data.draw(st.sampled_from([RouteState.ACTIVE, RouteState.PAUSED])))
        # What the workflow knows: it asks for an attempt, and hears what came of the last one that it asked for.
        self.asks = self.version = self.holds = 0
        self.is_held = self.was_reset = False
        # What the promises speak of.
        self.requested = Counter[int]()
        self.taken = self.taken_known = self.answered = self.wished = self.faulty = False

    @rule(data=st.data())
    def goes_on(self, data: st.DataObject) -> None:
        self.steps += 1
        may = [one for one in STEPS if one.when(self)]
        name = data.draw(st.sampled_from([one.name for one in may for _ in range(one.weight)]))
        self.is_whole = False
        getattr(self, name)(data)
        self.is_whole = True

    # Statements

    def ask(self, statement: Coroutine[Any, Any, T], cut: tuple[Cut, int] | None) -> T | Lost:
        """Run a statement, look at what it did to the row, and return its answer, which a cut loses."""
        self.world.proxy.cut(*cut or (None, 0))
        answer: T | Lost
        try:
            answer = self.world.run(statement)
            assert not self.world.proxy.has_cut, "an answer, although the connection was cut"
        except UnavailableError:
            assert self.world.proxy.has_cut
            answer = Lost.ANSWER
        self.world.proxy.cut(None)
        before, self.row = self.row, self.look()
        self.check_change(before, self.row)
        self.check_one_way(before, self.row)
        return answer

    def look(self) -> Row | None:
        query = (
            "SELECT state, claim, at, at <= clock_timestamp(), doubt, made, holds FROM delivery_ledger "
            "WHERE run_id = $1"
        )
        row = self.world.run(self.world.direct.fetchrow(query, self.run_id))
        return Row(RowState(row[0]), row[1] and uuid.UUID(str(row[1])), *row[2:]) if row else None

    def let_time_pass(self) -> None:
        query = "UPDATE delivery_ledger SET at = clock_timestamp() - interval '1 s' WHERE run_id = $1"
        self.world.run(self.world.direct.execute(query, self.run_id))
        self.row = self.look()

    def check_change(self, before: Row | None, after: Row | None) -> None:
        """Check what a statement has made of the row: whether an attempt could begin, for the most part."""
        if not after or after.state is not RowState.UNDER_WAY or (before and before.claim == after.claim):
            return
        assert not (before and before.state is RowState.WAITING and not before.is_past), "I7: begun before its time"
        assert not self.wished, "I8: begun after a cancel was noted"
        if before and before.state is RowState.UNDER_WAY:
            owners = self.owners(before.claim)
            assert all(worker.frozen or attempt.overtaken for worker, attempt in owners), "I3: taken from a living one"

    def check_one_way(self, before: Row | None, after: Row | None) -> None:
        """Check what never goes back."""
        if before is None:
            return
        assert after, "the row is gone"
        if before.state in DECIDED and before.state != after.state:
            assert (before.state, after.state) == (RowState.FAILED, RowState.TAKEN), "decided once and for all"
        assert after.has_lost_attempt >= before.has_lost_attempt, "a lost attempt is remembered"
        assert after.holds >= before.holds, "a hold is remembered"
        assert not (after.has_lost_attempt and after.state is RowState.CANCELLED), (
            "what may have been taken is not cancelled"
        )
        if before.state is RowState.UNDER_WAY and after.state is RowState.UNDER_WAY and before.claim != after.claim:
            assert after.has_lost_attempt, "a lost attempt is noted"
        if before.state in CLAIMED and after.state in CLAIMED and before.claim == after.claim:
            assert after.at <= before.at, "a claim is not prolonged"

    def told(self, state: RowState) -> None:
        """Somebody is told what was decided."""
        if state is RowState.TAKEN:
            return
        assert not self.taken_known, "I6: what was known to be taken is said to be something else"
        for worker in self.workers:
            attempt = worker.attempt
            if attempt and attempt.was_taken and not attempt.overtaken and not worker.frozen:
                raise AssertionError(f"I6: said to be {state} while a living worker knows that it was taken")

    # Workers

    def eligible(self, *stages: Stage, idle: bool = False, frozen: bool = False) -> list[Worker]:
        return [
            worker
            for worker in self.workers
            if worker.frozen == frozen and (worker.attempt.stage in stages if worker.attempt else idle)
        ]

    @step(10, when=lambda self: self.has_postgres and self.beginning())
    def begins(self, data: st.DataObject) -> None:
        self.begin(data.draw(st.sampled_from(self.beginning())), data.draw(cuts), data.draw(heard))

    @step(12, when=lambda self: self.has_postgres and self.is_open and self.outdated())
    def what_is_outdated_begins(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.outdated()))
        worker.frozen = False
        self.begin(worker)

    def outdated(self) -> list[Worker]:
        """Who is to begin with what a change has replaced."""
        workers = self.eligible(Stage.BEGIN) + self.eligible(Stage.BEGIN, frozen=True)
        return [worker for worker in workers if worker.attempt and worker.attempt.version < self.version]

    def beginning(self) -> list[Worker]:
        """Who is to begin, or has a reason to."""
        row = self.row
        may = row is None or (row.is_past and row.state not in DECIDED)
        return self.eligible(Stage.BEGIN, idle=may and not self.is_held)

    @step(
        1,
        when=lambda self: (
            self.has_postgres and self.row != self.refused_by and not self.is_held and self.eligible(idle=True)
        ),
    )
    def begins_in_vain(self, data: st.DataObject) -> None:
        self.refused_by = self.row
        self.begin(data.draw(st.sampled_from(self.eligible(idle=True))), data.draw(cuts), data.draw(heard))

    def asked_for(self) -> Attempt:
        """Return an attempt that the workflow has just asked for."""
        self.asks += 1
        return Attempt(self.asks, self.version, self.holds)

    def begin(self, worker: Worker, cut: tuple[Cut, int] | None = None, is_heard: bool = True) -> None:
        attempt = worker.attempt = worker.attempt or self.asked_for()
        answer = self.ask(
            self.world.ledger(cut).begin(
                self.run_id,
                DB,
                "hook",
                attempt.claim,
                expired_claim=attempt.expired_claim,
                holds=attempt.holds,
            ),
            cut,
        )
        match answer:
            case Lost.ANSWER:
                attempt.asked = True
            case Begun(number=number):
                assert self.row
                assert (self.row.state, self.row.claim) == (RowState.UNDER_WAY, attempt.claim), "I3: begun by nobody"
                attempt.stage, attempt.number = Stage.BEGUN, number
            case LedgerRow(is_expired=True, claim=claim):
                attempt.stage, attempt.expired_claim = Stage.SIGHTED, claim
            case LedgerRow(state=state, is_decided=is_decided):
                worker.attempt = None
                if is_decided:
                    self.told(state)
            case RouteClosed(holds=holds, is_over=is_over):
                worker.attempt = None
                if is_heard and attempt.number_of_ask == self.asks:
                    self.holds = max(self.holds, holds)
                    self.is_held = not is_over

    # The job and its route

    def set_route(self, state: RouteState) -> None:
        self.is_open = state is RouteState.ACTIVE
        self.world.run(self.world.store.set_state(DB, "hook", state))

    @step(2, when=lambda self: self.is_open and self.pauses and not (self.row and self.row.state in DECIDED))
    def the_route_is_paused(self, _: st.DataObject) -> None:
        self.pauses -= 1
        self.set_route(RouteState.PAUSED)

    @step(4, when=lambda self: not self.is_open and self.row)
    def the_route_is_resumed(self, _: st.DataObject) -> None:
        self.set_route(RouteState.ACTIVE)

    @step(12, when=lambda self: self.has_postgres and self.is_held and self.is_unattempted())
    def the_job_is_changed(self, data: st.DataObject) -> None:
        if self.was_reset:
            cut = data.draw(cuts)
            row = self.ask(self.world.ledger(cut).outdate(self.run_id), cut)
            if row is Lost.ANSWER or not row.is_unattempted:
                return
        self.version += 1
        self.is_held = False

    @step(2, when=lambda self: not self.was_reset and not self.is_held and self.asks and self.is_unattempted())
    def the_workflow_is_reset(self, data: st.DataObject) -> None:
        """It goes back to where it could be changed, and knows as much of holds as then."""
        self.was_reset = self.is_held = True
        self.holds = data.draw(st.integers(0, self.holds))
        self.asks += 1

    def is_unattempted(self) -> bool:
        return not self.row or self.row.is_unattempted

    @step(6, when=lambda self: self.is_held)
    def the_hold_ends(self, _: st.DataObject) -> None:
        self.is_held = False

    @step(2, when=lambda self: self.giving_up())
    def gives_up_to_begin(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.giving_up())).stage = Stage.END

    def giving_up(self) -> list[Attempt]:
        return [worker.attempt for worker in self.eligible(Stage.BEGIN) if worker.attempt and worker.attempt.asked]

    @step(8, when=lambda self: self.eligible(Stage.BEGUN, Stage.CHECKED))
    def requests_the_receiver(self, data: st.DataObject) -> None:
        self.request(data.draw(st.sampled_from(self.eligible(Stage.BEGUN, Stage.CHECKED))))

    def request(self, worker: Worker) -> None:
        attempt = worker.attempt
        assert attempt
        if attempt.stage is Stage.BEGUN and attempt.late:
            attempt.stage = Stage.END
            return
        assert not self.answered, "I1: a request after a DELETE was answered 200"
        assert attempt.version == self.version, "I9: a request with what a confirmed change had replaced"
        if not self.faulty:
            assert not self.requested[attempt.number], "I3: an attempt is made twice"
            assert not self.taken, "I3: an attempt after the job was taken"
        self.requested[attempt.number] += 1
        attempt.stage = Stage.REQUEST
        self.requests.append(Request(attempt))

    @step(6, when=lambda self: self.requests)
    def receiver_answers(self, data: st.DataObject) -> None:
        self.answer(data.draw(st.sampled_from(self.requests)), data.draw(st.sampled_from([False, False, True])))

    def answer(self, request: Request, taken: bool) -> None:
        assert not (taken and self.answered), "I2: taken after a DELETE was answered 200"
        self.taken |= taken
        self.requests.remove(request)
        if request.attempt:
            request.attempt.stage = Stage.END
            request.attempt.kind = AttemptKind.TAKEN if taken else AttemptKind.REFUSED

    @step(8, when=lambda self: self.has_postgres and self.eligible(Stage.END))
    def ends(self, data: st.DataObject) -> None:
        self.end(data.draw(st.sampled_from(self.eligible(Stage.END))), data.draw(cuts))

    def end(self, worker: Worker, cut: tuple[Cut, int] | None = None) -> None:
        attempt = worker.attempt
        assert attempt
        before = self.row
        row = self.ask(self.world.ledger(cut).end(self.run_id, attempt.claim, self.end_of(attempt)), cut)
        if before and before.claim != attempt.claim and not attempt.was_taken:
            assert self.row == before, "I3: the end of a lost attempt has changed what another's is about"
        if row is Lost.ANSWER:
            return
        if attempt.was_taken:
            assert row
            assert self.row
            assert row.state is self.row.state is RowState.TAKEN, "I6: a worker knows that it was taken"
            self.taken_known = True
        worker.attempt = None
        if row and row.is_decided:
            self.told(row.state)

    def end_of(self, attempt: Attempt) -> AttemptReport:
        if attempt.kind is None:
            return AttemptReport(counts=False)
        end = AttemptResult(number=attempt.number, kind=attempt.kind, ended_at=1)
        wait = FAR if attempt.kind is not AttemptKind.TAKEN and attempt.number < ATTEMPTS else None
        logged = Logged(
            db=DB,
            collection="c",
            job_id="j",
            route_id="hook",
            run_id=self.run_id,
            message_id="msg_1",
            attempt=attempt.number,
            started_at=datetime.now(UTC),
            duration_ms=1,
            status=None,
            kind=attempt.kind,
            error=None,
            worker="w",
        )
        return AttemptReport(counts=True, attempts=attempt.number, outcome=end, wait=wait, logged=logged)

    # Clients who cancel

    @step(3, when=lambda self: self.has_postgres and self.steps >= self.patience and self.asking())
    def cancels(self, data: st.DataObject) -> None:
        canceller, cut = data.draw(st.sampled_from(self.asking())), data.draw(cuts)
        row = self.ask(
            self.world.ledger(cut).cancel(self.run_id, due=datetime.now(UTC), expired_claim=canceller.expired_claim),
            cut,
        )
        self.wished |= row is not Lost.ANSWER or cut != (Cut.BEFORE, 0)
        if not isinstance(row, LedgerRow):
            return
        canceller.waits, canceller.expired_claim = row.is_expired, row.claim if row.is_expired else None
        if not row.is_decided:
            return
        assert self.row
        assert self.row.state is row.state, "I5: said to be decided when it is not"
        self.told(row.state)
        canceller.told = row.state is RowState.CANCELLED

    def asking(self) -> list[Canceller]:
        return [canceller for canceller in self.cancellers if not canceller.told and not canceller.waits]

    @step(6, when=lambda self: any(canceller.told for canceller in self.cancellers))
    def a_delete_is_answered_200(self, _: st.DataObject) -> None:
        assert not self.taken, "I2: a DELETE is answered 200 although the job was taken"
        self.answered = True
        next(canceller for canceller in self.cancellers if canceller.told).told = False

    @step(1, when=lambda self: self.wished)
    def a_canceller_gives_up(self, data: st.DataObject) -> None:
        self.cancellers[data.draw(st.integers(0, CANCELLERS - 1))] = Canceller()

    # Time

    def owners(self, claim: object) -> list[tuple[Worker, Attempt]]:
        return [
            (worker, worker.attempt)
            for worker in self.workers
            if worker.attempt and worker.attempt.is_owner and str(worker.attempt.claim) == str(claim)
        ]

    def may_expire(self) -> bool:
        row = self.row
        if not row or row.state not in CLAIMED or row.is_past:
            return False
        return all(
            worker.frozen or (not self.has_postgres and attempt.stage in (Stage.BEGIN, Stage.END))
            for worker, attempt in self.owners(row.claim)
        )

    @step(8, when=lambda self: self.may_expire())
    def the_claim_expires(self, _: st.DataObject) -> None:
        assert self.row
        for worker, attempt in self.owners(self.row.claim):
            attempt.late = True
            self.overtake(worker, attempt)
        self.let_time_pass()

    def overtake(self, worker: Worker, attempt: Attempt) -> None:
        if worker.frozen:
            attempt.late = attempt.overtaken = self.faulty = True

    @step(6, when=lambda self: self.row and self.row.state is RowState.WAITING and not self.row.is_past)
    def the_next_attempt_is_due(self, _: st.DataObject) -> None:
        self.let_time_pass()

    def graced(self) -> list[Attempt | Canceller]:
        """Who has seen an expired claim, and may have waited long enough: not while its owner can write its end."""
        waiting: list[Attempt | Canceller] = [
            worker.attempt for worker in self.eligible(Stage.SIGHTED) if worker.attempt
        ]
        waiting += [canceller for canceller in self.cancellers if canceller.waits]
        return [one for one in waiting if all(worker.frozen for worker, _ in self.owners(one.expired_claim))]

    @step(8, when=lambda self: self.has_postgres and self.graced())
    def a_grace_passes(self, data: st.DataObject) -> None:
        self.let_grace_pass(data.draw(st.sampled_from(self.graced())))

    def let_grace_pass(self, one: Attempt | Canceller) -> None:
        for worker, attempt in self.owners(one.expired_claim):
            self.overtake(worker, attempt)
        if isinstance(one, Attempt):
            one.stage = Stage.BEGIN
        else:
            one.waits = False

    # Faults

    @step(1, when=lambda self: any(worker.attempt for worker in self.workers))
    def crashes(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.attempt]))
        for request in self.requests:
            if request.attempt is worker.attempt:
                request.attempt = None
        worker.attempt, worker.frozen = None, False
        self.faulty = True

    @step(8, when=lambda self: self.eligible(idle=not self.is_held and self.is_unattempted()))
    def freezes_before_it_begins(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.eligible(idle=True)))
        worker.frozen, worker.attempt = True, self.asked_for()

    @step(1, when=lambda self: self.eligible(*Stage))
    def freezes(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.eligible(*Stage)))
        worker.frozen = True
        attempt = worker.attempt
        assert attempt
        if attempt.stage is Stage.BEGUN and not attempt.late and data.draw(st.booleans()):
            attempt.stage = Stage.CHECKED

    @step(3, when=lambda self: self.eligible(*Stage, frozen=True))
    def wakes(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.eligible(*Stage, frozen=True))).frozen = False

    @step(2, when=lambda self: self.has_postgres and self.eligible(Stage.BEGIN, Stage.END))
    def postgres_goes_away(self, _: st.DataObject) -> None:
        self.has_postgres = False

    @step(4, when=lambda self: not self.has_postgres)
    def postgres_is_back(self, _: st.DataObject) -> None:
        self.has_postgres = True

    # The end

    @step(15, when=lambda self: self.row and self.row.state in DECIDED and not self.eligible(*Stage))
    def another_run(self, data: st.DataObject) -> None:
        self.heal()
        self.start(data)

    def teardown(self) -> None:
        # What a step has broken is not to be hidden by what comes of it.
        if self.is_whole:
            self.heal()

    def heal(self) -> None:
        """Check that the run is decided once no more faults happen, without anybody who cancels."""
        self.has_postgres = True
        self.is_held = False
        self.set_route(RouteState.ACTIVE)
        for request in [*self.requests]:
            self.answer(request, taken=True)
        for worker in self.workers:
            worker.frozen = False
        for _ in range(10 * ATTEMPTS):
            for worker in self.workers:
                self.go_on(worker)
            if not any(worker.attempt for worker in self.workers):
                if self.row and self.row.state in DECIDED:
                    break
                self.begin(self.workers[0])
            if self.row and not self.owners(self.row.claim):
                self.let_time_pass()
        else:
            raise AssertionError(f"I4: never decided: {self.row}")
        assert self.row.state is RowState.TAKEN or not self.taken_known, "I6: it was known to be taken"

    def go_on(self, worker: Worker) -> None:
        """Make a worker's next step, if it has one."""
        match worker.attempt.stage if worker.attempt else None:
            case Stage.SIGHTED:
                if worker.attempt in self.graced():
                    self.let_grace_pass(worker.attempt)
            case Stage.BEGUN | Stage.CHECKED:
                self.request(worker)
            case Stage.REQUEST:
                self.answer(next(one for one in self.requests if one.attempt is worker.attempt), taken=False)
            case Stage.END:
                self.end(worker)
            case Stage.BEGIN:
                self.begin(worker)


PROFILE = settings(
    max_examples=20,
    stateful_step_count=70,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[*HealthCheck],
)


@pytest.fixture
def world(settings: Settings) -> Iterator[World]:
    world = World(settings)
    yield world
    world.close()


@pytest.mark.timeout(300)
def test_the_promises_hold_after_every_step(world: World) -> None:
    class Machine(LedgerMachine):
        def __init__(self) -> None:
            super().__init__(world)

    run_state_machine_as_test(Machine, settings=PROFILE)

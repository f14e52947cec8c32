"""What the attempt within the workflow task comes to: values, since an error would be retried or end the workflow."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest
from msgspec.structs import replace
from temporalio.client import Client
from temporalio.testing import ActivityEnvironment

from activities import attempt_report, webhook_call
from activities.attempt import Attempts
from activities.deliver import Deliveries
from activities.in_progress import InProgress
from tests.support.clocks import set_worker_clock
from tests.support.ledger import AnotherWorker, refused_by_receiver, taken
from tests.support.receiver import Received, Receiver, response
from tests.support.service import ROUTE, Service, now_ms
from timemachine.clock import boot_time
from timemachine.domain.delivery import Delivery
from timemachine.domain.errors import UnavailableError
from timemachine.domain.events import JobFacts
from timemachine.domain.jobs import Job
from timemachine.domain.outcomes import (
    Cancelled,
    Deferred,
    Delivered,
    Failed,
    Held,
    LedgerRow,
    Outcome,
    RowState,
    Unknown,
)
from timemachine.domain.retry import Retry
from timemachine.postgres.delivery_ledger import BEGIN_TIME, AttemptReport, DeliveryLedger
from timemachine.postgres.pool import open_pool
from timemachine.postgres.route_store import RouteStore
from timemachine.settings import Settings
from timemachine.vault import Vault, new_key
from timemachine.webhooks.client import WebhookClient


class FirstAttempts:
    """The activity, run outside of any workflow."""

    def __init__(self, client: Client, settings: Settings, in_progress: InProgress) -> None:
        self._client = client
        self._settings = settings
        self._in_progress = in_progress

    async def make(self, delivery: Delivery, settings: Settings | None = None) -> Outcome:
        settings = settings or self._settings
        async with (
            open_pool(settings) as pool,
            WebhookClient(timeout=5, max_connections=9, address_guard=settings.address_guard) as webhooks,
        ):
            routes = RouteStore(pool, Vault(settings))
            ledger = DeliveryLedger(pool, routes, attempt_time=settings.delivery_timeout)
            attempts = Attempts(ledger, routes, webhooks, settings, self._in_progress)
            deliveries = Deliveries(self._client, attempts, ledger)
            try:
                return await ActivityEnvironment(self._client).run(deliveries.first_attempt, delivery)
            finally:
                await self._in_progress.drain()


@pytest.fixture
def first(client: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> FirstAttempts:
    """Waited for to its end, on a busy machine too."""
    monkeypatch.setattr("activities.deliver.TASK_PATIENCE", 20.0)
    return FirstAttempts(client, settings, InProgress(9))


def a_delivery(db: str, *, due_in: float = 0, **fields: Any) -> Delivery:
    run = str(uuid4())
    job = Job(db=db, collection="c", id=run, trigger_time=now_ms(due_in), route=ROUTE, meta=msgspec.Raw(b"1"))
    return Delivery(job=replace(job, **fields), message_id=f"msg_{run}", run_id=run)


def answering(status: int) -> Callable[[Received], Awaitable[bytes]]:
    async def answer(_: Received) -> bytes:
        return response(status, b"why")

    return answer


async def test_the_receiver_took_it(
    service: Service, receiver: Receiver, first: FirstAttempts, another: AnotherWorker
) -> None:
    delivery = a_delivery(service.db)

    outcome = await first.make(delivery)

    assert isinstance(outcome, Delivered)
    assert (outcome.status, outcome.attempts) == (200, 1)
    assert 0 <= outcome.late_ms < 20_000
    assert (await another.row(delivery.run_id)).state is RowState.TAKEN
    # To ask again is to be told the same, and to send nothing.
    assert await first.make(delivery) == outcome
    assert len(receiver.received) == 1


async def test_the_receiver_refused_and_is_asked_again_later(
    service: Service, receiver: Receiver, first: FirstAttempts, another: AnotherWorker
) -> None:
    receiver.answer = answering(500)
    delivery = a_delivery(service.db, retry=Retry(waits=(60,)))

    outcome = await first.make(delivery)

    assert isinstance(outcome, Failed)
    assert (outcome.reason, outcome.attempts) == ("500 from the receiver: why", 1)
    assert outcome.next_at
    assert now_ms(30) < outcome.next_at < now_ms(73)
    row = await another.row(delivery.run_id)
    assert (row.state, row.attempts_made) == (RowState.WAITING, 1)


@pytest.mark.parametrize("status", [500, 410])
async def test_the_receiver_refused_for_the_last_time(
    service: Service, receiver: Receiver, first: FirstAttempts, another: AnotherWorker, status: int
) -> None:
    receiver.answer = answering(status)
    delivery = a_delivery(service.db, retry=Retry(maximum_attempts=1 if status == 500 else 5))

    assert await first.make(delivery) == Failed(reason=f"{status} from the receiver: why", attempts=1)

    assert (await another.row(delivery.run_id)).state is RowState.FAILED


async def test_a_deadline_that_has_passed_fails_without_an_attempt(
    service: Service, receiver: Receiver, first: FirstAttempts, another: AnotherWorker
) -> None:
    delivery = a_delivery(service.db, due_in=-9, deadline=now_ms(-1))

    assert await first.make(delivery) == Failed(reason="the deadline has passed", attempts=0)

    assert (await another.row(delivery.run_id)).state is RowState.FAILED
    assert receiver.received == []


async def test_a_deadline_before_the_next_attempt_fails_at_once(
    service: Service, receiver: Receiver, first: FirstAttempts
) -> None:
    receiver.answer = answering(500)

    outcome = await first.make(a_delivery(service.db, deadline=now_ms(30), retry=Retry(waits=(60,))))

    reason = "500 from the receiver: why; the deadline is before the next attempt"
    assert outcome == Failed(reason=reason, attempts=1)


async def test_deadlines_are_compared_with_the_clock_of_postgres(
    service: Service, receiver: Receiver, first: FirstAttempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.answer = answering(500)
    set_worker_clock(monkeypatch, -200)
    passed = a_delivery(service.db, due_in=-900, deadline=now_ms(-100))
    assert await first.make(passed) == Failed(reason="the deadline has passed", attempts=0)

    set_worker_clock(monkeypatch, 200)
    outcome = await first.make(a_delivery(service.db, deadline=now_ms(100), retry=Retry(waits=(60,))))
    assert isinstance(outcome, Failed)
    assert outcome.next_in
    assert 50 < outcome.next_in < 73


async def test_a_deadline_that_passes_while_a_slot_is_waited_for_lets_no_attempt_begin(
    service: Service, receiver: Receiver, first: FirstAttempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.add_route(receiver.url, "narrow", max_in_flight=2)
    late, in_flight_slot = a_delivery(service.db, route="narrow", deadline=now_ms(0.5)), RouteStore.in_flight_slot

    @asynccontextmanager
    async def slot(*of: Any) -> AsyncIterator[None]:
        await asyncio.sleep(0.6)  # until the deadline has passed
        async with in_flight_slot(*of):
            yield

    monkeypatch.setattr(RouteStore, "in_flight_slot", slot)

    assert await first.make(late) == Failed(reason="the deadline has passed", attempts=0)
    assert receiver.received == []


async def test_a_route_that_is_gone_fails_and_is_tried_again(
    service: Service, receiver: Receiver, first: FirstAttempts
) -> None:
    """It may be there again by then; with the attempts it is over."""
    delivery = a_delivery(service.db, route="gone", retry=Retry(waits=(60,)))

    outcome = await first.make(delivery)

    assert isinstance(outcome, Failed)
    assert (outcome.reason, outcome.attempts) == (f"no route gone in {service.db}", 1)
    assert outcome.next_at
    last = a_delivery(service.db, route="gone", retry=Retry(maximum_attempts=1))
    assert await first.make(last) == Failed(reason=f"no route gone in {service.db}", attempts=1)


async def test_a_paused_route_holds_the_job(
    service: Service, receiver: Receiver, first: FirstAttempts, another: AnotherWorker
) -> None:
    await service.api.post(f"/route/{service.db}/{ROUTE}/pause", json={"reason": "maintenance"})
    delivery = a_delivery(service.db)

    outcome = await first.make(delivery)

    assert isinstance(outcome, Held)
    assert (outcome.reason, outcome.attempts_made) == ("the route is paused: maintenance", 0)
    row = await another.row(delivery.run_id)
    assert row.is_unattempted
    assert row.holds == outcome.holds == 1
    assert receiver.received == []


async def test_secrets_that_cannot_be_read_use_up_no_attempt(
    service: Service, receiver: Receiver, first: FirstAttempts, settings: Settings, another: AnotherWorker
) -> None:
    delivery = a_delivery(service.db)

    outcome = await first.make(delivery, replace(settings, secret_keys=new_key()))

    assert isinstance(outcome, Deferred)
    assert now_ms(1) < outcome.next_at < now_ms(7)
    row = await another.row(delivery.run_id)
    assert (row.state, row.attempts_made, row.has_lost_attempt) == (RowState.WAITING, 0, False)
    assert row.end
    assert row.end.reason == outcome.reason
    assert receiver.received == []
    assert isinstance(await first.make(delivery), Delivered)


async def test_a_worker_whose_clock_is_behind_does_not_begin(
    service: Service, receiver: Receiver, first: FirstAttempts, another: AnotherWorker
) -> None:
    delivery = a_delivery(service.db, due_in=60)

    outcome = await first.make(delivery)

    assert isinstance(outcome, Deferred)
    assert now_ms(40) < outcome.next_at < now_ms(75)
    assert await another.ledger.find(delivery.run_id) is None


async def test_a_worker_that_makes_as_many_as_it_may_says_so_at_once(
    service: Service, receiver: Receiver, client: Client, settings: Settings
) -> None:
    outcome = await FirstAttempts(client, settings, InProgress(0)).make(a_delivery(service.db))

    assert isinstance(outcome, Deferred)
    assert receiver.received == []


async def test_a_slow_attempt_is_not_waited_for_and_goes_on(
    service: Service,
    receiver: Receiver,
    first: FirstAttempts,
    another: AnotherWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("activities.deliver.TASK_PATIENCE", 1.0)

    async def slow(_: Received) -> bytes:
        await asyncio.sleep(1.5)
        return response(200)

    receiver.answer = slow
    delivery = a_delivery(service.db)

    assert isinstance(await first.make(delivery), Unknown)

    assert (await another.row(delivery.run_id)).state is RowState.TAKEN


async def test_what_the_ledger_says_is_told(
    service: Service, receiver: Receiver, first: FirstAttempts, another: AnotherWorker
) -> None:
    async def begun() -> tuple[Delivery, Any]:
        delivery = a_delivery(service.db)
        return delivery, await another.begin(service.db, delivery.run_id)

    under_way, _ = await begun()
    outcome = await first.make(under_way)
    assert isinstance(outcome, Unknown)
    assert 0 < outcome.ask_after <= 2

    delivered, claim = await begun()
    await another.end(delivered.run_id, claim, taken())
    assert isinstance(await first.make(delivered), Delivered)

    failed, claim = await begun()
    await another.end(failed.run_id, claim, refused_by_receiver(None))
    assert await first.make(failed) == Failed(reason="500 from the receiver", attempts=1)

    waiting, claim = await begun()
    await another.end(waiting.run_id, claim, refused_by_receiver(timedelta(minutes=1)))
    outcome = await first.make(waiting)
    assert isinstance(outcome, Failed)
    assert outcome.next_at
    assert now_ms(30) < outcome.next_at <= now_ms(61)

    cancelled = a_delivery(service.db)
    await another.ledger.cancel(cancelled.run_id, due=datetime.now(UTC))
    assert await first.make(cancelled) == Cancelled()

    assert receiver.received == []


async def test_a_lost_attempt_is_taken_over_after_a_while(
    service: Service,
    receiver: Receiver,
    first: FirstAttempts,
    another: AnotherWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("activities.deliver.TASK_PATIENCE", 1.0)
    delivery = a_delivery(service.db)
    await another.begin(service.db, delivery.run_id)
    await another.die(delivery.run_id)

    assert isinstance(await first.make(delivery), Unknown)

    row = await another.row(delivery.run_id)
    assert (row.state, row.has_lost_attempt) == (RowState.TAKEN, True)
    assert [received.headers["timemachine-attempt"] for received in receiver.received] == ["1"]


async def no_slot_for_an_unforeseen_reason(*_: Any) -> bool:
    raise RuntimeError("unforeseen")


def unforeseen(*_: Any, **__: Any) -> None:
    raise RuntimeError("unforeseen")


BEFORE_THE_REQUEST = [
    (RouteStore, "_try_acquire", no_slot_for_an_unforeseen_reason),
    (webhook_call, "signatures", unforeseen),
    (webhook_call, "expired", unforeseen),
]


@pytest.mark.parametrize(("where", "name", "broken"), BEFORE_THE_REQUEST)
async def test_what_goes_wrong_before_the_receiver_is_called_gives_the_claim_back(
    service: Service,
    receiver: Receiver,
    first: FirstAttempts,
    another: AnotherWorker,
    monkeypatch: pytest.MonkeyPatch,
    where: object,
    name: str,
    broken: Callable[..., Any],
) -> None:
    """Or the job could neither be tried again for a while, nor be cancelled as one that nobody has been sent."""
    await service.add_route(receiver.url, "narrow", max_in_flight=2)
    delivery = a_delivery(service.db, route="narrow")
    monkeypatch.setattr(where, name, broken)

    outcome = await first.make(delivery)

    assert isinstance(outcome, Deferred)
    assert "internal error" in outcome.reason
    assert (await another.row(delivery.run_id)).is_unattempted
    assert receiver.received == []
    row = await another.ledger.cancel(delivery.run_id, due=datetime.now(UTC))
    assert row.state is RowState.CANCELLED


@asynccontextmanager
async def slot_that_cannot_be_given_back(*_: Any) -> AsyncIterator[None]:
    yield
    raise UnavailableError


AFTER_THE_ANSWER = [
    (RouteStore, "in_flight_slot", slot_that_cannot_be_given_back),
    (webhook_call, "without", unforeseen),
    (attempt_report, "_log_entry", unforeseen),
    (attempt_report, "_count", unforeseen),
]


@pytest.mark.parametrize("status", [200, 410])
@pytest.mark.parametrize(("where", "name", "broken"), AFTER_THE_ANSWER)
async def test_what_goes_wrong_after_the_answer_does_not_take_it_back(
    service: Service,
    receiver: Receiver,
    first: FirstAttempts,
    another: AnotherWorker,
    monkeypatch: pytest.MonkeyPatch,
    where: object,
    name: str,
    broken: Callable[..., Any],
    status: int,
) -> None:
    receiver.answer = answering(status)
    await service.add_route(receiver.url, "narrow", max_in_flight=2)
    delivery = a_delivery(service.db, route="narrow")
    monkeypatch.setattr(where, name, broken)

    await first.make(delivery)

    row = await another.row(delivery.run_id)
    assert row.state is (RowState.TAKEN if status == 200 else RowState.FAILED)
    assert row.end
    assert (row.attempts_made, row.end.status) == (1, status)
    assert status == 200 or str(row.end.reason).startswith("410 from the receiver")


@pytest.mark.parametrize("error", [asyncpg.InternalServerError("refused"), RuntimeError("unforeseen")], ids=repr)
async def test_an_attempt_whose_end_postgres_refuses_does_not_break_off(
    service: Service,
    receiver: Receiver,
    first: FirstAttempts,
    another: AnotherWorker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    write, refusals, delivery = DeliveryLedger._write_end, [error] * 4, a_delivery(service.db)

    async def write_end(
        ledger: DeliveryLedger, run_id: str, claim: UUID, end: AttemptReport, job: JobFacts | None
    ) -> LedgerRow | None:
        if run_id == delivery.run_id and refusals:
            raise refusals.pop()
        return await write(ledger, run_id, claim, end, job)

    monkeypatch.setattr(DeliveryLedger, "_write_end", write_end)

    await first.make(delivery)

    assert (await another.row(delivery.run_id)).state is RowState.TAKEN
    assert len(receiver.received) == 1
    assert "broke off" not in caplog.text


async def test_an_attempt_whose_worker_was_stopped_once_it_had_begun_is_not_made(
    service: Service,
    receiver: Receiver,
    first: FirstAttempts,
    another: AnotherWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another worker may take it for lost, and make it."""
    begin, delivery = DeliveryLedger.begin, a_delivery(service.db)

    async def begin_slowly(ledger: DeliveryLedger, run_id: str, *args: Any, **fields: Any) -> Any:
        begun = await begin(ledger, run_id, *args, **fields)
        if run_id == delivery.run_id:
            monkeypatch.setattr(webhook_call, "boot_time", lambda: boot_time() + BEGIN_TIME + 0.1)
        return begun

    monkeypatch.setattr(DeliveryLedger, "begin", begin_slowly)

    assert isinstance(await first.make(delivery), Deferred)

    assert (await another.row(delivery.run_id)).is_unattempted
    assert receiver.received == []


@pytest.mark.parametrize("holds", [None, 0])
async def test_an_attempt_of_a_workflow_that_counts_no_holds_is_not_begun_when_its_worker_was_stopped(
    service: Service,
    receiver: Receiver,
    first: FirstAttempts,
    another: AnotherWorker,
    monkeypatch: pytest.MonkeyPatch,
    holds: int | None,
) -> None:
    """Where they are counted, the ledger knows whether the job may have been changed since."""
    monkeypatch.setattr("activities.attempt.STALE_AFTER", -1.0)
    delivery = replace(a_delivery(service.db), holds=holds)

    outcome = await first.make(delivery)

    assert isinstance(outcome, Deferred if holds is None else Delivered)
    assert (await another.ledger.find(delivery.run_id) is None) == (holds is None)

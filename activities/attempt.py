"""One attempt at a delivery: slot, claim, call, end, outcome. The same for the first attempt and for later ones."""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID, uuid4

from activities.attempt_report import (
    deferral,
    not_made_report,
    now_ms,
)
from activities.in_progress import InProgress
from activities.route_slots import RouteSlots
from activities.webhook_call import POSTGRES_RETRY, WebhookCalls
from activities.webhook_request import INTERNAL_ERROR
from timemachine import metrics
from timemachine.clock import boot_time
from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.delivery import Delivery
from timemachine.domain.errors import (
    NoSlotError,
    UnavailableError,
    VaultError,
)
from timemachine.domain.events import facts_of
from timemachine.domain.jobs import Job
from timemachine.domain.outcomes import Deferred, Held, LedgerRow, Outcome, RowState, outcome_of
from timemachine.postgres.delivery_ledger import (
    BEGIN_TIME,
    END_RETRY,
    GRACE,
    AttemptReport,
    Begun,
    DeliveryLedger,
    RouteClosed,
)
from timemachine.postgres.route_store import RouteStore
from timemachine.settings import Settings
from timemachine.telemetry import log_context
from timemachine.webhooks.client import WebhookClient

log = logging.getLogger(__name__)

CLOCK_PATIENCE = 5.0
"""Seconds that an attempt waits in place for a trigger time that this machine's clock has not reached yet."""

STALE_AFTER = 8.0
"""Seconds after which an attempt is not begun that was asked for by a workflow which counts no holds: from before the
ledger, or on an older worker. Its own worker was stopped meanwhile, and the job may have been changed."""


class Attempts:
    """Makes attempts with what a worker shares among them."""

    def __init__(
        self,
        ledger: DeliveryLedger,
        routes: RouteStore,
        webhooks: WebhookClient,
        settings: Settings,
        in_progress: InProgress | None = None,
    ) -> None:
        """Take the clients of Postgres and of the receivers."""
        self._ledger = ledger
        self._calls = WebhookCalls(routes, webhooks, settings)
        self._slots = RouteSlots(settings.max_in_flight_per_route)
        self._in_progress = in_progress or InProgress(settings.max_deliveries)

    async def outcome(self, delivery: Delivery, *, patience: float) -> Outcome | None:
        """Make an attempt, or join the one that is under way here, and return what it came to.

        It goes on when nobody waits for it any more.

        Args:
            patience: Seconds after which None is returned while the attempt is still under way.
        """
        attempt = self._in_progress.get(delivery.run_id)
        if attempt is None:
            if self._in_progress.is_full:
                return deferral("this worker makes as many attempts as it can", 1.0)
            attempt = self._in_progress.start(delivery.run_id, self._attempt(delivery))
        ended, _ = await asyncio.wait([attempt], timeout=patience)
        return attempt.result() if ended else None

    async def _attempt(self, delivery: Delivery) -> Outcome:
        """Attempt, as a task of its own, whose lines in the log tell the job and the run."""
        with log_context(**delivery.job.log_fields, run_id=delivery.run_id):
            return await self._attempt_when_due(delivery)

    async def _attempt_when_due(self, delivery: Delivery) -> Outcome:
        """Wait for the time and for a slot of the route, and attempt."""
        asked_at = boot_time()
        early = await _wait_until_due(delivery.job)
        if early:
            return deferral(f"this worker's clock is {early:.1f} s behind", early)
        try:
            async with self._slots.slot(delivery.job.route_key) as note_attempt:
                if delivery.holds is None and boot_time() > asked_at + STALE_AFTER:
                    return deferral("the worker was stopped meanwhile", 1.0)
                return await self._claim(delivery, note_attempt)
        except NoSlotError as error:
            metrics.SLOTS_UNAVAILABLE.add()
            return deferral(str(error), error.after)

    async def _claim(self, delivery: Delivery, note_attempt: Callable[[], None]) -> Outcome:
        """Make the attempt if the ledger lets us; else tell what it says. A claim that has expired is taken over.

        Args:
            note_attempt: Called when the receiver is about to be called.
        """
        expired_claim = None
        while True:
            claim = uuid4()
            asked_at = boot_time()
            answer = await self._begin(delivery, claim, expired_claim)
            match answer:
                case Begun():
                    return await self._make(delivery, claim, answer, asked_at + BEGIN_TIME, note_attempt)
                case LedgerRow() if answer.is_expired and answer.claim != expired_claim:
                    await asyncio.sleep(GRACE)
                    expired_claim = answer.claim
                case LedgerRow():
                    return outcome_of(answer, now_ms())
                case RouteClosed():
                    return Held(
                        reason=answer.reason,
                        since=datetime.now(UTC),
                        attempts_made=answer.attempts_made,
                        holds=answer.holds,
                        is_over=answer.is_over,
                    )
                case Deferred():
                    return answer

    async def _begin(
        self, delivery: Delivery, claim: UUID, expired_claim: str | None
    ) -> Begun | LedgerRow | RouteClosed | Deferred:
        """Begin, again and again while Postgres does not answer: that may have been the answer only.

        After `BEGIN_TIME` the attempt is given back, and does not end before that is written.
        """
        job, until = delivery.job, boot_time() + BEGIN_TIME - END_RETRY
        while True:
            try:
                return await self._ledger.begin(
                    delivery.run_id,
                    job.db,
                    job.route,
                    claim,
                    expired_claim=expired_claim,
                    attempts_made=delivery.attempts_made,
                    holds=delivery.holds,
                    job=facts_of(job),
                )
            except VaultError as error:
                reason = str(error)
                log.error("route cannot be read", extra={"reason": reason, "route": job.route_key})
                break
            except UnavailableError as error:
                reason = str(error)
                if boot_time() > until:
                    break
                await asyncio.sleep(END_RETRY)
            except Exception:
                reason = INTERNAL_ERROR
                log.exception("attempt not begun", extra={"job_id": job.id, "route": job.route_key})
                break
        await self._end(delivery, claim, not_made_report(reason))
        return deferral(reason, POSTGRES_RETRY)

    async def _make(
        self, delivery: Delivery, claim: UUID, begun: Begun, begin_by: float, note_attempt: Callable[[], None]
    ) -> Outcome:
        """Make the attempt that was begun, and tell what the ledger says after its end is written."""
        end = await self._calls.call(delivery, begun, begin_by, note_attempt)
        row = await self._end(delivery, claim, not_made_report(end.reason) if isinstance(end, Deferred) else end)
        if isinstance(end, Deferred):
            return end if row.state is RowState.WAITING else outcome_of(row, now_ms())
        if end.logged and end.logged.kind is not AttemptKind.TAKEN and end.route_news is None:
            await self._calls.note_failure(end.logged)
        return outcome_of(row, now_ms())

    async def _end(self, delivery: Delivery, claim: UUID, end: AttemptReport) -> LedgerRow:
        """Write an end until it is there. What is known of an attempt is never given up."""
        run_id, job = delivery.run_id, facts_of(delivery.job)
        tries = 0
        while True:
            try:
                if row := await self._ledger.end(run_id, claim, end, job=job):
                    return row
                # Postgres lost the row in a fail-over. The run counts as never begun.
                return LedgerRow(
                    state=RowState.WAITING,
                    claim=None,
                    seconds_left=0,
                    attempts_made=0,
                    has_lost_attempt=False,
                    end=None,
                )
            except UnavailableError as error:
                if end.counts:  # of what was not made, nothing is known that could be lost
                    metrics.WRITE_FAILURES.add("delivery_ledger")
                if tries == 0:
                    log.warning("end of an attempt not written yet", extra={"reason": str(error), "run_id": run_id})
                tries += 1
                # One that was not made, and perhaps never begun, is in no hurry.
                await asyncio.sleep(END_RETRY if end.counts else min(END_RETRY * tries, 5.0))


async def _wait_until_due(job: Job) -> float:
    """Wait while this machine's clock says that it is too early: the promise is kept by the sender's own clock.

    Returns:
        Seconds that are left, where they are too many to wait in place.
    """
    while (early := job.trigger_time / 1000 - time.time()) > 0:
        if early > CLOCK_PATIENCE:
            return early
        await asyncio.sleep(early)
    return 0.0

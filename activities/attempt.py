"""One attempt at a delivery: slot, ledger, POST, ledger, outcome. The same for the first attempt and for later ones."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from activities.attempt_end import (
    deferred,
    explained,
    failed,
    given_up,
    logged,
    not_made,
    now_ms,
    record_lateness,
    taken,
)
from activities.in_progress import InProgress
from activities.route_slots import RouteSlots
from timemachine.clock import boot_time
from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.delivery import GONE, Delivery, RequestResult, attempt_headers, describe, expired, without
from timemachine.domain.errors import (
    BlockedAddressError,
    NoAnswerError,
    NoSlotError,
    NotSentError,
    OwnFaultError,
    UnavailableError,
    VaultError,
    WebhookUrlError,
)
from timemachine.domain.jobs import Job
from timemachine.domain.outcomes import Deferred, Held, LedgerRow, Outcome, RowState, outcome_of
from timemachine.domain.retry import Retry
from timemachine.domain.routes import RouteState, target_url
from timemachine.domain.signing import signatures
from timemachine.postgres.attempt_log import Attempt
from timemachine.postgres.delivery_ledger import (
    BEGIN_TIME,
    END_RETRY,
    GRACE,
    Begun,
    DeliveryLedger,
    EndedAttempt,
    RouteClosed,
)
from timemachine.postgres.route_store import RouteStore, Target
from timemachine.settings import Settings
from timemachine.webhooks.client import WebhookClient, WebhookResponse

log = logging.getLogger(__name__)

CLOCK_PATIENCE = 5.0
"""Seconds that an attempt waits in place for a trigger time that this machine's clock has not reached yet."""

STALE_AFTER = 8.0
"""Seconds after which an attempt that was asked for is not begun any more: its worker was stopped meanwhile, and what
it was asked to deliver may have been changed. Longer than it waits for a slot and for the clock."""

INTERNAL_ERROR = "an internal error; the worker's log has it"

POSTGRES_RETRY = 5.0
OWN_FAULT_RETRY = 5.0
"""Seconds after which an attempt is asked for again that Postgres, or this machine, stood in the way of."""


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
        self._routes = routes
        self._webhooks = webhooks
        self._slots = RouteSlots(settings.max_in_flight_per_route)
        # Of routes with a limit of their own: asked once that was read, so that a changed one counts at once.
        self._limited = RouteSlots(settings.max_deliveries)
        self._in_progress = in_progress or InProgress(settings.max_deliveries)
        self._default_scheme = settings.default_scheme
        self._default_timeout = settings.delivery_timeout
        self._disable_after = timedelta(hours=settings.disable_after_hours)

    async def outcome(self, delivery: Delivery, *, patience: float) -> Outcome | None:
        """Make an attempt, or join the one that is under way here, and return what it came to.

        It goes on when nobody waits for it any more.

        Args:
            patience: Seconds after which None is returned while the attempt is still under way.
        """
        attempt = self._in_progress.get(delivery.run_id)
        if attempt is None:
            if self._in_progress.is_full:
                return deferred("this worker makes as many attempts as it can", 1.0)
            attempt = self._in_progress.start(delivery.run_id, self._attempt(delivery))
        ended, _ = await asyncio.wait([attempt], timeout=patience)
        return attempt.result() if ended else None

    async def _attempt(self, delivery: Delivery) -> Outcome:
        """Wait for the time and for a slot of the route, and attempt."""
        asked, early = boot_time(), await _wait_until_due(delivery.job)
        if early:
            return deferred(f"this worker's clock is {early:.1f} s behind", early)
        try:
            async with self._slots.slot(delivery.job.route_key) as note_attempt:
                return await self._claim(delivery, asked + STALE_AFTER, note_attempt)
        except NoSlotError as error:
            return deferred(str(error), error.after)

    async def _claim(self, delivery: Delivery, stale_at: float, note_attempt: Callable[[], None]) -> Outcome:
        """Make the attempt if the ledger lets us; else tell what it says. A claim that has expired is taken over.

        Args:
            stale_at: Boot time after which it is not made any more.
            note_attempt: Called when the receiver is about to be called.
        """
        expired_claim = None
        while boot_time() < stale_at:
            claim, asked = uuid4(), boot_time()
            answer = await self._begin(delivery, claim, expired_claim)
            match answer:
                case Begun():
                    return await self._make(delivery, claim, answer, min(asked + BEGIN_TIME, stale_at), note_attempt)
                case LedgerRow() if answer.is_expired and answer.claim != expired_claim:
                    await asyncio.sleep(GRACE)
                    expired_claim = answer.claim
                case LedgerRow():
                    return outcome_of(answer, now_ms())
                case RouteClosed():
                    return Held(reason=answer.reason, since=datetime.now(UTC), attempts_made=answer.attempts_made)
                case Deferred():
                    return answer
        return deferred("the worker was stopped meanwhile", 1.0)

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
        await self._end(delivery.run_id, claim, not_made(reason))
        return deferred(reason, POSTGRES_RETRY)

    async def _make(
        self, delivery: Delivery, claim: UUID, begun: Begun, begin_by: float, note_attempt: Callable[[], None]
    ) -> Outcome:
        """Make the attempt that was begun, and tell what the ledger says after its end is written."""
        end = await self._reach_out(delivery, begun, begin_by, note_attempt)
        row = await self._end(delivery.run_id, claim, not_made(end.reason) if isinstance(end, Deferred) else end)
        if isinstance(end, Deferred):
            return end if row.state is RowState.WAITING else outcome_of(row, now_ms())
        if begun.target and end.logged:
            await self._note(begun.target, end.logged)
        return outcome_of(row, now_ms())

    async def _end(self, run_id: str, claim: UUID, end: EndedAttempt) -> LedgerRow:
        """Write an end until it is there. What is known of an attempt is never given up."""
        tries = 0
        while True:
            try:
                if row := await self._ledger.end(run_id, claim, end):
                    return row
                # It went away with what Postgres lost in a fail-over: as if nobody had begun.
                return LedgerRow(
                    state=RowState.WAITING,
                    claim=None,
                    seconds_left=0,
                    attempts_made=0,
                    has_lost_attempt=False,
                    end=None,
                )
            except UnavailableError as error:
                if tries == 0:
                    log.warning("end of an attempt not written yet", extra={"reason": str(error), "run_id": run_id})
                tries += 1
                # One that was not made, and perhaps never begun, is in no hurry.
                await asyncio.sleep(END_RETRY if end.counts else min(END_RETRY * tries, 5.0))

    async def _reach_out(
        self, delivery: Delivery, begun: Begun, begin_by: float, note_attempt: Callable[[], None]
    ) -> EndedAttempt | Deferred:
        """Return how the attempt ended, or why it was not made."""
        job, target = delivery.job, begun.target
        if expired(job, datetime.now(UTC)):
            return given_up("the deadline has passed", begun.number)
        if target is None:
            result = RequestResult(kind=AttemptKind.REFUSED)
            return failed(f"no route {job.route} in {job.db}", job, job.retry or Retry(), begun.number, result)
        try:
            async with self._slot(delivery, target.route.max_in_flight):
                if boot_time() > begin_by:
                    return deferred("the worker was stopped meanwhile", 1.0)
                note_attempt()
                return await self._post(delivery, target, begun.number, begin_by)
        except NoSlotError as error:
            return deferred(str(error), error.after)
        except UnavailableError as error:
            return deferred(str(error), POSTGRES_RETRY)
        except NotSentError:
            return deferred("the worker was stopped meanwhile", 1.0)
        except OwnFaultError as error:
            log.error("attempt not made", extra={"reason": str(error), "job_id": job.id, "route": job.route_key})
            return deferred(str(error), OWN_FAULT_RETRY)

    @asynccontextmanager
    async def _slot(self, delivery: Delivery, limit: int | None) -> AsyncIterator[None]:
        """Hold one of the slots of a route with a limit of its own: on this worker, and then among all.

        Raises:
            NoSlotError, UnavailableError: There is none now, or nobody can tell.
        """
        job = delivery.job
        if limit is None:
            yield
            return
        self._limited.set_limit(job.route_key, limit)
        async with (
            self._limited.slot(job.route_key) as note_attempt,
            self._routes.in_flight_slot(job.db, job.route, delivery.run_id, limit),
        ):
            note_attempt()
            yield

    async def _post(self, delivery: Delivery, target: Target, number: int, begin_by: float) -> EndedAttempt:
        """POST once.

        Raises:
            NotSentError, OwnFaultError: Nothing was sent.
        """
        job, started = delivery.job, datetime.now(UTC)
        result, reason, body = await self._ending(delivery, target, number, begin_by)
        if number == 1 and not job.message_id:
            record_lateness(job, started)
        row = logged(delivery, number, started, result, reason, body)
        if reason is None:
            return taken(job, row, number)
        return failed(reason, job, job.retry or target.route.retry, number, result, row)

    async def _ending(
        self, delivery: Delivery, target: Target, number: int, begin_by: float
    ) -> tuple[RequestResult, str | None, bytes]:
        """Return how a request ended, why the receiver did not take the job, and what is kept of its answer."""
        try:
            answer = await self._answer(delivery, target, number, begin_by)
        except NoAnswerError as error:
            if isinstance(error, BlockedAddressError):
                log.warning("target blocked", extra={"detail": error.detail, "route": delivery.job.route_key})
            return RequestResult(kind=error.kind), explained(error, target.route.webhook_url), b""
        except WebhookUrlError as error:
            return RequestResult(kind=AttemptKind.BLOCKED), str(error), b""
        except (NotSentError, OwnFaultError):
            raise
        except Exception:
            # Not known to be taken, as when a connection breaks; and an attempt, or it would be made for ever.
            log.exception("attempt broke off", extra={"job_id": delivery.job.id, "route": delivery.job.route_key})
            return RequestResult(kind=AttemptKind.PROTOCOL), INTERNAL_ERROR, b""
        body = without(answer.body, target.headers.values())
        if answer.taken:
            return RequestResult(kind=AttemptKind.TAKEN, status=answer.status), None, body
        refused = RequestResult(kind=AttemptKind.REFUSED, status=answer.status, retry_after=answer.retry_after)
        return refused, describe(answer.status, body), body

    async def _answer(self, delivery: Delivery, target: Target, number: int, begin_by: float) -> WebhookResponse:
        url = target_url(target.route.webhook_url, default_scheme=self._default_scheme)
        body, timestamp = bytes(delivery.job.meta), int(time.time())
        signed = signatures(target.secrets, delivery.message_id, timestamp, body)
        headers = target.headers | attempt_headers(delivery, number, timestamp) | {"webhook-signature": signed}
        timeout = target.route.timeout or self._default_timeout
        # It is over by then if this process runs; and if it does not, the claim holds for some seconds more.
        until = begin_by + timeout
        return await self._webhooks.post(url, body, headers, timeout=timeout, may_send=lambda: boot_time() < until)

    async def _note(self, target: Target, attempt: Attempt) -> None:
        """Note what an attempt means for its route. Best effort: the ledger has the outcome."""
        try:
            if attempt.kind is AttemptKind.TAKEN:
                if target.failing:
                    await self._routes.note_success(attempt.db, attempt.route_id)
            elif attempt.status == GONE:
                await self._routes.set_state(
                    attempt.db, attempt.route_id, RouteState.DISABLED, "the receiver answered 410 Gone"
                )
            else:
                await self._routes.note_failure(attempt.db, attempt.route_id, disable_after=self._disable_after)
        except Exception as error:
            log.warning("route's failures not noted", extra={"reason": str(error), "job_id": attempt.job_id})


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

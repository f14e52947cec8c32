"""The activities that hand a job to its receiver: one attempt at a time, and what became of one."""

import asyncio
import logging
import random
import time
from contextlib import nullcontext, suppress
from datetime import UTC, datetime, timedelta
from typing import NoReturn

import msgspec
from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities.flights import Flights, end_of
from activities.route_slots import RouteSlots
from timemachine.attempt_log import Attempt, AttemptLog
from timemachine.delivery import (
    GONE,
    UNSURE,
    AttemptsMade,
    Delivered,
    Delivery,
    Ending,
    FirstAttempt,
    Kind,
    Outcome,
    attempt_headers,
    describe,
    expired,
    wait_after,
    without,
)
from timemachine.errors import (
    BlockedTargetError,
    NoAnswerError,
    NoSuchRouteError,
    NotYetError,
    UnavailableError,
    WebhookUrlError,
)
from timemachine.http import Answer, WebhookClient
from timemachine.jobs import Job, from_ms, to_ms
from timemachine.retry import Retry
from timemachine.route_store import RouteStore, Target
from timemachine.routes import RouteState, target_url
from timemachine.settings import Settings
from timemachine.signing import signatures
from timemachine.temporal import LATENESS

log = logging.getLogger(__name__)

# A receiver's failure is no fault of the worker's, whose log and error metrics are spared it.
_BENIGN = ApplicationErrorCategory.BENIGN

CLOCK_PATIENCE = 5.0
"""Seconds that an attempt waits in place for a trigger time that this machine's clock has not reached yet."""

POSTGRES_RETRY = timedelta(seconds=10)

AT_ONCE = 1.0
"""Seconds that a workflow task waits for its attempt. One that takes longer goes on, and is joined by the activity."""

NOT_YET = "NotYet"
"""Error type of an attempt that was not made because its turn has not come."""

_NOT_TAKEN = frozenset({"AttemptFailed", "Blocked", "Expired", "Held"})
"""Error types of attempts of which it is known that the receiver did not take the job."""

_END_KNOWN = _NOT_TAKEN | {NOT_YET}
"""Error types after which nobody needs to be asked how the first attempt ended."""

LOST_AFTER = timedelta(seconds=60)
"""Time after which a first attempt that left no trace in the log is taken for lost with its worker."""

STALE_AFTER = 25.0
"""Seconds after which a run begins no attempt any more. Its worker was stopped meanwhile, and the run might be taken
for lost before the attempt has ended."""

ASK_AGAIN = timedelta(seconds=2)
"""Time after which the log is asked again how an attempt on another worker ended."""

HELD = "Held"
"""Error type of an attempt that was not made because its route is paused or disabled. Known to the workflow."""


@activity.defn(name="nothing")
async def nothing() -> None:
    """Do nothing, for a workflow that has to wait until it was told all that came together."""


class Deliveries:
    """Makes deliveries with what a worker shares among its attempts."""

    def __init__(
        self,
        routes: RouteStore,
        attempts: AttemptLog,
        webhooks: WebhookClient,
        settings: Settings,
        flights: Flights | None = None,
    ) -> None:
        """Take the open doors to Postgres and to the receivers."""
        self._routes = routes
        self._attempts = attempts
        self._webhooks = webhooks
        self._slots = RouteSlots(settings.max_in_flight_per_route)
        self._flights = flights or Flights(settings.max_deliveries)
        self._default_scheme = settings.default_scheme
        self._default_timeout = settings.delivery_timeout
        self._disable_after = timedelta(hours=settings.disable_after_hours)

    @activity.defn(name="deliver_at_once")
    async def deliver_at_once(self, delivery: Delivery) -> Delivered:
        """Make the first attempt within the workflow task, as long as that does not hold the task up.

        A workflow task may be lost and run again, and this with it. The attempt itself is made once all the same: it
        goes on when nobody waits for it any more, and on this worker it is joined, on another one waited for.

        Raises:
            ApplicationError: Not delivered by this. As `deliver` raises it, or of the type `UNSURE` while the end of
                the attempt is not known.
        """
        flight = self._flights.of(_run_id())
        if flight is None:
            if self._flights.full:
                raise _unsure("this worker makes as many first attempts as it can")
            flight = self._flights.take_off(_run_id(), self._first(delivery))
        ended, _ = await asyncio.wait([flight], timeout=AT_ONCE)
        if not ended:
            raise _unsure("the attempt is under way")
        return await end_of(flight)

    @activity.defn(name="deliver")
    async def deliver(self, delivery: Delivery) -> Delivered:
        """Make one attempt.

        The route is read anew, so that an attempt always goes where the route points now.

        Raises:
            ApplicationError: Not delivered this time. Carries the wait until the next attempt, or is not retryable
                when there is to be none.
        """
        began = time.monotonic()
        try:
            if delivery.first and not activity.info().heartbeat_details:
                if delivery.first.type not in _END_KNOWN and (taken := await self._end_of_first(delivery)):
                    return taken
                _check_time(delivery.first, delivery.made)
            return await self._next(delivery, began)
        except UnavailableError as error:
            _postpone(str(error), POSTGRES_RETRY, type="Unavailable")
        except ApplicationError as error:
            for made in error.details[:1]:
                activity.heartbeat(made)
            raise

    @activity.defn(name="find_taken")
    async def find_taken(self, delivery: Delivery) -> Delivered | None:
        """Return the success of an attempt of this run whose worker died before it could tell Temporal.

        Raises:
            UnavailableError: Postgres does not answer; to be tried again.
        """
        taken = await self._attempts.taken(_run_id())
        return _delivered_then(delivery.job, taken) if taken else None

    @activity.defn(name="settle")
    async def settle(self, delivery: Delivery) -> Delivered | None:
        """Return the success of a first attempt that a lost workflow task may have made; None where there is none.

        Raises:
            ApplicationError: It may be under way on another worker; to be tried again.
            UnavailableError: Postgres does not answer; to be tried again.
        """
        try:
            if taken := await self._end_of_first_here():
                return taken
        except ApplicationError as error:
            if error.type in _NOT_TAKEN:
                return await self.find_taken(delivery)
        last = await self._end_of_first_elsewhere(delivery)
        return _delivered_then(delivery.job, last) if last and last.kind is Kind.TAKEN else None

    async def _first(self, delivery: Delivery) -> Delivered:
        """Make the first attempt, unless it may have been made before.

        What fails before that is known says nothing of an earlier workflow task, and is unsure.
        """
        began = time.monotonic()
        await _until_due(delivery.job, type=UNSURE)
        try:
            target = await self._first_target(delivery)
        except UnavailableError as error:
            _postpone(str(error), POSTGRES_RETRY, type=UNSURE)
        if target is None:
            raise _unsure("another worker may be making the attempt")
        try:
            return await self._to(target, delivery, 1, began)
        except ApplicationError as error:
            if error.type == NOT_YET:
                with suppress(UnavailableError):
                    await self._attempts.release_first(_run_id())
            raise

    async def _end_of_first(self, delivery: Delivery) -> Delivered | None:
        """Return how the first attempt ended; None where it was not made, or was lost with its worker.

        Raises:
            ApplicationError: How it failed, or that this is not known yet.
        """
        if taken := await self._end_of_first_here():
            return taken
        last = await self._end_of_first_elsewhere(delivery)
        if last is None:
            return None
        if last.kind is Kind.TAKEN:
            return _delivered_then(delivery.job, last)
        target = await self._target(delivery, last.attempt)
        ending = Ending(kind=last.kind, status=last.status)
        raise _failure(last.error or "", delivery.job, delivery.job.retry or target.route.retry, last.attempt, ending)

    async def _end_of_first_here(self) -> Delivered | None:
        """Wait for the first attempt on this worker, and return its success; None where it was not made here.

        Raises:
            ApplicationError: How it failed.
        """
        flight = self._flights.of(_run_id())
        if flight is None:
            return None
        try:
            return await end_of(flight)
        except ApplicationError as error:
            if error.type in (UNSURE, NOT_YET):
                return None
            raise

    async def _end_of_first_elsewhere(self, delivery: Delivery) -> Attempt | None:
        """Return the first attempt as another worker logged it; None where none was made, nor will be from now on.

        Raises:
            ApplicationError: It may be under way.
        """
        job, age = delivery.job, await self._attempts.claim_first(_run_id())
        last = await self._attempts.last_of_run(job.db, job.collection, job.id, _run_id())
        if last is None and age is not None and age < LOST_AFTER:
            _postpone("another worker may be making the attempt", ASK_AGAIN, type=UNSURE)
        return last

    async def _next(self, delivery: Delivery, began: float) -> Delivered:
        await _until_due(delivery.job)
        number = _attempts_made(delivery) + 1
        if activity.info().attempt > 1 and (taken := await self.find_taken(delivery)):
            return taken
        return await self._to(await self._target(delivery, number), delivery, number, began)

    async def _target(self, delivery: Delivery, number: int) -> Target:
        job = delivery.job
        try:
            return await self._routes.target(job.db, job.route)
        except NoSuchRouteError as error:
            raise _without_route(error, job, number) from None

    async def _first_target(self, delivery: Delivery) -> Target | None:
        job = delivery.job
        try:
            return await self._routes.first_target(job.db, job.route, _run_id())
        except NoSuchRouteError as error:
            raise _without_route(error, job, 1) from None

    async def _to(self, target: Target, delivery: Delivery, number: int, began: float) -> Delivered:
        _check_deadline(delivery.job, number)
        _check_open(target, number)
        return await self._in_turn(delivery, target, number, began)

    async def _in_turn(self, delivery: Delivery, target: Target, number: int, began: float) -> Delivered:
        """Make the attempt when the route has a place for it, or put it off."""
        job, limit = delivery.job, target.route.max_in_flight
        place = self._routes.place(job.db, job.route, _run_id(), limit) if limit else nullcontext()
        self._slots.set_limit(job.route_key, limit)
        try:
            async with self._slots.slot(job.route_key), place:
                if time.monotonic() - began > STALE_AFTER:
                    raise NotYetError(1.0, "the worker was stopped meanwhile")
                return await self._attempt(delivery, target, number)
        except (NotYetError, UnavailableError) as error:  # before the attempt, which raises neither
            wait = error.after if isinstance(error, NotYetError) else POSTGRES_RETRY.total_seconds()
            _postpone(str(error), timedelta(seconds=wait * random.uniform(1, 1.2)), type=NOT_YET)  # noqa: S311

    async def _attempt(self, delivery: Delivery, target: Target, number: int) -> Delivered:
        """POST, note how it ended, and answer with the outcome."""
        started = datetime.now(UTC)
        if number == 1 and not delivery.job.message_id:
            _record_lateness(delivery.job, started)
        outcome = await self._outcome(delivery, target, number)
        await self._note(_row(delivery, number, started, outcome), target)
        if outcome.reason is None:
            return _delivered(delivery.job, outcome, number, started)
        raise _failure(outcome.reason, delivery.job, delivery.job.retry or target.route.retry, number, outcome.ending)

    async def _outcome(self, delivery: Delivery, target: Target, number: int) -> Outcome:
        try:
            answer = await self._post(delivery, target, number)
        except NoAnswerError as error:
            if isinstance(error, BlockedTargetError):
                activity.logger.warning("target blocked", extra={"detail": error.detail})
            return Outcome(ending=Ending(kind=error.kind), reason=str(error))
        except WebhookUrlError as error:
            return Outcome(ending=Ending(kind=Kind.BLOCKED), reason=str(error))
        body = without(answer.body, target.headers.values())
        return Outcome(
            ending=Ending(
                kind=Kind.TAKEN if answer.taken else Kind.REFUSED, status=answer.status, retry_after=answer.retry_after
            ),
            reason=None if answer.taken else describe(answer.status, body),
            body=body,
        )

    async def _post(self, delivery: Delivery, target: Target, number: int) -> Answer:
        url = target_url(target.route.webhook_url, default_scheme=self._default_scheme)
        body = bytes(delivery.job.meta)
        timestamp = int(time.time())
        signed = signatures(target.secrets, delivery.message_id, timestamp, body)
        headers = target.headers | attempt_headers(delivery, number, timestamp) | {"webhook-signature": signed}
        return await self._webhooks.post(url, body, headers, timeout=target.route.timeout or self._default_timeout)

    async def _note(self, attempt: Attempt, target: Target) -> None:
        """Write the attempt into the log and what it means for the route. Best effort: Temporal has the outcome."""
        try:
            await self._attempts.record(attempt)
            if attempt.kind is Kind.TAKEN:
                if target.failing:
                    await self._routes.note_success(attempt.db, attempt.route_id)
            elif attempt.status == GONE:
                await self._routes.set_state(
                    attempt.db, attempt.route_id, RouteState.DISABLED, "the receiver answered 410 Gone"
                )
            else:
                await self._routes.note_failure(attempt.db, attempt.route_id, disable_after=self._disable_after)
        except Exception as error:
            log.warning("attempt not logged", extra={"reason": str(error), "job_id": attempt.job_id})


async def _until_due(job: Job, *, type: str = "Early") -> None:  # noqa: A002 - Temporal's word
    """Wait while this machine's clock says that it is too early: the promise is kept by the sender's own clock.

    Raises:
        ApplicationError: Far too early; the activity is to be run again when the time has come.
    """
    early = job.trigger_time / 1000 - time.time()
    if early > CLOCK_PATIENCE:
        _postpone(f"this worker's clock is {early:.1f} s behind", timedelta(seconds=early), type=type)
    while (early := job.trigger_time / 1000 - time.time()) > 0:  # noqa: ASYNC110 - it is time itself that is awaited
        await asyncio.sleep(early)


def _run_id() -> str:
    return activity.info().workflow_run_id or ""


def _without_route(error: NoSuchRouteError, job: Job, number: int) -> ApplicationError:
    """Return a failure without the chain of causes, which Temporal would cut off with everything before it."""
    return _failure(str(error), job, job.retry or Retry(), number, Ending(kind=Kind.REFUSED))


def _unsure(reason: str) -> ApplicationError:
    return ApplicationError(reason, type=UNSURE, category=_BENIGN)


def _check_time(first: FirstAttempt, made: int) -> None:
    """Raise what the first attempt raised until the next one is due, so that Temporal shows it and waits.

    Raises:
        ApplicationError: It is too early.
    """
    early = from_ms(first.next_at) - datetime.now(UTC)
    # What was made is told by a run that ends: the answer to a heartbeat may bring a cancel, which would cut short an
    # attempt of the same run.
    if early > timedelta(0) or (made and activity.info().attempt == 1):
        _postpone(first.reason, max(early, timedelta(milliseconds=1)), type=first.type, made=made)


def _attempts_made(delivery: Delivery) -> int:
    """Return how many attempts have been made before this one."""
    details = activity.info().heartbeat_details
    return msgspec.convert(details[0], AttemptsMade).made if details else delivery.made


def _check_open(target: Target, number: int) -> None:
    """Raise for a route that deliveries may not go to now: the workflow holds the job. No attempt is used up."""
    standing = target.standing
    if standing.state is not RouteState.ACTIVE:
        reason = f"the route is {standing.state}" + (f": {standing.reason}" if standing.reason else "")
        raise ApplicationError(reason, AttemptsMade(made=number - 1), type=HELD, non_retryable=True, category=_BENIGN)


def _check_deadline(job: Job, number: int) -> None:
    if expired(job, datetime.now(UTC)):
        raise ApplicationError(
            "the deadline has passed",
            AttemptsMade(made=number - 1),
            type="Expired",
            non_retryable=True,
            category=_BENIGN,
        )


def _postpone(
    reason: str,
    wait: timedelta,
    *,
    type: str,  # noqa: A002 - Temporal's word
    made: int | None = None,
) -> NoReturn:
    """Raise to be run again after a wait. No attempt is used up: the receiver was not asked."""
    details = () if made is None else (AttemptsMade(made=made),)
    raise ApplicationError(reason, *details, type=type, next_retry_delay=wait, category=_BENIGN) from None


def _failure(reason: str, job: Job, retry: Retry, number: int, ending: Ending) -> ApplicationError:
    """Return the error that ends this attempt. Its detail, recorded with Temporal, says how many were made."""
    now = datetime.now(UTC)
    wait = wait_after(ending, retry, number, now=now, jitter=random.random())  # noqa: S311 - guards nothing
    if wait is not None and expired(job, now + wait):
        wait, reason = None, f"{reason}; the deadline is before the next attempt"
    made = AttemptsMade(made=number)
    activity.logger.warning("attempt failed", extra={"attempt_number": number, "reason": reason})
    kind = "Blocked" if ending.kind is Kind.BLOCKED else "AttemptFailed"
    return ApplicationError(
        reason, made, type=kind, next_retry_delay=wait, non_retryable=wait is None, category=_BENIGN
    )


def _row(delivery: Delivery, number: int, started: datetime, outcome: Outcome) -> Attempt:
    """Return the attempt as the log keeps it."""
    job = delivery.job
    return Attempt(
        db=job.db,
        collection=job.collection,
        job_id=job.id,
        route_id=job.route,
        run_id=_run_id(),
        message_id=delivery.message_id,
        attempt=number,
        started_at=started,
        duration_ms=int((datetime.now(UTC) - started) / timedelta(milliseconds=1)),
        status=outcome.ending.status,
        kind=outcome.ending.kind,
        error=outcome.reason,
        answer=outcome.body,
        worker=activity.client().identity,
    )


def _record_lateness(job: Job, started: datetime) -> None:
    """Export how late a job's first attempt begins, whatever becomes of it."""
    lateness = activity.metric_meter().create_histogram(LATENESS, "Trigger time to first attempt", "ms")
    lateness.record(max(0, to_ms(started) - job.trigger_time))


def _delivered(job: Job, outcome: Outcome, number: int, started: datetime) -> Delivered:
    """Return the outcome."""
    status, late_ms = outcome.ending.status or 0, to_ms(started) - job.trigger_time
    activity.logger.debug("delivered", extra={"status": status, "attempt_number": number, "late_ms": late_ms})
    return Delivered(status=status, attempts=number, delivered_at=to_ms(datetime.now(UTC)), late_ms=late_ms)


def _delivered_then(job: Job, taken: Attempt) -> Delivered:
    """Return the outcome that an attempt before this one had already."""
    activity.logger.info("delivered before", extra={"attempt_number": taken.attempt})
    ended = taken.started_at + timedelta(milliseconds=taken.duration_ms)
    return Delivered(
        status=taken.status or 0,
        attempts=taken.attempt,
        delivered_at=to_ms(ended),
        late_ms=to_ms(taken.started_at) - job.trigger_time,
    )

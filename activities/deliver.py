"""The activities that deliver a job, and the one that cancels it. What they do is in `activities/attempt.py`."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from uuid import UUID

from msgspec.structs import replace
from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.service import RPCError

from activities.attempt import Attempts
from timemachine.attempt_log import Attempt, AttemptLog
from timemachine.delivery import UNSURE, AttemptsMade, Delivered, Delivery, FirstAttempt, Held
from timemachine.delivery_ledger import GRACE, DeliveryLedger
from timemachine.jobs import Job, from_ms, to_ms
from timemachine.outcomes import Cancelled, Decision, Deferred, Failed, Outcome, Unknown, decision_of

log = logging.getLogger(__name__)

TASK_PATIENCE = 1.0
"""Seconds that a workflow task waits for its attempt. One that takes longer goes on, and is joined by the activity."""

HEARTBEAT_EVERY = 3.0
"""Seconds after which an activity that waits for its attempt tells Temporal that its worker lives."""

ASK_AGAIN = timedelta(seconds=5)
"""Time after which a run is looked at again that was cancelled, and has been asked to close."""

LONGEST_BEFORE = timedelta(seconds=60)
"""Time after which a first attempt was taken for lost before there was a ledger."""

HELD = "Held"
"""Error type of an attempt that was not made because its route is paused or disabled. Known to the workflow."""


@activity.defn(name="nothing")
async def nothing() -> None:
    """Do nothing, for a workflow that has to wait until it was told all that came together."""


class Deliveries:
    """The activities, with what a worker shares among them."""

    def __init__(self, client: Client, attempts: Attempts, ledger: DeliveryLedger, attempt_log: AttemptLog) -> None:
        """Take the maker of attempts, and the clients of Temporal and Postgres."""
        self._client = client
        self._attempts = attempts
        self._ledger = ledger
        self._log = attempt_log

    @activity.defn(name="first_attempt")
    async def first_attempt(self, delivery: Delivery) -> Outcome:
        """Make the first attempt within the workflow task, as long as that does not hold the task up."""
        attempt = await self._attempts.outcome(delivery, patience=TASK_PATIENCE)
        return attempt or Unknown(reason="the attempt is under way")

    @activity.defn(name="deliver")
    async def deliver(self, delivery: Delivery) -> Delivered:
        """Make one attempt. The route is read anew, so that it goes where the route points now.

        Raises:
            ApplicationError: Not delivered this time. Carries the wait until the next attempt, or is not retryable
                when there is to be none.
        """
        delivery = _known_to_ledger(delivery)
        if delivery.first:
            if taken := await self._taken_before(delivery):
                return taken
            await self._check_time(delivery.run_id, delivery.first)
        while (attempt := await self._attempts.outcome(delivery, patience=HEARTBEAT_EVERY)) is None:
            activity.heartbeat(*activity.info().heartbeat_details)
        if isinstance(attempt, Cancelled):
            await self._ask_to_close(delivery)
        return _delivered(attempt)

    @activity.defn(name="cancel_delivery")
    async def cancel_delivery(self, delivery: Delivery) -> Decision:
        """Cancel a run, and return what has become of it: what a receiver took counts as taken.

        Raises:
            ApplicationError: An attempt is under way, whose end decides; to be tried again.
            UnavailableError: Postgres does not answer; to be tried again.
        """
        delivery, sighted = _known_to_ledger(delivery), None
        while True:
            row = await self._ledger.cancel(delivery.run_id, due=delivery.job.trigger_at, sighted=sighted)
            if row.is_decided:
                return decision_of(row)
            if not row.is_expired or row.claim == sighted:
                raise _retryable("an attempt is under way", timedelta(seconds=1), type=UNSURE)
            await asyncio.sleep(GRACE)
            sighted = row.claim

    async def _ask_to_close(self, delivery: Delivery) -> None:
        """Cancel a workflow whose run was cancelled, which it has not been told of."""
        run = self._client.get_workflow_handle(delivery.job.workflow_id, first_execution_run_id=delivery.run_id)
        try:
            await run.cancel()
        except RPCError as error:
            log.warning("cancelled job not closed yet", extra={"reason": str(error), "job_id": delivery.job.id})

    # What follows serves runs from before the ledger, until the last of them has ended. Names are stored.

    @activity.defn(name="deliver_at_once")
    async def deliver_at_once(self, delivery: Delivery) -> Delivered:
        """Make the first attempt within the workflow task.

        Raises:
            ApplicationError: As `deliver` raises it.
        """
        taken = await self._taken_before(delivery)
        return taken or _delivered(await self.first_attempt(_known_to_ledger(delivery)))

    @activity.defn(name="settle")
    async def settle(self, delivery: Delivery) -> Delivered | None:
        """Cancel a run, and return the success of an attempt that was made before; None where there is none.

        Raises:
            ApplicationError, UnavailableError: As `cancel_delivery` raises them.
        """
        if taken := await self._taken_before(delivery):
            return taken
        decision = await self.cancel_delivery(delivery)
        return decision if isinstance(decision, Delivered) else None

    async def _taken_before(self, delivery: Delivery) -> Delivered | None:
        """Return the success of an attempt that a worker from before the ledger has logged, if there is one."""
        taken = await self._log.taken(activity.info().workflow_run_id or "")
        return _logged_success(delivery.job, taken) if taken else None

    async def _check_time(self, run_id: str, first: FirstAttempt) -> None:
        """Wait for the time that a first attempt has set, and for the end of one that an old worker may be making.

        Raises:
            ApplicationError: It is too early.
        """
        next_at = from_ms(first.next_at)
        if first.type == UNSURE and not await self._ledger.find(run_id):
            next_at += LONGEST_BEFORE
        if (early := next_at - datetime.now(UTC)) > timedelta(0):
            raise _retryable(first.reason, early, type=first.type)

    @activity.defn(name="find_taken")
    async def find_taken(self, delivery: Delivery) -> Delivered | None:
        """Do what `settle` does, which was another thing once."""
        return await self.settle(delivery)


def _known_to_ledger(delivery: Delivery) -> Delivery:
    """Return a delivery with the id and the attempts that the ledger goes by, which those from before are without."""
    details = activity.info().heartbeat_details
    if delivery.run_id and not details:
        return delivery
    first_run = "" if delivery.job.message_id else str(UUID(delivery.message_id.removeprefix("msg_")))
    made = AttemptsMade(**details[0]).made if details and isinstance(details[0], dict) else 0
    return replace(
        delivery,
        run_id=delivery.run_id or first_run or activity.info().workflow_run_id or "",
        made=max(delivery.made, made),
    )


def _logged_success(job: Job, taken: Attempt) -> Delivered:
    ended = taken.started_at + timedelta(milliseconds=taken.duration_ms)
    return Delivered(
        status=taken.status or 0,
        attempts=taken.attempt,
        delivered_at=to_ms(ended),
        late_ms=to_ms(taken.started_at) - job.trigger_time,
    )


def _delivered(outcome: Outcome) -> Delivered:
    """Return the success.

    Raises:
        ApplicationError: There is none.
    """
    if isinstance(outcome, Delivered):
        return outcome
    raise _as_error(outcome)


def _as_error(outcome: Failed | Held | Deferred | Unknown | Cancelled) -> ApplicationError:
    """Return what Temporal has to know of an outcome: when to try again, or that it is over."""
    match outcome:
        case Failed(next_at=None):
            return _final(outcome.reason, outcome.attempts, type="AttemptFailed")
        case Failed(next_at=int(next_at)):
            return _retryable(outcome.reason, from_ms(next_at) - datetime.now(UTC), type="AttemptFailed")
        case Deferred():
            return _retryable(outcome.reason, from_ms(outcome.next_at) - datetime.now(UTC), type="NotYet")
        case Held():
            return _final(outcome.reason, outcome.made, type=HELD)
        case Unknown():
            return _retryable(outcome.reason, timedelta(seconds=outcome.ask_after), type=UNSURE)
    return _retryable("the job was cancelled", ASK_AGAIN, type=UNSURE)


# A receiver's failure is no fault of the worker's, whose log and error metrics are spared it: benign.


def _retryable(reason: str, wait: timedelta, *, type: str) -> ApplicationError:  # noqa: A002 - Temporal's word
    wait = max(wait, timedelta(milliseconds=1))
    return ApplicationError(reason, type=type, next_retry_delay=wait, category=ApplicationErrorCategory.BENIGN)


def _final(reason: str, attempts: int, *, type: str) -> ApplicationError:  # noqa: A002 - Temporal's word
    made = AttemptsMade(made=attempts)
    return ApplicationError(reason, made, type=type, non_retryable=True, category=ApplicationErrorCategory.BENIGN)

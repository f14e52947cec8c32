"""How runs from before the ledger deliver: replayed as it was recorded, until the last of them has ended.

Nothing here is for new runs. It may be removed, with the activities `deliver_at_once`, `settle` and `find_taken`, when
no job is left that was started without `ledger` in its input (docs/upgrades.md, "To this version").
"""

import asyncio
from contextlib import suppress
from datetime import datetime, timedelta

from temporalio import workflow
from temporalio.common import Priority, RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, FailureError
from temporalio.exceptions import TimeoutError as ActivityTimeout

with workflow.unsafe.imports_passed_through():
    import msgspec

    from activities.before_ledger import DeliveriesBeforeLedger as Deliveries
    from timemachine.domain import stored_names
    from timemachine.domain.delivery import AttemptsMade, Delivery, FirstAttempt
    from timemachine.domain.jobs import Job, to_ms
    from timemachine.domain.outcomes import Delivered, Held
    from timemachine.domain.releases import HOLD_CHECKS
    from timemachine.temporal.search_attributes import IS_HELD

ATTEMPT_LIMIT = timedelta(seconds=60)
AT_ONCE_LIMIT = timedelta(seconds=5)
LOOK_LIMIT = timedelta(seconds=10)
LOOK_RETRY = RetryPolicy(maximum_interval=timedelta(seconds=5))
UNTIL_RELEASED = "until its moment"


class JobBeforeLedger:
    """The part of the `Job` workflow that only runs from before the ledger need. `JobWorkflow` has what both use."""

    _job: Job
    _attempt_in_task: bool
    _attempted: bool
    _first: FirstAttempt | None
    _attempts_made: int
    _hold_checks: int
    _release_at: datetime | None

    async def _until_due(self) -> None:
        raise NotImplementedError

    async def _continue_as_new(self) -> None:
        raise NotImplementedError

    def _first_attempt_may_be_lost(self) -> bool:
        raise NotImplementedError

    @property
    def _delivery(self) -> Delivery:
        raise NotImplementedError

    async def _run_before_ledger(self) -> Delivered:
        while True:
            try:
                await self._until_due()
            except asyncio.CancelledError:
                if self._first_attempt_may_be_lost():
                    return await self._settled()
                raise
            self._attempted = True
            outcome = await self._deliver()
            if isinstance(outcome, Delivered):
                return outcome
            await self._hold_before_ledger(outcome)
            if workflow.info().is_continue_as_new_suggested() and workflow.patched(stored_names.HELD_ARE_CUT):
                await self._continue_as_new()

    async def _deliver(self) -> Delivered | Held:
        """Make the first attempt within this workflow task, and have an activity make what further ones it takes."""
        if self._attempt_in_task:
            outcome = await self._deliver_at_once()
            self._attempt_in_task = False
            if not isinstance(outcome, FirstAttempt):
                return outcome
            self._first = outcome
        return await self._deliver_by_activity()

    async def _deliver_at_once(self) -> Delivered | Held | FirstAttempt:
        """Make the first attempt by a local activity: half of the events, and of the work, of a regular one.

        It is never cancelled: an attempt in flight decides.
        """
        if workflow.cancellation_reason() is not None:
            return await self._settled()
        attempt = workflow.start_local_activity_method(
            Deliveries.deliver_at_once,
            self._delivery,
            start_to_close_timeout=AT_ONCE_LIMIT,
            retry_policy=RetryPolicy(maximum_attempts=1),
            summary=f"POST to {self._job.route}",
        )
        with suppress(asyncio.CancelledError):
            await workflow.wait([attempt])
        try:
            return await attempt
        except FailureError as error:
            if workflow.cancellation_reason() is not None:
                return await self._settled()
            # A local activity's failure comes without an ActivityError around it; a time-out comes with one.
            return self._after_first(error.cause if isinstance(error, ActivityError) else error)

    def _after_first(self, cause: BaseException | None) -> Held | FirstAttempt:
        """Return what comes after a first attempt that did not deliver the job.

        Raises:
            ApplicationError: Nothing: there is to be no other attempt.
        """
        if not isinstance(cause, ApplicationError):
            return FirstAttempt(reason=str(cause), type=stored_names.OUTCOME_UNKNOWN, next_at=to_ms(workflow.now()))
        if cause.type == stored_names.HELD:
            return Held(reason=cause.message, attempts_made=_made(cause), since=workflow.now())
        if cause.non_retryable:
            raise _not_delivered(cause) from cause
        self._attempts_made = _made(cause) if cause.details else self._attempts_made
        next_at = workflow.now() + (cause.next_retry_delay or timedelta(0))
        return FirstAttempt(
            reason=cause.message, type=cause.type or stored_names.OUTCOME_UNKNOWN, next_at=to_ms(next_at)
        )

    async def _settled(self) -> Delivered:
        """Return the success of a first attempt that may have been made before the cancel request came.

        Raises:
            asyncio.CancelledError: There is none.
        """
        settling = workflow.start_activity_method(
            Deliveries.settle,
            self._delivery,
            start_to_close_timeout=LOOK_LIMIT,
            retry_policy=LOOK_RETRY,
            summary="was the job taken before it was cancelled?",
        )
        with suppress(asyncio.CancelledError):
            await workflow.wait([settling])
        if taken := await settling:
            return taken
        raise asyncio.CancelledError

    async def _deliver_by_activity(self) -> Delivered | Held:
        """Attempt until the receiver takes the job, and answer a cancel request exactly.

        A cancel request and the end of an attempt may come to us together. What the receiver took counts as taken:
        so, once cancelled, first let everything that came with the cancel request sink in (a condition is looked at
        only when nothing else is left to run), and only then pass it on, which does nothing to a delivery that is
        done. An attempt in flight is let finish, and decides; one that still waits for its time is never made.
        """
        delivery = self._start_delivery()
        try:
            await workflow.wait([delivery])
        except asyncio.CancelledError:
            await workflow.wait_condition(lambda: True)
            delivery.cancel()
        try:
            return await delivery
        except ActivityError as error:
            if workflow.cancellation_reason() is not None:
                if self._first and self._first.type == stored_names.OUTCOME_UNKNOWN:
                    return await self._settled()
                return await self._taken_before_the_cancel(error)
            if isinstance(error.cause, ApplicationError) and error.cause.type == stored_names.HELD:
                return Held(reason=error.cause.message, attempts_made=_made(error.cause), since=workflow.now())
            raise _not_delivered(error.cause) from error

    async def _taken_before_the_cancel(self, error: ActivityError) -> Delivered:
        """Return what the log has of an attempt whose worker died, for it may have been taken.

        Once the attempt waits to be made again, the error does not tell any more that a worker died.

        Raises:
            asyncio.CancelledError: None was taken, as far as anybody knows.
        """
        if isinstance(error.cause, ActivityTimeout) or workflow.patched(stored_names.EVERY_CANCEL_ASKS):
            taken = await workflow.execute_activity_method(
                Deliveries.find_taken,
                self._delivery,
                start_to_close_timeout=LOOK_LIMIT,
                retry_policy=LOOK_RETRY,
                summary="was an attempt taken whose worker died?",
            )
            if taken:
                return taken
        raise asyncio.CancelledError from error

    def _start_delivery(self) -> workflow.ActivityHandle[Delivered]:
        """Start the activity. It decides itself how often and when it is tried again; this is for lost workers."""
        return workflow.start_activity_method(
            Deliveries.deliver,
            self._delivery,
            start_to_close_timeout=ATTEMPT_LIMIT,
            retry_policy=RetryPolicy(
                initial_interval=timedelta(seconds=5), maximum_interval=timedelta(minutes=1), maximum_attempts=0
            ),
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            summary=f"POST to {self._job.route}",
            priority=Priority(fairness_key=self._job.fairness_key),
        )

    async def _hold_before_ledger(self, held: Held) -> None:
        """Wait until the job is released or changed. One that was never attempted can be changed meanwhile."""
        self._attempts_made = held.attempts_made
        self._attempted = held.attempts_made > 0
        self._release_at = None
        self._first = None
        workflow.upsert_memo({stored_names.HELD_SINCE: held})
        workflow.upsert_search_attributes([IS_HELD.value_set(True)])
        job, patience = self._job, HOLD_CHECKS[min(self._hold_checks, len(HOLD_CHECKS) - 1)]
        self._hold_checks += 1
        with suppress(TimeoutError):
            await workflow.wait_condition(
                lambda: self._release_at is not None or self._job is not job,
                timeout=patience,
                timeout_summary=f"held: {held.reason}",
            )
        workflow.upsert_search_attributes([IS_HELD.value_set(False)])
        if self._release_at:
            self._hold_checks = 0
            await self._until_released(self._release_at)
        workflow.upsert_memo({stored_names.HELD_SINCE: None})

    async def _until_released(self, release_at: datetime) -> None:
        """Wait for the moment of a released job, unless it is triggered before."""
        wait = release_at - workflow.now()
        if wait <= timedelta(0):
            await workflow.sleep(timedelta(0), summary=UNTIL_RELEASED)  # a timer all the same: so it was recorded
            return
        with suppress(TimeoutError):
            await workflow.wait_condition(
                lambda: self._release_at is None, timeout=wait, timeout_summary=UNTIL_RELEASED
            )


def _not_delivered(cause: BaseException | None) -> ApplicationError:
    """Return the failure that the workflow ends with: the last attempt's reason and the number of attempts."""
    if isinstance(cause, ApplicationError):
        return ApplicationError(cause.message, *cause.details, type=stored_names.NOT_DELIVERED)
    return ApplicationError(str(cause), type=stored_names.NOT_DELIVERED)


def _made(cause: ApplicationError) -> int:
    """Return how many attempts an error says were made."""
    return msgspec.convert(cause.details[0], AttemptsMade).made

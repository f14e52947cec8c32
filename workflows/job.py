"""The `Job` workflow: wait until the trigger time, deliver, finish."""

import asyncio
from contextlib import suppress
from datetime import datetime, timedelta
from typing import NoReturn

from temporalio import workflow
from temporalio.common import Priority, RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, FailureError
from temporalio.exceptions import TimeoutError as ActivityTimeout

with workflow.unsafe.imports_passed_through():
    import msgspec

    from activities.deliver import HELD, Deliveries, nothing
    from timemachine.delivery import UNSURE, AttemptsMade, Delivered, Delivery, FirstAttempt, Held
    from timemachine.job_runs import CHANGED_JOB
    from timemachine.jobs import Job, message_id, to_ms
    from timemachine.temporal import IS_HELD, ROUTE, TRIGGER_TIME

ATTEMPT_LIMIT = timedelta(seconds=60)
"""Time after which an attempt is taken for lost with its worker. Longer than the settings let any attempt last."""

AT_ONCE_LIMIT = timedelta(seconds=5)
"""Longest time that a workflow task is held by the first attempt; the server takes the task for lost after ten."""

LOOK_LIMIT = timedelta(seconds=10)
LOOK_RETRY = RetryPolicy(maximum_interval=timedelta(seconds=5))

LOOK_AGAIN = (timedelta(seconds=10), timedelta(minutes=2), timedelta(minutes=20), timedelta(hours=4), timedelta(days=1))
"""Times after which a held job looks at its route again, the last one for ever: it may have been held in the very
moment in which the others were released, and a signal that was missed must not lose it."""

# Ids of changes to the workflow. Stored: do not rename.
EVERY_CANCEL_ASKS = "2026-11-every-cancel-asks-the-log"
HELD_ARE_CUT = "2026-11-held-jobs-are-continued-as-new"

TOO_LATE = "TooLate"
"""Error type of an update that came after the first attempt had begun."""

HELD_SINCE = "held"
"""Memo key of why and since when a job is held. Stored: do not rename."""


@workflow.defn(name="Job")
class JobWorkflow:
    """One job. Started with a delay until its trigger time, so that it costs no worker anything while it waits."""

    @workflow.init
    def __init__(self, job: Job) -> None:
        """Take the job, before any update can come in."""
        self._job = job
        self._at_once = job.at_once
        self._first: FirstAttempt | None = None
        self._attempted = job.made > 0
        self._made = job.made
        self._looks = 0
        self._release_at: datetime | None = None

    @workflow.run
    async def run(self, job: Job) -> Delivered:
        """Wait, then deliver; while the route is paused or disabled, hold the job.

        The workflow ends Completed when the receiver took the job, Failed when all attempts were used up, and Canceled
        when it was cancelled in time.
        """
        while True:
            try:
                await self._until_due()
            except asyncio.CancelledError:
                if self._may_be_lost():
                    return await self._settled()
                raise
            self._attempted = True
            outcome = await self._deliver()
            if isinstance(outcome, Delivered):
                return outcome
            await self._hold(outcome)
            if workflow.info().is_continue_as_new_suggested() and workflow.patched(HELD_ARE_CUT):
                await self._continue_as_new()

    @workflow.update(name="change")
    def change(self, job: Job) -> None:
        """Replace trigger time, meta and route of a job that waits.

        Refused once it is due, or was attempted; so one that is delivered once more is never changed.
        """
        self._job = job
        if job.trigger_at <= workflow.now():
            # Within this workflow task an attempt would be made before the change that led to it is durable.
            self._at_once = False
        workflow.upsert_memo({CHANGED_JOB: job})
        workflow.upsert_search_attributes([ROUTE.value_set(job.route_key), TRIGGER_TIME.value_set(job.trigger_at)])
        workflow.set_current_details(f"Changed: now due {job.trigger_at.isoformat()} on route `{job.route}`.")

    @change.validator
    def _in_time(self, job: Job) -> None:
        redelivered = self._job.message_id is not None
        if self._attempted or redelivered or self._may_be_lost():
            raise ApplicationError("the job is being delivered", type=TOO_LATE)

    @workflow.signal(name="release")
    def release(self, spread: float) -> None:
        """Let a held job go, at a moment of its own within `spread` seconds; one that is not held is left alone."""
        self._release_at = workflow.now() + timedelta(seconds=workflow.random().uniform(0, spread))

    async def _until_due(self) -> None:
        """Wait for the trigger time, which an update may move, even past the server's own delay."""
        while (wait := self._job.trigger_at - workflow.now()) > timedelta(0):
            if workflow.info().is_continue_as_new_suggested():
                await self._continue_as_new()
            await self._pass(wait)

    async def _continue_as_new(self) -> NoReturn:
        """Go on as a new run with a short history: each change and each look of a held job has the whole job in it.

        A cancel request that came together with a change is told to us after the change has woken us, when nothing is
        left to run; it must find us waiting, or it would end with this run. A timer would do, but takes a second.
        """
        await workflow.execute_local_activity(nothing, start_to_close_timeout=AT_ONCE_LIMIT)
        await workflow.wait_condition(workflow.all_handlers_finished)
        workflow.continue_as_new(msgspec.structs.replace(self._job, at_once=self._at_once, made=self._made))

    async def _pass(self, wait: timedelta) -> None:
        """Let time pass, until the trigger time is moved or the history has grown long at the latest."""
        seen = self._job.trigger_time
        with suppress(TimeoutError):
            await workflow.wait_condition(
                lambda: self._job.trigger_time != seen or workflow.info().is_continue_as_new_suggested(),
                timeout=wait,
                timeout_summary="until due",
            )

    def _may_be_lost(self) -> bool:
        """Return whether the first attempt may have been made already, in a workflow task that was lost.

        Of such a task nothing is known here: the workflow has been set back to before it. So once the job is due,
        nothing that would undo the attempt is believed before the activity was asked.
        """
        return self._at_once and workflow.now() >= self._job.trigger_at

    async def _deliver(self) -> Delivered | Held:
        """Make the first attempt within this workflow task, and have an activity make what further ones it takes."""
        if self._at_once:
            outcome = await self._deliver_at_once()
            self._at_once = False
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
            return FirstAttempt(reason=str(cause), type=UNSURE, next_at=to_ms(workflow.now()))
        if cause.type == HELD:
            return Held(reason=cause.message, made=_made(cause), since=workflow.now())
        if cause.non_retryable:
            raise _not_delivered(cause) from cause
        self._made = _made(cause) if cause.details else self._made
        next_at = workflow.now() + (cause.next_retry_delay or timedelta(0))
        return FirstAttempt(reason=cause.message, type=cause.type or UNSURE, next_at=to_ms(next_at))

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
                if self._first and self._first.type == UNSURE:
                    return await self._settled()
                return await self._taken_before_the_cancel(error)
            if isinstance(error.cause, ApplicationError) and error.cause.type == HELD:
                return Held(reason=error.cause.message, made=_made(error.cause), since=workflow.now())
            raise _not_delivered(error.cause) from error

    async def _taken_before_the_cancel(self, error: ActivityError) -> Delivered:
        """Return what the log has of an attempt whose worker died, for it may have been taken.

        Once the attempt waits to be made again, the error does not tell any more that a worker died.

        Raises:
            asyncio.CancelledError: None was taken, as far as anybody knows.
        """
        if isinstance(error.cause, ActivityTimeout) or workflow.patched(EVERY_CANCEL_ASKS):
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

    @property
    def _delivery(self) -> Delivery:
        first_run = workflow.info().first_execution_run_id
        message = self._job.message_id or message_id(first_run)
        return Delivery(job=self._job, message_id=message, made=self._made, first=self._first)

    async def _hold(self, held: Held) -> None:
        """Wait until the job is released or changed. One that was never attempted can be changed meanwhile."""
        self._made, self._attempted, self._release_at, self._first = held.made, held.made > 0, None, None
        workflow.upsert_memo({HELD_SINCE: held})
        workflow.upsert_search_attributes([IS_HELD.value_set(True)])
        job, patience = self._job, LOOK_AGAIN[min(self._looks, len(LOOK_AGAIN) - 1)]
        self._looks += 1
        with suppress(TimeoutError):
            await workflow.wait_condition(
                lambda: self._release_at is not None or self._job is not job,
                timeout=patience,
                timeout_summary=f"held: {held.reason}",
            )
        workflow.upsert_search_attributes([IS_HELD.value_set(False)])
        if self._release_at:
            self._looks = 0
            await workflow.sleep(max(self._release_at - workflow.now(), timedelta(0)), summary="until its moment")
        workflow.upsert_memo({HELD_SINCE: None})


def _not_delivered(cause: BaseException | None) -> ApplicationError:
    """Return the failure that the workflow ends with: the last attempt's reason and the number of attempts."""
    if isinstance(cause, ApplicationError):
        return ApplicationError(cause.message, *cause.details, type="NotDelivered")
    return ApplicationError(str(cause), type="NotDelivered")


def _made(cause: ApplicationError) -> int:
    """Return how many attempts an error says were made."""
    return msgspec.convert(cause.details[0], AttemptsMade).made

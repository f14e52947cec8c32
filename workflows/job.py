"""The `Job` workflow: wait until the trigger time, deliver, finish."""

import asyncio
from contextlib import suppress
from datetime import datetime, timedelta
from typing import NoReturn, TypeVar

from temporalio import workflow
from temporalio.common import Priority, RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, FailureError, is_cancelled_exception
from temporalio.workflow import ParentClosePolicy

with workflow.unsafe.imports_passed_through():
    import msgspec

    from activities.deliver import Deliveries, nothing
    from timemachine.domain import stored_names
    from timemachine.domain.delivery import AttemptsMade, Delivery, HoldReport
    from timemachine.domain.jobs import Job, message_id, to_ms
    from timemachine.domain.outcomes import (
        Cancelled,
        Decision,
        Deferred,
        Delivered,
        Failed,
        Held,
        Outcome,
        Unknown,
        wait_of,
    )
    from timemachine.domain.releases import HOLD_CHECKS, release_window
    from timemachine.domain.traces import with_links
    from timemachine.domain.wake import ContinuedRun
    from timemachine.temporal.search_attributes import IS_HELD, LABELS, ROUTE, TRIGGER_TIME
    from workflows.job_before_ledger import JobBeforeLedger

T = TypeVar("T")

LOCAL_ACTIVITY_TIMEOUT = timedelta(seconds=5)
"""Longest time that a workflow task is held by an activity within it; the server takes the task for lost after ten."""

DELIVER_TIMEOUT = timedelta(minutes=2)
HEARTBEAT_TIMEOUT = timedelta(seconds=10)
"""Time without a heartbeat after which an attempt is taken for lost with its worker."""

CANCEL_TIMEOUT = timedelta(seconds=10)

CLOCK_STEP = timedelta(seconds=5)
"""Time by which Temporal's clock may be set back: a timer that fires before its time by no more is set once more."""


@workflow.defn(name=stored_names.JOB)
class JobWorkflow(JobBeforeLedger):
    """One job. Started with a delay until its trigger time, so that it costs no worker anything while it waits."""

    @workflow.init
    def __init__(self, job: Job) -> None:
        """Take the job, before any update can come in."""
        self._job = job
        self._attempt_in_task = job.attempt_in_task
        self._first = None
        # What a run now has promised holds for the run that it is continued as, too.
        self._attempted = job.attempts_made > 0 or job.planned_time is not None
        self._attempts_made = job.attempts_made
        self._hold_checks = job.hold_checks
        # The ledger tells a run that goes on as another one, or was reset, of the holds before.
        self._holds = 0
        self._release_at = None
        self._has_long_history = False

    @workflow.run
    async def run(self, job: Job) -> Delivered:
        """Wait, then deliver; while the route is paused or disabled, hold the job.

        The workflow ends Completed when the receiver took the job, Failed when all attempts were used up, and Canceled
        when it was cancelled in time: as the ledger's row says, whoever asked for the cancel.
        """
        if not job.ledger:
            return await self._run_before_ledger()
        try:
            return await self._deliver_when_due()
        except (asyncio.CancelledError, FailureError) as error:
            if not is_cancelled_exception(error):
                raise
            return _return_or_raise(await self._cancel())

    async def _deliver_when_due(self) -> Delivered:
        while True:
            await self._until_due()
            self._attempted = True
            outcome = await self._attempt()
            if not isinstance(outcome, Held):
                return _return_or_raise(outcome)
            self._holds, self._attempts_made = max(self._holds, outcome.holds), outcome.attempts_made
            if outcome.is_over:
                continue
            await self._hold(outcome)
            self._look_at_history()
            if self._is_to_continue_as_new():
                await self._continue_as_new()

    @workflow.update(name=stored_names.CHANGE)
    def change(self, job: Job) -> None:
        """Replace trigger time, meta and route of a job that waits.

        Refused once it is due, or was attempted; so one that is delivered once more is never changed.
        """
        before = self._job
        links = with_links(before.trace_links, job.trace_links)
        self._replace_job(msgspec.structs.replace(job, ledger=before.ledger, trace_links=links))
        workflow.upsert_search_attributes([ROUTE.value_set(job.route_key), TRIGGER_TIME.value_set(job.trigger_at)])
        if job.labels != before.labels:
            labels = LABELS.value_set(job.labels) if job.labels else LABELS.value_unset()
            workflow.upsert_search_attributes([labels])
        self._look_at_history()
        workflow.set_current_details(f"Changed: now due {job.trigger_at.isoformat()} on route `{job.route}`.")

    @workflow.update(name=stored_names.TRIGGER)
    def trigger(self, trace_links: tuple[str, ...] = ()) -> None:
        """Have a job that waits go out now, also one that waits for its moment after a release.

        One whose route is paused or disabled is held again, and released as if it had become due now.

        Args:
            trace_links: The request that asks for it. Updates from before links are without.
        """
        now = workflow.now()
        first_planned = self._job.trigger_time if self._job.planned_time is None else self._job.planned_time
        links = with_links(self._job.trace_links, trace_links)
        triggered = msgspec.structs.replace(
            self._job, trigger_time=to_ms(now), planned_time=first_planned, trace_links=links
        )
        self._replace_job(triggered)
        self._release_at = None
        # Else a change that comes in the same moment would take back what was answered.
        self._attempted = True
        workflow.upsert_search_attributes([TRIGGER_TIME.value_set(self._job.trigger_at)])
        workflow.set_current_details(f"Triggered at {now.isoformat()}.")

    def _replace_job(self, job: Job) -> None:
        """Store another version of the job, which is the only one from now on."""
        self._job = job
        # A held job asks whether its new version may go out, and is held anew if not: as one that was never held.
        self._hold_checks = 0
        if job.trigger_at <= workflow.now():
            # The Update is stored only when this workflow task completes. An attempt within the task would be sent
            # before the change is durable.
            self._attempt_in_task = False
        workflow.upsert_memo({stored_names.CHANGED_JOB: self._job})

    @change.validator
    def validate_change(self, job: Job) -> None:
        """Refuse what comes too late, before anything of it is stored."""
        self._check_waiting()

    @trigger.validator
    def validate_trigger(self, trace_links: tuple[str, ...] = ()) -> None:
        """Refuse what comes too late, before anything of it is stored."""
        self._check_waiting()

    def _check_waiting(self) -> None:
        redelivered = self._job.message_id is not None
        if self._attempted or redelivered or self._first_attempt_may_be_lost():
            raise ApplicationError("the job is being delivered", type=stored_names.TOO_LATE)

    @workflow.update(name=stored_names.WAKE)
    def wake(self) -> str:
        """Return the id of this run, which is awake when it returns it."""
        return workflow.info().run_id

    @workflow.signal(name=stored_names.RELEASE_JOB)
    def release(self, spread: float) -> None:
        """Release a held job, at a moment of its own within `spread` seconds, and in time for its deadline.

        One that is not held ignores it. One that was released before keeps its moment, unless that lies beyond these
        seconds.
        """
        window = timedelta(seconds=spread)
        if self._job.deadline is not None and workflow.patched(stored_names.RELEASED_BEFORE_DEADLINE):
            window = release_window(self._job, workflow.now(), spread)
        if self._release_at is None or self._release_at > workflow.now() + window:
            moment = workflow.random().uniform(0, window.total_seconds())
            self._release_at = workflow.now() + timedelta(seconds=moment)

    @property
    def _delivery(self) -> Delivery:
        first_run = workflow.info().first_execution_run_id
        message = self._job.message_id or message_id(first_run)
        return Delivery(
            job=self._job,
            message_id=message,
            attempts_made=self._attempts_made,
            first=self._first,
            run_id=first_run,
            holds=self._holds if self._job.ledger else None,
        )

    def _first_attempt_may_be_lost(self) -> bool:
        """Return whether the first attempt may have been made already, in a workflow task that was lost.

        Of such a task nothing is known here: the workflow has been set back to before it. So once the job is due,
        nothing that would undo the attempt is believed before the activity was asked.

        A later run makes no attempt within its task. After an operator's reset Temporal hands it once more the changes
        that were confirmed. They are to be taken, though the job as it was before them is due.
        """
        is_due = self._attempt_in_task and workflow.now() >= self._job.trigger_at
        return is_due and (self._is_first_run or not self._job.ledger)

    @property
    def _is_first_run(self) -> bool:
        """Whether neither a reset nor continue-as-new has made another run of the one that was started."""
        return workflow.info().run_id == workflow.info().first_execution_run_id

    def _leaves_attempts_to_activity(self) -> bool:
        """Return whether this run makes no attempt within its task: a later one, but for those of older workers."""
        # The SDK's replayer takes every run for the first one, so that in a replay the history alone decides.
        may_be_later = not self._is_first_run or workflow.unsafe.is_replaying()
        return may_be_later and workflow.patched(stored_names.FIRST_RUN_ATTEMPTS_IN_TASK)

    async def _until_due(self) -> None:
        """Wait for the trigger time, which an update may move, even past the server's own delay."""
        while (wait := self._job.trigger_at - workflow.now()) > timedelta(0):
            if self._is_to_continue_as_new():
                await self._continue_as_new()
            await self._wait_unless_moved_earlier(wait)

    async def _wait_unless_moved_earlier(self, wait: timedelta) -> None:
        """Let time pass, until the job is moved to an earlier one or the history has grown long at the latest.

        A job that is moved later waits on by the timer that is there: each costs four events to replace.
        """
        seen = self._job.trigger_time
        any_move = not self._job.ledger
        with suppress(TimeoutError):
            await workflow.wait_condition(
                lambda: (
                    self._job.trigger_time < seen
                    or (any_move and self._job.trigger_time != seen)
                    or self._is_to_continue_as_new()
                ),
                timeout=wait,
                timeout_summary="until due",
            )

    def _look_at_history(self) -> None:
        """Note that the history has reached the job's limit, but not where an older worker let it grow further."""
        if 0 < self._job.history_limit <= workflow.info().get_current_history_length():
            self._has_long_history = workflow.patched(stored_names.CUT_AT_LIMIT)

    def _is_to_continue_as_new(self) -> bool:
        return self._has_long_history or workflow.info().is_continue_as_new_suggested()

    async def _continue_as_new(self) -> NoReturn:
        """Go on as a new run with a short history: each change, and each check of a held job, holds the whole job."""
        # A cancel request in the same activation is delivered only once all coroutines wait. This activity has us
        # wait, so that the cancel is raised here and not lost in the cut.
        await workflow.execute_local_activity(nothing, start_to_close_timeout=LOCAL_ACTIVITY_TIMEOUT)
        if self._job.ledger or workflow.patched(stored_names.WAKE_AFTER_CUT):
            await self._start_waker()
        await workflow.wait_condition(workflow.all_handlers_finished)
        workflow.continue_as_new(
            msgspec.structs.replace(
                self._job,
                attempt_in_task=self._attempt_in_task,
                attempts_made=self._attempts_made,
                hold_checks=self._hold_checks,
            )
        )

    async def _start_waker(self) -> None:
        """Have the next run woken: it begins with what is left of the start delay of the first one (decision 20).

        Only an Update or a cancel ends that.
        """
        info = workflow.info()
        continued = ContinuedRun(
            workflow_id=info.workflow_id, first_run_id=info.first_execution_run_id, run_id=info.run_id
        )
        # Not the run's id: after an operator's reset to this point the history is another run's.
        waker_id = f"{stored_names.WAKE_ID_PREFIX}{workflow.uuid4()}"
        if not workflow.patched(stored_names.WAKER_IS_NO_JOB):
            waker_id = continued.former_waker_id
        _ = await workflow.start_child_workflow(
            stored_names.WAKE_JOB, continued, id=waker_id, parent_close_policy=ParentClosePolicy.ABANDON
        )

    async def _attempt(self) -> Decision | Held:
        """Make the first attempt within this workflow task, and have an activity make what further ones it takes."""
        if self._attempt_in_task and not self._leaves_attempts_to_activity():
            outcome = await self._first_attempt()
            self._attempt_in_task = False
            match outcome:
                case Delivered() | Held() | Failed(next_at=None):
                    return outcome
                case Failed() | Deferred():
                    wait = wait_of(outcome, workflow.now())
                    await workflow.sleep(wait, summary=_summary(f"next attempt; {outcome.reason}"))
        return await self._later_attempts()

    async def _first_attempt(self) -> Outcome:
        """Make the first attempt by a local activity: half of the events, and of the work, of a regular one."""
        if workflow.cancellation_reason() is not None:
            # A cancel request that comes with the first task is known before it is raised in us.
            raise asyncio.CancelledError
        attempt = workflow.start_local_activity_method(
            Deliveries.first_attempt,
            self._delivery,
            start_to_close_timeout=LOCAL_ACTIVITY_TIMEOUT,
            retry_policy=RetryPolicy(maximum_attempts=1),
            summary=f"POST to {self._job.route}",
        )
        try:
            return await _wait_through_cancellation(attempt)
        except FailureError as error:
            return Unknown(reason=str(error))

    async def _later_attempts(self) -> Decision | Held:
        """Attempt until it is over. The activity itself says when it is tried again; the policy is for lost workers."""
        attempts = workflow.start_activity_method(
            Deliveries.deliver,
            self._delivery,
            start_to_close_timeout=DELIVER_TIMEOUT,
            heartbeat_timeout=HEARTBEAT_TIMEOUT,
            retry_policy=RetryPolicy(
                initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=10), maximum_attempts=0
            ),
            summary=f"POST to {self._job.route}",
            priority=Priority(fairness_key=self._job.fairness_key),
        )
        try:
            return await _wait_through_cancellation(attempts)
        except ActivityError as error:
            cause = error.cause
            if not isinstance(cause, ApplicationError):
                raise  # the activity is tried for ever, so that nothing but an operator can end it otherwise
            if cause.type == stored_names.HELD:
                return _held(cause)
            made = msgspec.convert(cause.details[0], AttemptsMade).made if cause.details else self._attempts_made
            return Failed(reason=cause.message, attempts=made)

    async def _cancel(self) -> Decision:
        """Have the ledger decide. An attempt that is under way goes on, and its end counts."""
        deciding = workflow.start_local_activity_method(
            Deliveries.cancel_delivery,
            self._delivery,
            start_to_close_timeout=LOCAL_ACTIVITY_TIMEOUT,
            retry_policy=RetryPolicy(maximum_attempts=1),
            summary="cancel, unless a receiver has taken it",
        )
        with suppress(asyncio.CancelledError):
            await workflow.wait([deciding])
        try:
            return await deciding
        except FailureError:
            # To ask again until an attempt has ended would hold the workflow task up.
            return await workflow.execute_activity_method(
                Deliveries.cancel_delivery,
                self._delivery,
                start_to_close_timeout=CANCEL_TIMEOUT,
                retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=10)),
                summary="cancel, once the attempt under way has ended",
            )

    async def _hold(self, held: Held) -> None:
        """Wait until the job is released or changed. One that was never attempted can be changed meanwhile."""
        self._release_at = None
        # What the job was before a change is not sent any more: the ledger has noted the hold.
        self._attempted = held.attempts_made > 0
        workflow.upsert_memo({stored_names.HELD_SINCE: held})
        workflow.upsert_search_attributes([IS_HELD.value_set(True)])
        workflow.set_current_details(f"Held: {held.reason}.")
        if self._hold_checks == 0:
            self._log("job held", reason=held.reason)
        job = self._job
        await self._until_out_of_hold(held)
        workflow.upsert_memo({stored_names.HELD_SINCE: None})
        workflow.upsert_search_attributes([IS_HELD.value_set(False)])
        if self._job is job:
            workflow.set_current_details("")
        if self._release_at:
            self._log("job released")

    async def _until_out_of_hold(self, held: Held) -> None:
        """Wait for a change of the job, for its moment after a release, or for the time to check the route.

        A timer that fires long before its time was set by a worker with other `HOLD_CHECKS`, and its end counts.
        """
        job, check_at = self._job, workflow.now() + HOLD_CHECKS[min(self._hold_checks, len(HOLD_CHECKS) - 1)]
        self._hold_checks += 1
        while self._job is job and (wait := (self._release_at or check_at) - workflow.now()) > timedelta(0):
            seen = self._release_at
            summary = "until its moment" if seen else _summary(f"held: {held.reason}")
            is_time_up = not await self._wait_for_change_or_release(job, seen, wait, summary)
            if is_time_up and (seen or check_at) - workflow.now() > CLOCK_STEP:
                return
            if self._release_at and self._release_at != seen:
                self._hold_checks = 0
                released = msgspec.structs.replace(held, release_at=to_ms(self._release_at))
                workflow.upsert_memo({stored_names.HELD_SINCE: released})
                workflow.upsert_search_attributes([IS_HELD.value_set(False)])

    def _log(self, event: str, **fields: str) -> None:
        """Log what happens to the job, once: a replay logs nothing."""
        workflow.logger.info(event, extra=self._job.log_fields | fields)

    async def _wait_for_change_or_release(
        self, job: Job, release_at: datetime | None, wait: timedelta, summary: str
    ) -> bool:
        """Wait, and return whether the held job is changed, or given another moment for its release, before that."""
        try:
            await workflow.wait_condition(
                lambda: self._job is not job or self._release_at != release_at, timeout=wait, timeout_summary=summary
            )
        except TimeoutError:
            return False
        return True


def _held(cause: ApplicationError) -> Held:
    """Return what the activity says of a hold."""
    report = msgspec.convert(cause.details[0], HoldReport)
    return Held(
        reason=cause.message,
        since=workflow.now(),
        attempts_made=report.attempts_made,
        holds=report.holds,
        is_over=report.is_over,
    )


def _summary(text: str) -> str:
    """Return a text as Temporal takes it for a summary: at most 200 bytes."""
    return text.encode()[:200].decode(errors="ignore")


async def _wait_through_cancellation(activity: "workflow.ActivityHandle[T]") -> T:
    """Wait for an activity that goes on when the workflow is cancelled meanwhile."""
    await workflow.wait([activity])
    return await activity


def _return_or_raise(decision: Decision) -> Delivered:
    """End as it was decided.

    Raises:
        ApplicationError: Failed, with the last attempt's reason and the number of attempts.
        asyncio.CancelledError: Cancelled.
    """
    match decision:
        case Delivered():
            return decision
        case Failed():
            raise ApplicationError(
                decision.reason, AttemptsMade(made=decision.attempts), type=stored_names.NOT_DELIVERED
            )
        case Cancelled():
            raise asyncio.CancelledError

"""The `Release` workflow: lets the held jobs of a resumed route go."""

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.common import Priority, RetryPolicy
from temporalio.exceptions import ActivityError
from temporalio.workflow import ActivityCancellationType

with workflow.unsafe.imports_passed_through():
    import msgspec

    from activities.release import Releases
    from timemachine.domain import stored_names
    from timemachine.domain.releases import Released, ReleaseHeld
    from timemachine.domain.task_queues import bulk_task_queue
    from workflows.stops import is_stopped, until_ended

LONGEST = timedelta(days=30)
SILENCE = timedelta(seconds=15)
"""Time without a sign of life after which the activity is taken for lost with its worker, and goes on elsewhere."""

EMPTY_LOOKS = 2
"""Looks in a row that must find nothing: Temporal's visibility, which is asked for held jobs, lags behind."""

BETWEEN_LOOKS = timedelta(seconds=1)


@workflow.defn(name=stored_names.RELEASE)
class ReleaseWorkflow:
    """A release, which ends when no job of the route is held any more, or the route is paused again.

    A cancel of the workflow stops it.
    """

    @workflow.init
    def __init__(self, release: ReleaseHeld) -> None:
        """Go on from the looks before."""
        self._told = release.told
        self._left = 0

    @workflow.run
    async def run(self, release: ReleaseHeld) -> Released:
        """Look for held jobs until there are none left, and return how many were told.

        Raises:
            asyncio.CancelledError: Stopped in a look that could not say how far it came.
        """
        try:
            stopped = await self._until_none_is_held(release)
        except ActivityError as error:
            if not is_stopped(error):
                raise
            raise asyncio.CancelledError from error
        return Released(told=self._told, found=self._left, stopped=stopped)

    async def _until_none_is_held(self, release: ReleaseHeld) -> bool:
        """Look again and again, and return whether it was stopped."""
        empty = 0
        while empty < EMPTY_LOOKS:
            released, is_stopped_now = await self._look(msgspec.structs.replace(release, told=self._told))
            self._told += released.signalled
            if released.stopped:
                self._left = max(0, released.found - released.signalled)
            if released.stopped or is_stopped_now or _is_stop_missed():
                return True
            release = msgspec.structs.replace(release, all_due=False)
            empty = 0 if released.signalled else empty + 1
            try:
                await workflow.sleep(BETWEEN_LOOKS)
            except asyncio.CancelledError:
                return True
            if workflow.info().is_continue_as_new_suggested():
                workflow.continue_as_new(msgspec.structs.replace(release, told=self._told))
        return False

    async def _look(self, release: ReleaseHeld) -> tuple[Released, bool]:
        looking = workflow.start_activity_method(
            Releases.release_held,
            release,
            task_queue=bulk_task_queue(workflow.info().task_queue),
            start_to_close_timeout=LONGEST,
            heartbeat_timeout=SILENCE,
            retry_policy=RetryPolicy(maximum_interval=timedelta(minutes=1)),
            cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            summary=f"held jobs of route {release.route_id}",
            priority=Priority(fairness_key=release.db),
        )
        return await until_ended(looking)


def _is_stop_missed() -> bool:
    """Return whether a stop was asked for that a look did not learn of, as it was about to end."""
    return workflow.cancellation_reason() is not None and workflow.patched(stored_names.STOPS_AFTER_ANY_LOOK)

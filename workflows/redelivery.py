"""The `Redelivery` workflow: the failed jobs of a route and a window of time, delivered once more."""

from datetime import timedelta

from temporalio import workflow
from temporalio.common import Priority, RetryPolicy
from temporalio.exceptions import ActivityError
from temporalio.workflow import ActivityCancellationType

with workflow.unsafe.imports_passed_through():
    from activities.redelivery import Redeliveries
    from timemachine.domain import stored_names
    from timemachine.domain.redelivery import FailedJobs, Progress, StoppedRedelivery
    from timemachine.domain.task_queues import bulk_task_queue
    from workflows.stops import VISIBILITY_LAG, is_stopped, until_ended

LONGEST = timedelta(days=30)
SILENCE = timedelta(seconds=15)
"""Time without a sign of life after which the activity is taken for lost with its worker, and goes on elsewhere."""


@workflow.defn(name=stored_names.REDELIVERY)
class RedeliveryWorkflow:
    """A redelivery of many jobs, whose progress is the heartbeat of its activity, and then its result.

    A cancel of the workflow stops it.
    """

    @workflow.run
    async def run(self, failed: FailedJobs) -> Progress:
        """Have the jobs started again, however long that takes."""
        try:
            return await self._redeliver(failed)
        except ActivityError as error:
            if not is_stopped(error):
                raise
        await workflow.sleep(VISIBILITY_LAG)
        return await self._count(failed)

    async def _redeliver(self, failed: FailedJobs) -> Progress:
        redelivering = workflow.start_activity_method(
            Redeliveries.redeliver_failed,
            failed,
            task_queue=bulk_task_queue(workflow.info().task_queue),
            start_to_close_timeout=LONGEST,
            heartbeat_timeout=SILENCE,
            retry_policy=RetryPolicy(maximum_interval=timedelta(minutes=1)),
            cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            summary=f"failed jobs of route {failed.route_id}",
            priority=Priority(fairness_key=failed.db),
        )
        progress, _ = await until_ended(redelivering)
        return progress

    async def _count(self, failed: FailedJobs) -> Progress:
        """Return what was started before a stop. It is short, and waits for none of those that were to have room."""
        return await workflow.execute_activity_method(
            Redeliveries.count_redelivered,
            StoppedRedelivery(failed=failed, started_at=workflow.info().start_time),
            task_queue=bulk_task_queue(workflow.info().task_queue),
            start_to_close_timeout=LONGEST,
            heartbeat_timeout=SILENCE,
            retry_policy=RetryPolicy(maximum_interval=timedelta(minutes=1)),
            summary=f"jobs of route {failed.route_id}, counted after a stop",
            priority=Priority(priority_key=1, fairness_key=failed.db),
        )

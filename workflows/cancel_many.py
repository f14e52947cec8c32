"""The `CancelMany` workflow: the jobs of a filter, cancelled."""

from datetime import timedelta

from temporalio import workflow
from temporalio.common import Priority, RetryPolicy
from temporalio.exceptions import ActivityError
from temporalio.workflow import ActivityCancellationType

with workflow.unsafe.imports_passed_through():
    import msgspec

    from activities.cancel_many import CancelsOfMany
    from timemachine.domain import stored_names
    from timemachine.domain.cancels import CancelJobs, CancelProgress, OpenJobs
    from timemachine.domain.task_queues import bulk_task_queue
    from workflows.stops import VISIBILITY_LAG, is_stopped, until_ended

LONGEST = timedelta(days=30)
SILENCE = timedelta(seconds=15)
"""Time without a sign of life after which the activity is taken for lost with its worker, and goes on elsewhere."""


@workflow.defn(name=stored_names.CANCEL_MANY)
class CancelManyWorkflow:
    """A cancel of many jobs, whose progress is the heartbeat of its activity, and then its result.

    Jobs are meant that were there when it was started, by Temporal's clock. A cancel of the workflow stops it.
    """

    @workflow.run
    async def run(self, asked: CancelJobs) -> CancelProgress:
        """Have the jobs cancelled, however long that takes, and return what became of them."""
        jobs = OpenJobs(filter=asked.filter, at=workflow.info().start_time)
        try:
            return await self._cancel(jobs)
        except ActivityError as error:
            if not is_stopped(error):
                raise
        await workflow.sleep(VISIBILITY_LAG)
        return await self._cancel(msgspec.structs.replace(jobs, stopped=True))

    async def _cancel(self, jobs: OpenJobs) -> CancelProgress:
        cancelling = workflow.start_activity_method(
            CancelsOfMany.cancel_matching,
            jobs,
            task_queue=bulk_task_queue(workflow.info().task_queue),
            start_to_close_timeout=LONGEST,
            heartbeat_timeout=SILENCE,
            retry_policy=RetryPolicy(maximum_interval=timedelta(minutes=1)),
            cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            summary="jobs counted after a stop" if jobs.stopped else f"jobs of db {jobs.filter.db}",
            # A count after a stop is short, and waits for none of those that the stop was to make room for.
            priority=Priority(priority_key=1 if jobs.stopped else None, fairness_key=jobs.filter.db),
        )
        progress, _ = await until_ended(cancelling)
        return progress

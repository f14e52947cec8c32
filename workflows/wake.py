"""The `Wake` workflow: outlives the run of a job that goes on as a new one, and wakes that."""

from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from activities.wake import Wakes
    from timemachine.domain import stored_names
    from timemachine.domain.wake import ContinuedRun

ATTEMPT_TIME = timedelta(minutes=1)


@workflow.defn(name=stored_names.WAKE_JOB)
class WakeWorkflow:
    """Wakes one run, however long Temporal or the workers are away meanwhile."""

    @workflow.run
    async def run(self, continued: ContinuedRun) -> None:
        """Wake the run after the given one."""
        await workflow.execute_activity_method(
            Wakes.wake,
            continued,
            start_to_close_timeout=ATTEMPT_TIME,
            retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=10)),
            summary=f"wake {continued.workflow_id}",
        )

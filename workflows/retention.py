"""The `CleanAttempts` workflow: run by a schedule, see `timemachine/setup.py`."""

from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from activities.retention import Retention
    from timemachine.domain import stored_names
    from timemachine.domain.retention import Cleaned
    from timemachine.domain.task_queues import bulk_task_queue


@workflow.defn(name=stored_names.CLEAN_ATTEMPTS)
class CleanAttemptsWorkflow:
    """One clean-up of the log of attempts."""

    @workflow.run
    async def run(self) -> Cleaned:
        """Have the old attempts removed."""
        return await workflow.execute_activity_method(
            Retention.clean_attempts,
            task_queue=bulk_task_queue(workflow.info().task_queue),
            start_to_close_timeout=timedelta(minutes=50),
            heartbeat_timeout=timedelta(seconds=30),
            retry_policy=RetryPolicy(maximum_interval=timedelta(minutes=5)),
        )

"""The straightforward workflow, as a tutorial would write it."""

import asyncio
from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from benchmarks.straightforward.activity import Job, Webhooks


@workflow.defn
class StraightforwardWorkflow:
    """Sleeps until the trigger time, then has the webhook called."""

    @workflow.run
    async def run(self, job: Job) -> int:
        """Return the receiver's status."""
        await asyncio.sleep(max(0.0, job.trigger_time / 1000 - workflow.time()))
        return await workflow.execute_activity_method(
            Webhooks.call_webhook, job, start_to_close_timeout=timedelta(seconds=60)
        )

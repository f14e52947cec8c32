"""A workflow that does nothing: what a workflow for each job costs at least."""

from temporalio import workflow


@workflow.defn
class EmptyWorkflow:
    """Is started with a delay, and ends when that is over."""

    @workflow.run
    async def run(self, job_id: str) -> None:
        """Do nothing."""

"""The `wake` activity: sees to it that a job which goes on as a new run does not sleep through its time."""

import asyncio
from datetime import timedelta

from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowUpdateRPCTimeoutOrCancelledError
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.service import RPCError, RPCStatusCode

from timemachine.domain import stored_names
from timemachine.domain.wake import ContinuedRun
from timemachine.temporal.job_runs import first_run_id, refuses_updates

UPDATE_LIMIT = timedelta(seconds=5)
"""Longest time that an update is waited for, which may have been lost with the run that ended."""

PAUSE = 1.0
"""Seconds between two looks while the old run has not ended yet."""


class Wakes:
    """Wakes runs by an update, the only thing besides a cancel that ends a first task's back-off."""

    def __init__(self, client: Client) -> None:
        """Take the client of Temporal."""
        self._client = client

    @activity.defn(name=stored_names.WAKE_RUN)
    async def wake(self, continued: ContinuedRun) -> None:
        """Return once a run after the one that is continued is awake, or the job has ended.

        Raises:
            RPCError, ApplicationError: Temporal, or the workflow, does not answer; to be tried again.
        """
        while await self._is_asleep(continued):  # noqa: ASYNC110 - nothing else tells when the old run ends
            await asyncio.sleep(PAUSE)

    async def _is_asleep(self, continued: ContinuedRun) -> bool:
        """Wake the job's run, and return whether that was still the old one."""
        job = self._client.get_workflow_handle(continued.workflow_id, first_execution_run_id=continued.first_run_id)
        try:
            latest = await job.describe(rpc_timeout=UPDATE_LIMIT)
            if first_run_id(latest) != continued.first_run_id:
                return False
            if refuses_updates(latest):
                raise ApplicationError("its workflow task was lost", category=ApplicationErrorCategory.BENIGN)
            awake: str = await job.execute_update(stored_names.WAKE, result_type=str, rpc_timeout=UPDATE_LIMIT)
        except WorkflowUpdateRPCTimeoutOrCancelledError as error:
            raise ApplicationError("no answer yet", category=ApplicationErrorCategory.BENIGN) from error
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            return await self._is_being_continued(continued)
        return awake == continued.run_id

    async def _is_being_continued(self, continued: ContinuedRun) -> bool:
        """Return whether the job, which has no run that takes an update in this moment, has not ended."""
        try:
            latest = await self._client.get_workflow_handle(continued.workflow_id).describe()
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return False
            raise
        return latest.status is WorkflowExecutionStatus.RUNNING and first_run_id(latest) == continued.first_run_id

"""The `redeliver_failed` activity: the failed jobs of a route, started again one by one."""

import asyncio
from datetime import UTC, datetime

import msgspec
from temporalio import activity
from temporalio.client import Client, WorkflowExecution
from temporalio.exceptions import WorkflowAlreadyStartedError

from activities.bulk import COUNTED_AT_ONCE, BulkRun, is_stop_requested, to_its_end
from activities.rate_limit import RateLimiter
from timemachine.domain import stored_names
from timemachine.domain.errors import NoSuchJobError, TooLateError
from timemachine.domain.job_filter import JobFilter
from timemachine.domain.outcomes import RowState
from timemachine.domain.redelivery import FailedJobs, PageStart, Progress, StoppedRedelivery, furthest
from timemachine.postgres.delivery_ledger import DeliveryLedger
from timemachine.settings import Settings
from timemachine.temporal.job_runs import Redelivers, describe_job, latest_run, redeliver, redelivers
from timemachine.temporal.visibility import job_query, later_runs_query, listed_job, runs_since_query

PAGE = 100


class Redeliveries:
    """Starts failed jobs again, at a bounded rate."""

    def __init__(self, client: Client, ledger: DeliveryLedger, settings: Settings, rate: RateLimiter) -> None:
        """Take the client of Temporal, and the rate that all bulk work of this worker shares."""
        self._client = client
        self._ledger = ledger
        self._task_queue = settings.task_queue
        self._rate = rate

    @activity.defn(name=stored_names.REDELIVER_FAILED)
    async def redeliver_failed(self, failed: FailedJobs) -> Progress:
        """Start each job again that failed within the window and to which nothing has happened since.

        After its worker's death it goes on with the page that was being worked on. What had been started from it is
        recognised, and neither started again nor counted twice. One that is stopped says how far it came, if it knows.

        Raises:
            ApplicationError: This worker stops, or others take their turn; to be gone on with.
            RPCError: Temporal does not answer; to be tried again.
        """
        before, start = _resumed() or await self._begin(failed)
        run, progress = BulkRun(), start.progress
        # One that was killed may have started more of its page than it has told.
        is_exact = activity.info().attempt == 1

        async def take_up(failure: WorkflowExecution) -> None:
            nonlocal progress
            is_started = await self._started(failure)
            progress = _counted(progress, is_started=is_started)

        run.heartbeat(furthest(before, progress), start)
        try:
            while True:
                page = self._client.list_workflows(_query(failed), page_size=PAGE, next_page_token=start.token or None)
                await page.fetch_next_page()
                progress = start.progress
                for failure in page.current_page or ():
                    if not failed.filter.includes(listed_job(failure, datetime.now(UTC))):
                        continue
                    await self._rate.acquire()
                    await to_its_end(take_up(failure))
                    run.heartbeat(furthest(before, progress), start)
                is_exact = True
                if not page.next_page_token:
                    return furthest(before, progress)
                start = PageStart(token=page.next_page_token, progress=progress)
                run.heartbeat(furthest(before, progress), start)
                run.yield_slot()
        except asyncio.CancelledError:
            if not is_stop_requested() or not is_exact:
                raise
            return msgspec.structs.replace(furthest(before, progress), stopped=True)

    async def _begin(self, failed: FailedJobs) -> tuple[Progress, PageStart]:
        progress = Progress(found=(await self._client.count_workflows(_query(failed))).count)
        return progress, PageStart(token=b"", progress=progress)

    @activity.defn(name=stored_names.COUNT_REDELIVERED)
    async def count_redelivered(self, stopped: StoppedRedelivery) -> Progress:
        """Return how far a redelivery came that was stopped: each run that it started says so in its memo.

        Raises:
            RPCError: Temporal does not answer; to be tried again.
        """
        failed, (found, _) = stopped.failed, await self._begin(stopped.failed)
        by, started = activity.info().workflow_run_id, set[str]()
        of_route = JobFilter(db=failed.db, route=failed.route_id)
        async for run in self._client.list_workflows(
            runs_since_query(of_route, stopped.started_at), page_size=COUNTED_AT_ONCE
        ):
            activity.heartbeat(msgspec.structs.replace(found, started=len(started)))
            if (of := await redelivers(run)) and of.by == by:
                started.add(of.run_id)
        return msgspec.structs.replace(found, started=len(started), stopped=True)

    async def _started(self, failure: WorkflowExecution) -> bool:
        """Start one job again, and return whether it is started, by this or an earlier attempt at it."""
        by = activity.info().workflow_run_id
        try:
            run = await latest_run(self._client, failure.id)
            if run.run_id != failure.run_id:
                return await self._has_started(failure)
            row, before = await self._ledger.find(run.first_run_id), await redelivers(run.description)
            if (row and row.state is RowState.TAKEN) or (before and before.by == by):
                return False
            await redeliver(self._client, run, row, task_queue=self._task_queue, by=by)
        except WorkflowAlreadyStartedError:
            # By somebody else, or by an attempt at this activity that was taken for lost and lives on.
            return await self._has_started(failure)
        except (NoSuchJobError, TooLateError):
            return False
        return True

    async def _has_started(self, failure: WorkflowExecution) -> bool:
        """Return whether this redelivery has started a job, whatever has happened to it since."""
        ours = Redelivers(run_id=failure.run_id, by=activity.info().workflow_run_id)
        # Visibility lags behind: it may not have the latest run yet.
        if await redelivers(await describe_job(self._client, failure.id)) == ours:
            return True
        failed_at = failure.close_time or failure.start_time
        later = self._client.list_workflows(later_runs_query([failure.id], failed_at))
        return any([await redelivers(run) == ours async for run in later])


def _counted(progress: Progress, *, is_started: bool) -> Progress:
    """Return the progress with one job more."""
    if is_started:
        return msgspec.structs.replace(progress, started=progress.started + 1)
    return msgspec.structs.replace(progress, skipped=progress.skipped + 1)


def _query(failed: FailedJobs) -> str:
    return job_query(failed.filter, datetime.now(UTC))


def _resumed() -> tuple[Progress, PageStart] | None:
    """Return how far the attempt before this one had come, and where it was, if there was one."""
    details = activity.info().heartbeat_details
    return (msgspec.convert(details[0], Progress), msgspec.convert(details[1], PageStart)) if details else None

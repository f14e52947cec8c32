"""The `cancel_matching` activity: the jobs of a filter, each cancelled as exactly as one by itself.

What is left to do shows by itself: it is what visibility finds open. So nothing has to be remembered of what was done
when another worker goes on, and what became of each job is counted in the end, from how it ended.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Sequence

import msgspec
from temporalio import activity
from temporalio.client import Client, WorkflowExecution, WorkflowExecutionDescription, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from activities.bulk import COUNTED_AT_ONCE, BulkRun, to_their_ends
from activities.cancel import Cancels
from activities.rate_limit import RateLimiter
from timemachine.domain import stored_names
from timemachine.domain.cancels import CancelProgress, OpenJobs
from timemachine.domain.job_filter import DECIDED_AS, ListedState
from timemachine.domain.jobs import log_fields_of
from timemachine.domain.outcomes import RowState
from timemachine.postgres.delivery_ledger import GRACE, DeliveryLedger
from timemachine.temporal.job_runs import first_run_id
from timemachine.temporal.visibility import (
    by_status,
    ended_as,
    ended_since_query,
    ended_state,
    going_on_since_query,
    listed_when_open,
    may_go_on,
    still_open_query,
)

log = logging.getLogger(__name__)

PAGE = 100
AT_ONCE = 10
"""Jobs that are being cancelled at a time: one after the other they would not keep up with a high rate."""

EMPTY_LOOKS = 2
"""Looks in a row that must find nothing to decide: Temporal's visibility, which is asked for jobs, lags behind."""

BETWEEN_LOOKS = GRACE
"""Seconds. Who has seen an expired claim in one look may take it over in the next."""


class CancelsOfMany:
    """Cancels the jobs of a filter, at a bounded rate."""

    def __init__(self, client: Client, ledger: DeliveryLedger, rate: RateLimiter) -> None:
        """Take the clients of Temporal and Postgres, and the rate that all bulk work of this worker shares."""
        self._client = client
        self._cancels = Cancels(client, ledger)
        self._rate = rate

    @activity.defn(name=stored_names.CANCEL_MATCHING)
    async def cancel_matching(self, jobs: OpenJobs) -> CancelProgress:
        """Cancel each of the jobs that has not ended, and return what became of all of them.

        An attempt in flight is not waited for: the job is looked at again until it is decided.

        Raises:
            ApplicationError: This worker stops, or others take their turn; to be gone on with.
            RPCError, UnavailableError: Temporal or Postgres does not answer; to be tried again.
            asyncio.CancelledError: The operation is to stop.
        """
        cancel = _Cancel(self._client, self._cancels, self._rate, jobs)
        await cancel.count_roughly()
        if not jobs.stopped:
            await cancel.until_all_are_decided()
        return await cancel.count()


class _Cancel:
    """One run of the activity."""

    def __init__(self, client: Client, cancels: Cancels, rate: RateLimiter, jobs: OpenJobs) -> None:
        self._client = client
        self._cancels = cancels
        self._rate = rate
        self._jobs = jobs
        self._open = still_open_query(jobs.filter, jobs.at)
        self._ended = ended_since_query(jobs.filter, jobs.at)
        self._going_on = going_on_since_query(jobs.filter, jobs.at)
        self._run = BulkRun()
        self._before = CancelProgress()
        self._decided: dict[str, ListedState] = {}
        """How jobs end that were open when this run began, by their workflow ids."""
        self._found = False
        self._expired: dict[str, str] = {}
        """Expired claims that are seen in this look, by first run."""
        self._expired_before: dict[str, str] = {}
        """Those that were seen in the look before."""

    async def count_roughly(self) -> None:
        """Find out how far the cancel is, as visibility has it: in a moment, but not exact to the letter."""
        ended = await self._client.count_workflows(by_status(self._ended))
        count = Counter[ListedState]()
        for group in ended.groups:
            if state := ended_state(str(group.group_values[0])):
                count[state] += group.count
        still_open = await self._count(self._open)
        self._before = CancelProgress(
            matched=count.total() + still_open,
            cancelled=count[ListedState.CANCELLED],
            delivered=count[ListedState.DELIVERED],
            failed=count[ListedState.FAILED],
        )

    async def until_all_are_decided(self) -> None:
        """Look for open jobs, and cancel them, until there are none to be decided."""
        empty = 0
        while empty < EMPTY_LOOKS:
            self._heartbeat()
            empty = 0 if await self._look() else empty + 1
            self._run.yield_slot()
            await asyncio.sleep(BETWEEN_LOOKS)

    async def _look(self) -> bool:
        """Cancel every job that is open, and return whether one was found that had not been decided before."""
        self._found, self._expired_before, self._expired = False, self._expired, {}
        async for page in self._pages(self._open, PAGE):
            await self._cancel_all([run for run in page if self._is_meant(run)])
            self._run.yield_slot()
        async for page in self._pages(self._going_on, PAGE):
            await self._cancel_all(page)
        return self._found

    async def _cancel_all(self, runs: Sequence[WorkflowExecution]) -> None:
        """Cancel some jobs, a few at a time. A step that was begun is done, even if the operation is to stop.

        A job that the ledger has as cancelled, and whose workflow is not told, would be open until it is due.
        """
        steps = set[asyncio.Task[None]]()
        try:
            for run in runs:
                await self._rate.acquire()
                self._heartbeat()
                if len(steps) >= AT_ONCE:
                    done, steps = await asyncio.wait(steps, return_when=asyncio.FIRST_COMPLETED)
                    for step in done:
                        step.result()  # what it failed with
                steps.add(asyncio.create_task(self._cancel(run)))
        finally:
            await to_their_ends(steps)
        self._heartbeat()

    async def _cancel(self, run: WorkflowExecution) -> None:
        latest = await self._latest(run)
        if latest is None or latest.status is not WorkflowExecutionStatus.RUNNING or not self._is_meant(latest):
            return
        first_run = first_run_id(latest)
        row = await self._cancels.ask(latest, self._expired_before.get(first_run))
        if row.is_expired and row.claim:
            self._expired[first_run] = row.claim
        if run.id in self._decided:
            return
        self._found = True
        if row.is_decided:
            self._decided[run.id] = DECIDED_AS[row.state]
        if row.state is RowState.CANCELLED:
            log.info("job cancelled", extra=log_fields_of(run.id) | {"run_id": first_run})

    async def _latest(self, run: WorkflowExecution) -> WorkflowExecutionDescription | None:
        """Return the run that a listed one goes on as; None where its job has ended, and was created again."""
        try:
            latest = await self._client.get_workflow_handle(run.id).describe()
            if latest.run_id == run.run_id:
                return latest
            listed = await self._client.get_workflow_handle(run.id, run_id=run.run_id).describe()
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None
            raise
        return latest if first_run_id(latest) == first_run_id(listed) else None

    def _is_meant(self, run: WorkflowExecution) -> bool:
        """Return whether a run that was listed is meant: not every store of visibility tells `a` from `A`."""
        return self._jobs.filter.includes(listed_when_open(run, self._jobs.at))

    async def _count(self, query: str) -> int:
        return (await self._client.count_workflows(query)).count

    async def _pages(self, query: str, size: int) -> AsyncIterator[Sequence[WorkflowExecution]]:
        listed = self._client.list_workflows(query, page_size=size)
        while True:
            await listed.fetch_next_page()
            yield listed.current_page or ()
            if not listed.next_page_token:
                return

    async def count(self) -> CancelProgress:
        """Count the jobs by what became of them, exactly."""
        outcomes: dict[str, ListedState | None] = {}
        for query in (self._open, self._ended):
            async for page in self._pages(query, COUNTED_AT_ONCE):
                for run in page:
                    if self._is_meant(run):
                        outcomes[run.id] = await self._outcome(run)
                self._heartbeat()
        counted = Counter(outcomes.values())
        return CancelProgress(
            matched=len(outcomes),
            cancelled=counted[ListedState.CANCELLED],
            delivered=counted[ListedState.DELIVERED],
            failed=counted[ListedState.FAILED],
            stopped=self._jobs.stopped,
        )

    async def _outcome(self, run: WorkflowExecution) -> ListedState | None:
        """Return how a job ends; None where it is open and not decided."""
        latest = await self._latest(run) if may_go_on(run) else run
        if known := ended_as(latest or run) or self._decided.get(run.id):
            return known
        # After a stop, this is another run of the activity than the one that cancelled.
        described = await self._latest(run)
        row = await self._cancels.find(described) if described else None
        return DECIDED_AS[row.state] if row and row.is_decided else None

    def _heartbeat(self) -> None:
        since = Counter(self._decided.values())
        before = self._before
        self._run.heartbeat(
            msgspec.structs.replace(
                before,
                matched=max(before.matched, before.cancelled + before.delivered + before.failed + since.total()),
                cancelled=before.cancelled + since[ListedState.CANCELLED],
                delivered=before.delivered + since[ListedState.DELIVERED],
                failed=before.failed + since[ListedState.FAILED],
            )
        )

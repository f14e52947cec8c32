"""Jobs that are due, and that Temporal would never run: each worker looks for them, and wakes them.

An update of a workflow that waits by its start delay gets a workflow task that only the memory of Temporal's history
service has. While there is one, the timer of the start delay does nothing when it fires; if the task is lost later, as
when the service restarts, gives the workflow up from its cache, or fails a request for it, nothing is left that would
ever run the workflow (decision 0021). Only another update, or a cancel, gives it a task again.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

from temporalio.client import Client, WorkflowExecution
from temporalio.service import RPCError, RPCStatusCode

from activities.rate_limit import RateLimiter
from timemachine.domain import stored_names
from timemachine.domain.errors import UnavailableError
from timemachine.postgres.delivery_ledger import DeliveryLedger
from timemachine.settings import Settings
from timemachine.temporal.search_attributes import IS_HELD, TRIGGER_TIME
from timemachine.temporal.visibility import all_due_jobs_query, release_moment

LOOK_EVERY = 15.0
"""Seconds between two looks, give or take a third, so that workers that were started together look apart. The first one
comes within a third of it: where workers are killed again and again, none may live until a second one."""

OVERDUE = timedelta(seconds=20)
"""How late a job is that is looked at. A task in Temporal's memory that no worker takes, or ends, is replaced within 15
seconds as long as it is not lost."""

LOOKS_AT_A_TIME = 20
"""Jobs that are read or woken at a time. Each may take `ANSWER_TIME` twice: of a busy Temporal, or where a worker dies
meanwhile. One by one, some fifty jobs that are merely late would keep those behind them waiting for minutes."""

COUNT_TIME = 10.0
"""Seconds that a count may take. A greater number than is found by then would tell nobody more."""

PAGE = 500
FIRST_EVENTS = 20
"""Events of a history that are read. One without a task has its start, and a few signals at the most."""

ANSWER_TIME = timedelta(seconds=5)

log = logging.getLogger(__name__)


class OverdueJobs:
    """Finds them, and wakes them."""

    def __init__(self, client: Client, ledger: DeliveryLedger, settings: Settings) -> None:
        """Take the clients of Temporal and Postgres. Jobs are looked at with the rate of bulk work."""
        self._client = client
        self._ledger = ledger
        self._rate = RateLimiter(settings.bulk_per_second)
        self._task_queue = settings.task_queue

    async def watch(self) -> None:
        """Look again and again, until it is cancelled."""
        await asyncio.sleep(LOOK_EVERY * random.uniform(0, 1 / 3))  # noqa: S311 - guards nothing
        while True:
            try:
                await self.look()
            except (RPCError, UnavailableError) as error:
                log.warning("overdue jobs not looked for", extra={"reason": str(error)})
            except Exception:
                log.exception("overdue jobs not looked for")
            await asyncio.sleep(LOOK_EVERY * random.uniform(2 / 3, 4 / 3))  # noqa: S311 - guards nothing

    async def look(self) -> None:
        """Wake each job that is overdue and has never had a workflow task. One that cannot be read is skipped.

        Raises:
            RPCError, UnavailableError: Temporal or Postgres does not answer.
        """
        looking = set[asyncio.Task[None]]()
        try:
            async for run in self._overdue(self._is_ours):
                await self._rate.acquire()
                if len(looking) >= LOOKS_AT_A_TIME:
                    _, looking = await asyncio.wait(looking, return_when=asyncio.FIRST_COMPLETED)
                looking.add(asyncio.create_task(self._look_at(run)))
        finally:
            await asyncio.gather(*looking)

    async def count(self) -> int | None:
        """Return how many jobs of all task queues are overdue: as many as are found within `COUNT_TIME`.

        None where not all that are due could be looked at by then, and none of those was overdue: thousands may be
        between two attempts, or Temporal is slow, or refuses.

        Raises:
            UnavailableError: Postgres does not answer.
        """
        found = 0
        try:
            async with asyncio.timeout(COUNT_TIME):
                async for _ in self._overdue(_should_be_out):
                    found += 1
            return found
        except TimeoutError:
            reason = f"not all that are due could be looked at in {COUNT_TIME:.0f} s"
        except RPCError as error:
            reason = str(error)
        log.warning("overdue jobs not counted", extra={"found": found, "reason": reason})
        return found or None

    async def _overdue(self, is_meant: Callable[[WorkflowExecution], bool]) -> AsyncIterator[WorkflowExecution]:
        """Return those of some runs that are overdue, without those that are at work as the ledger says.

        Of each page the longest overdue come first: most of the others go out by themselves meanwhile.
        """
        runs = self._client.list_workflows(all_due_jobs_query(datetime.now(UTC) - OVERDUE), page_size=PAGE)
        while True:
            await runs.fetch_next_page()
            page = [run for run in runs.current_page or () if is_meant(run)]
            at_work = await self._ledger.at_work([run.run_id for run in page], since=OVERDUE)
            for run in sorted(page, key=lambda run: run.typed_search_attributes[TRIGGER_TIME]):
                if run.run_id not in at_work:
                    yield run
            if not runs.next_page_token:
                return

    async def _look_at(self, run: WorkflowExecution) -> None:
        try:
            if await self._has_no_task(run):
                await self._wake(run)
        except Exception:
            log.exception("overdue job not looked at", extra={"workflow_id": run.id})

    def _is_ours(self, run: WorkflowExecution) -> bool:
        """Return whether a run is not held, and for this worker: of a queue without any, an Update would time out."""
        return run.task_queue == self._task_queue and _is_not_held(run)

    async def _has_no_task(self, run: WorkflowExecution) -> bool:
        """Return whether a run has never had a workflow task that was stored, and has not ended since."""
        handle = self._client.get_workflow_handle(run.id, run_id=run.run_id)
        events = handle.fetch_history_events(page_size=FIRST_EVENTS, rpc_timeout=ANSWER_TIME)
        try:
            await events.fetch_next_page()
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                log.warning("overdue job not looked at", extra={"workflow_id": run.id, "reason": str(error)})
            return False
        first = events.current_page or ()
        return not any(event.HasField("workflow_task_scheduled_event_attributes") for event in first)

    async def _wake(self, run: WorkflowExecution) -> None:
        log.warning("an overdue job had no workflow task, and is woken", extra={"workflow_id": run.id})
        handle = self._client.get_workflow_handle(run.id, run_id=run.run_id)
        try:
            await handle.execute_update(stored_names.WAKE, result_type=str, rpc_timeout=ANSWER_TIME)
        except Exception as error:
            # It is looked at again, if it does not run by then.
            log.warning("overdue job not awake yet", extra={"workflow_id": run.id, "reason": str(error)})


def _is_not_held(run: WorkflowExecution) -> bool:
    return not run.typed_search_attributes.get(IS_HELD)


def _should_be_out(run: WorkflowExecution) -> bool:
    """Return whether nothing but the service itself keeps a run: no hold, and no moment that a resume gave it."""
    moment = release_moment(run)
    return _is_not_held(run) and (moment is None or moment < datetime.now(UTC) - OVERDUE)

"""The exact cancel of a job: the ledger decides, and the job's workflow is told to close."""

import asyncio
import logging
from contextlib import suppress
from datetime import UTC, datetime

from temporalio.client import Client, WorkflowExecutionDescription, WorkflowFailureError
from temporalio.service import RPCError, RPCStatusCode

from timemachine.domain.errors import UnavailableError
from timemachine.domain.jobs import FAR_LIMIT
from timemachine.domain.outcomes import LedgerRow
from timemachine.postgres.delivery_ledger import GRACE, DeliveryLedger
from timemachine.temporal.job_runs import facts_of_run, first_run_id, was_reset
from timemachine.temporal.search_attributes import TRIGGER_TIME

log = logging.getLogger(__name__)

CLOSE_WAIT = 0.5
"""Seconds that a cancelled job's workflow gets to close before the cancel is answered."""

CANCEL_POLL = 0.1
"""Seconds after which a cancel asks again how the attempt that is under way has ended."""

_NOT_DECIDED = "the cancel is noted, but how the attempt under way will end is not known yet; ask again"


class Cancels:
    """Cancels jobs. Needs no worker, and each cancel may be repeated."""

    def __init__(self, client: Client, ledger: DeliveryLedger) -> None:
        """Take the clients of Temporal and Postgres."""
        self._client = client
        self._ledger = ledger

    async def ask(self, run: WorkflowExecutionDescription, expired_claim: str | None = None) -> LedgerRow:
        """Cancel a run in the ledger, tell its workflow, and return the row, which an attempt in flight leaves open.

        Args:
            expired_claim: As for `DeliveryLedger.cancel`.

        Raises:
            UnavailableError, RPCError: Postgres or Temporal does not answer; to be asked again.
        """
        row = await self._cancel_in_ledger(run, expired_claim)
        await self._request_cancel(run)
        return row

    async def find(self, run: WorkflowExecutionDescription) -> LedgerRow | None:
        """Return the row of a run, if it has one.

        Raises:
            UnavailableError: Postgres does not answer.
        """
        return await self._ledger.find(first_run_id(run))

    async def decide(self, run: WorkflowExecutionDescription, *, limit: float) -> LedgerRow:
        """Cancel a run in the ledger, and have its workflow close. Returns once it is decided.

        Waits for an attempt in flight, whose end counts.

        Args:
            limit: Seconds that this may take.

        Raises:
            UnavailableError: The outcome is not known in time; no other attempt begins.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + limit - CLOSE_WAIT
        expired_claim = None
        is_requested = False
        while True:
            row = await self._row_after_cancel(run, expired_claim)
            if row and row.is_decided:
                await self._await_close(run)
                return row
            if row and not is_requested:
                await self._try_to_request_cancel(run)
                is_requested = True
            newly_expired = row.claim if row and row.is_expired and row.claim != expired_claim else None
            wait = GRACE if newly_expired else CANCEL_POLL
            if loop.time() + wait > until:
                raise UnavailableError(_NOT_DECIDED if row else "Postgres does not answer")
            await asyncio.sleep(wait)
            expired_claim = newly_expired or expired_claim

    async def _await_close(self, run: WorkflowExecutionDescription) -> None:
        """Have the workflow of a decided run close, and give it a moment, so that whoever asks Temporal sees the same.

        What is decided does not depend on it: without a worker the workflow closes later.
        """
        handle = self._client.get_workflow_handle(run.id, run_id=run.run_id)
        with suppress(TimeoutError, RPCError, WorkflowFailureError):
            async with asyncio.timeout(CLOSE_WAIT):
                await self._try_to_request_cancel(run)
                await handle.result()

    async def _row_after_cancel(self, run: WorkflowExecutionDescription, expired_claim: str | None) -> LedgerRow | None:
        """Return the row of a run after its cancel; None where Postgres has not answered: it is to be repeated."""
        try:
            return await self._cancel_in_ledger(run, expired_claim)
        except UnavailableError:
            return None

    async def _cancel_in_ledger(self, run: WorkflowExecutionDescription, expired_claim: str | None) -> LedgerRow:
        now = datetime.now(UTC)
        # A run that was reset may not be yet what it was changed to.
        due = now + FAR_LIMIT if was_reset(run) else run.typed_search_attributes.get(TRIGGER_TIME) or now
        return await self._ledger.cancel(first_run_id(run), due=due, expired_claim=expired_claim, job=facts_of_run(run))

    async def _try_to_request_cancel(self, run: WorkflowExecutionDescription) -> None:
        """Tell the workflow of its cancel. When that fails, it learns it from the ledger when it is due."""
        try:
            await self._request_cancel(run)
        except RPCError as error:
            log.warning("cancelled job not closed yet", extra={"reason": str(error), "workflow_id": run.id})

    async def _request_cancel(self, run: WorkflowExecutionDescription) -> None:
        handle = self._client.get_workflow_handle(run.id, first_execution_run_id=first_run_id(run))
        try:
            await handle.cancel()
        except RPCError as error:
            # It has closed since.
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise

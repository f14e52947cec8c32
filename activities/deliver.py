"""The activities that deliver a job, and the one that cancels it. What they do is in `activities/attempt.py`."""

import asyncio
import logging
from datetime import timedelta

from temporalio import activity
from temporalio.client import Client
from temporalio.service import RPCError

from activities.attempt import Attempts
from activities.failures import retryable, success_of
from timemachine.domain import stored_names
from timemachine.domain.delivery import Delivery
from timemachine.domain.events import facts_of
from timemachine.domain.outcomes import Cancelled, Decision, Delivered, Outcome, Unknown, decision_of
from timemachine.domain.stored_names import OUTCOME_UNKNOWN
from timemachine.postgres.delivery_ledger import GRACE, DeliveryLedger

log = logging.getLogger(__name__)

TASK_PATIENCE = 1.0
"""Seconds that a workflow task waits for its attempt. One that takes longer goes on, and is joined by the activity."""

HEARTBEAT_EVERY = 3.0
"""Seconds after which an activity that waits for its attempt tells Temporal that its worker lives."""


@activity.defn(name=stored_names.NOTHING)
async def nothing() -> None:
    """Do nothing, for a workflow that has to wait until it was told all that came together."""


class Deliveries:
    """The activities, with what a worker shares among them."""

    def __init__(self, client: Client, attempts: Attempts, ledger: DeliveryLedger) -> None:
        """Take the maker of attempts, and the clients of Temporal and Postgres."""
        self._client = client
        self._attempts = attempts
        self._ledger = ledger

    @activity.defn(name=stored_names.FIRST_ATTEMPT)
    async def first_attempt(self, delivery: Delivery) -> Outcome:
        """Make the first attempt within the workflow task, as long as that does not hold the task up."""
        attempt = await self._attempts.outcome(delivery, patience=TASK_PATIENCE)
        return attempt or Unknown(reason="the attempt is under way")

    @activity.defn(name=stored_names.DELIVER)
    async def deliver(self, delivery: Delivery) -> Delivered:
        """Make one attempt. The route is read anew, so that it goes where the route points now.

        Raises:
            ApplicationError: Not delivered this time. Carries the wait until the next attempt, or is not retryable
                when there is to be none.
        """
        while (attempt := await self._attempts.outcome(delivery, patience=HEARTBEAT_EVERY)) is None:
            activity.heartbeat(*activity.info().heartbeat_details)
        if isinstance(attempt, Cancelled):
            await self._request_cancel(delivery)
        return success_of(attempt)

    @activity.defn(name=stored_names.CANCEL_DELIVERY)
    async def cancel_delivery(self, delivery: Delivery) -> Decision:
        """Cancel a run, and return what has become of it: what a receiver took counts as taken.

        Raises:
            ApplicationError: An attempt is under way, whose end decides; to be tried again.
            UnavailableError: Postgres does not answer; to be tried again.
        """
        expired_claim = None
        while True:
            row = await self._ledger.cancel(
                delivery.run_id,
                due=delivery.job.trigger_at,
                expired_claim=expired_claim,
                job=facts_of(delivery.job),
            )
            if row.is_decided:
                return decision_of(row)
            if not row.is_expired or row.claim == expired_claim:
                raise retryable("an attempt is under way", timedelta(seconds=1), type=OUTCOME_UNKNOWN)
            await asyncio.sleep(GRACE)
            expired_claim = row.claim

    async def _request_cancel(self, delivery: Delivery) -> None:
        """Cancel a workflow whose run was cancelled, which it has not been told of."""
        run = self._client.get_workflow_handle(delivery.job.workflow_id, first_execution_run_id=delivery.run_id)
        try:
            await run.cancel()
        except RPCError as error:
            log.warning("cancelled job not closed yet", extra={"reason": str(error), "job_id": delivery.job.id})

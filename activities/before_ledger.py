"""The activities of runs from before the ledger, until the last of them has ended. Names are stored.

They go by the ledger like all others. What they have to heed besides is what a worker of the version before may have
done: an attempt that is only in the log, or that it makes while the workers are replaced.
"""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from msgspec.structs import replace
from temporalio import activity
from temporalio.client import Client

from activities.attempt import Attempts
from activities.deliver import Deliveries
from activities.failures import retryable, success_of
from timemachine.domain import stored_names
from timemachine.domain.delivery import AttemptsMade, Delivery, FirstAttempt
from timemachine.domain.jobs import Job, from_ms, to_ms
from timemachine.domain.outcomes import Delivered
from timemachine.postgres.attempt_log import Attempt, AttemptLog
from timemachine.postgres.delivery_ledger import DeliveryLedger

LONGEST_BEFORE = timedelta(seconds=60)
"""Time after which a first attempt was taken for lost before there was a ledger."""


class DeliveriesBeforeLedger(Deliveries):
    """The activities, those of old runs among them."""

    def __init__(self, client: Client, attempts: Attempts, ledger: DeliveryLedger, attempt_log: AttemptLog) -> None:
        """Take the maker of attempts, and the clients of Temporal and Postgres."""
        super().__init__(client, attempts, ledger)
        self._log = attempt_log

    @activity.defn(name=stored_names.DELIVER)
    async def deliver(self, delivery: Delivery) -> Delivered:
        """Make one attempt, unless an old worker has made it or may be making it.

        Raises:
            ApplicationError: As for a new run.
        """
        delivery = _known_to_ledger(delivery)
        if delivery.first:
            if taken := await self._taken_before(delivery):
                return taken
            await self._check_time(delivery.run_id, delivery.first)
        return await super().deliver(delivery)

    @activity.defn(name=stored_names.DELIVER_AT_ONCE)
    async def deliver_at_once(self, delivery: Delivery) -> Delivered:
        """Make the first attempt within the workflow task.

        Raises:
            ApplicationError: As `deliver` raises it.
        """
        taken = await self._taken_before(delivery)
        return taken or success_of(await self.first_attempt(_known_to_ledger(delivery)))

    @activity.defn(name=stored_names.SETTLE)
    async def settle(self, delivery: Delivery) -> Delivered | None:
        """Cancel a run, and return the success of an attempt that was made before; None where there is none.

        Raises:
            ApplicationError, UnavailableError: As `cancel_delivery` raises them.
        """
        if taken := await self._taken_before(delivery):
            return taken
        decision = await self.cancel_delivery(_known_to_ledger(delivery))
        return decision if isinstance(decision, Delivered) else None

    async def _taken_before(self, delivery: Delivery) -> Delivered | None:
        """Return the success of an attempt that a worker from before the ledger has logged, if there is one."""
        taken = await self._log.taken(activity.info().workflow_run_id or "")
        return _logged_success(delivery.job, taken) if taken else None

    async def _check_time(self, run_id: str, first: FirstAttempt) -> None:
        """Wait for the time that a first attempt has set, and for the end of one that an old worker may be making.

        Raises:
            ApplicationError: It is too early.
        """
        next_at = from_ms(first.next_at)
        if first.type == stored_names.OUTCOME_UNKNOWN and not await self._ledger.find(run_id):
            next_at += LONGEST_BEFORE
        if (early := next_at - datetime.now(UTC)) > timedelta(0):
            raise retryable(first.reason, early, type=first.type)

    @activity.defn(name=stored_names.FIND_TAKEN)
    async def find_taken(self, delivery: Delivery) -> Delivered | None:
        """Do what `settle` does, which was another thing once."""
        return await self.settle(delivery)


def _known_to_ledger(delivery: Delivery) -> Delivery:
    """Return a delivery with the id and the attempts that the ledger goes by, which those from before are without."""
    details = activity.info().heartbeat_details
    if delivery.run_id and not details:
        return delivery
    made = AttemptsMade(**details[0]).made if details and isinstance(details[0], dict) else 0
    return replace(
        delivery,
        run_id=delivery.run_id or _first_run(delivery),
        attempts_made=max(delivery.attempts_made, made),
    )


def _logged_success(job: Job, taken: Attempt) -> Delivered:
    ended = taken.started_at + timedelta(milliseconds=taken.duration_ms)
    return Delivered(
        status=taken.status or 0,
        attempts=taken.attempt,
        delivered_at=to_ms(ended),
        late_ms=to_ms(taken.started_at) - job.trigger_time,
    )


def _first_run(delivery: Delivery) -> str:
    """Return the first run id of the workflow, which the id of its first deliveries was made of."""
    if delivery.job.message_id:
        return activity.info().workflow_run_id or ""
    return str(UUID(delivery.message_id.removeprefix("msg_")))

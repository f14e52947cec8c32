"""The `clean_attempts` activity: removes what the log of attempts need not keep any more."""

from datetime import UTC, datetime, timedelta

from temporalio import activity

from timemachine.attempt_log import AttemptLog
from timemachine.delivery_ledger import DeliveryLedger
from timemachine.settings import Settings
from timemachine.upkeep import Cleaned

BATCH = 1000
"""Rows removed at a time, so that no statement takes long."""


class Upkeep:
    """Keeps Postgres tidy."""

    def __init__(self, attempts: AttemptLog, ledger: DeliveryLedger, settings: Settings) -> None:
        """Take the log and the ledger."""
        self._attempts = attempts
        self._ledger = ledger
        self._kept = timedelta(days=settings.attempts_kept_days)

    @activity.defn(name="clean_attempts")
    async def clean_attempts(self) -> Cleaned:
        """Remove the attempts that are older than they are kept.

        Raises:
            UnavailableError: Postgres does not answer; to be tried again.
        """
        before, removed, batch = datetime.now(UTC) - self._kept, 0, BATCH
        while batch == BATCH and not activity.is_worker_shutdown():
            batch = await self._attempts.remove_before(before, BATCH)
            removed += batch
            activity.heartbeat()
        batch = BATCH
        while batch == BATCH and not activity.is_worker_shutdown():
            batch = await self._ledger.remove_before(before, BATCH)
            activity.heartbeat()
        return Cleaned(removed=removed)

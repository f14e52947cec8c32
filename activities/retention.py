"""The `clean_attempts` activity: removes from Postgres what need not be kept any more."""

import logging
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

from temporalio import activity

from timemachine.domain import stored_names
from timemachine.domain.errors import SlowStatementError
from timemachine.domain.releases import HOLD_CHECKS
from timemachine.domain.retention import Cleaned
from timemachine.postgres.attempt_log import AttemptLog
from timemachine.postgres.audit_log import AuditLog
from timemachine.postgres.delivery_ledger import DeliveryLedger
from timemachine.settings import Settings

log = logging.getLogger(__name__)

BATCH = 1000
"""Most rows removed at a time, so that no statement takes long."""

LEDGER_KEPT_AT_LEAST = 2 * HOLD_CHECKS[-1]
"""Time for which a cancel is kept. Where Temporal could not be told of it, a held job learns of it only when it checks
its route."""

_QUICK = 0.5
"""Seconds within which a statement ends that may as well remove twice as much."""


class RemoveBefore(Protocol):
    """Removes the oldest rows of a table that are from before a time, at most `limit`, and returns how many."""

    async def __call__(self, at: datetime, limit: int, /) -> int:
        """Remove them.

        Raises:
            SlowStatementError: There was no time for so many.
        """


class Retention:
    """Keeps Postgres tidy."""

    def __init__(self, attempts: AttemptLog, ledger: DeliveryLedger, audit_log: AuditLog, settings: Settings) -> None:
        """Take the logs and the ledger."""
        self._attempts = attempts
        self._ledger = ledger
        self._audit_log = audit_log
        self._kept = timedelta(days=settings.attempts_kept_days)
        self._ledger_kept = max(self._kept, LEDGER_KEPT_AT_LEAST)
        self._audit_kept = timedelta(days=settings.audit_kept_days)

    @activity.defn(name=stored_names.REMOVE_OLD_ROWS)
    async def clean_attempts(self) -> Cleaned:
        """Remove the attempts that are older than they are kept, and what else is not needed any more.

        Raises:
            UnavailableError: Postgres does not answer; to be tried again.
        """
        now = datetime.now(UTC)
        removed = await _remove("attempts", self._attempts.remove_before, now - self._kept)
        await _remove("delivery_ledger", self._ledger.remove_before, now - self._ledger_kept)
        await _remove("audit", self._audit_log.remove_before, now - self._audit_kept)
        return Cleaned(removed=removed)


async def _remove(table: str, remove_before: RemoveBefore, at: datetime) -> int:
    """Remove a table's rows from before a time, in batches of a size that Postgres has the time for.

    Where it has not the time for one row, the rest is left for the next clean-up.
    """
    removed, limit = 0, BATCH
    while not activity.is_worker_shutdown():
        activity.heartbeat()
        started = time.monotonic()
        try:
            batch = await remove_before(at, limit)
        except SlowStatementError:
            if limit == 1:
                log.warning("rows not removed: Postgres has no time for a single one", extra={"table": table})
                break
            limit //= 2
            continue
        removed += batch
        if batch < limit:
            break
        if time.monotonic() - started < _QUICK:
            limit = min(2 * limit, BATCH)
    return removed

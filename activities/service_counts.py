"""Counts of jobs, routes and keys for the metrics: one worker makes them for all, and never a scrape.

Every worker exports what was counted last, so that no figure stays behind on one that counts no more.
"""

import asyncio
import logging
import math
import random
from datetime import UTC, datetime, timedelta

from temporalio.client import Client
from temporalio.service import RPCError

from activities.overdue import OverdueJobs
from timemachine import metrics
from timemachine.domain.errors import UnavailableError
from timemachine.domain.job_filter import ListedState
from timemachine.domain.service_counts import ServiceCounts
from timemachine.postgres.key_store import KeyStore
from timemachine.postgres.route_store import RouteStore
from timemachine.postgres.service_counts import ServiceCountStore
from timemachine.temporal.job_lists import count_open_jobs

COUNT_EVERY = timedelta(seconds=30)
"""Time between two counts at the least. A single worker's next look may come 20 s after that."""

LOOK_EVERY = 15.0
"""Seconds between two looks of a worker at what was counted, give or take a third."""

COUNT_LIMIT = 19.0
"""Seconds that a count may take without that of overdue jobs, so that both end before the next one begins."""

KEY_WARNING = timedelta(days=7)
"""Time before its end at which a key counts as about to expire."""

log = logging.getLogger(__name__)


class ServiceCounting:
    """Makes the counts when it is this worker's turn, and exports them."""

    def __init__(
        self, client: Client, overdue: OverdueJobs, routes: RouteStore, keys: KeyStore, store: ServiceCountStore
    ) -> None:
        """Take what is counted, and where the counts are kept."""
        self._client = client
        self._overdue = overdue
        self._routes = routes
        self._keys = keys
        self._store = store

    async def watch(self) -> None:
        """Look again and again, until it is cancelled."""
        while True:
            try:
                await self.look()
            except (RPCError, UnavailableError, TimeoutError) as error:
                log.warning("jobs not counted", extra={"reason": str(error) or "it took too long"})
            except Exception:
                log.exception("jobs not counted")
            await asyncio.sleep(LOOK_EVERY * random.uniform(2 / 3, 4 / 3))  # noqa: S311 - guards nothing

    async def look(self) -> None:
        """Export what was counted last; and count and export that, if it is time to and nobody else does.

        Raises:
            RPCError, UnavailableError, TimeoutError: Temporal or Postgres does not answer in time.
        """
        await self._export_last()
        if await self._store.claim(COUNT_EVERY):
            await self._store.write(await self._count())
            await self._export_last()

    async def _export_last(self) -> None:
        if found := await self._store.read():
            _export(*found)

    async def _count(self) -> ServiceCounts:
        async with asyncio.timeout(COUNT_LIMIT):
            jobs = await count_open_jobs(self._client, datetime.now(UTC))
            keys_expiring = await self._keys.count_expiring(KEY_WARNING)
            routes = await self._routes.count_by_state()
        overdue = await self._overdue.count()
        return ServiceCounts(
            scheduled=jobs[ListedState.SCHEDULED],
            due=jobs[ListedState.DUE],
            held=jobs[ListedState.HELD],
            overdue=overdue or 0,
            overdue_known=overdue is not None,
            keys_expiring=keys_expiring,
            routes=routes,
        )


def _export(counts: ServiceCounts, counted_at: datetime) -> None:
    metrics.JOBS.set(counts.scheduled, ListedState.SCHEDULED)
    metrics.JOBS.set(counts.due, ListedState.DUE)
    metrics.JOBS.set(counts.held, ListedState.HELD)
    metrics.JOBS_OVERDUE.set(counts.overdue if counts.overdue_known else math.nan)
    for state, count in counts.routes.items():
        metrics.ROUTES.set(count, state)
    metrics.KEYS_EXPIRING.set(counts.keys_expiring)
    metrics.COUNTED_AT.set(counted_at.timestamp())

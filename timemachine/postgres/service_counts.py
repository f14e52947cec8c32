"""The counts that one worker makes for all of them, in Postgres."""

from datetime import datetime, timedelta

import msgspec
from asyncpg import Pool

from timemachine.domain.service_counts import ServiceCounts
from timemachine.postgres.pool import connection


class ServiceCountStore:
    """Who counts next, and what was counted last. Each method raises UnavailableError when Postgres does not answer."""

    def __init__(self, pool: Pool) -> None:
        """Use the given pool, which the caller opens and closes."""
        self._pool = pool

    async def claim(self, every: timedelta) -> bool:
        """Return whether the caller is to count now: the last one who was to began at least so long ago."""
        async with connection(self._pool) as postgres:
            return await postgres.fetchval(_CLAIM, every) is not None

    async def write(self, counts: ServiceCounts) -> None:
        """Keep what was counted just now."""
        async with connection(self._pool) as postgres:
            await postgres.execute(_WRITE, msgspec.json.encode(counts).decode())

    async def read(self) -> tuple[ServiceCounts, datetime] | None:
        """Return what was counted last, and when; None before the first count."""
        async with connection(self._pool) as postgres:
            row = await postgres.fetchrow("SELECT counts, counted_at FROM service_counts WHERE counted_at IS NOT NULL")
        return (msgspec.json.decode(row["counts"], type=ServiceCounts), row["counted_at"]) if row else None


_CLAIM = """
    UPDATE service_counts SET claimed_at = clock_timestamp()
    WHERE claimed_at <= clock_timestamp() - $1::interval
    RETURNING true
"""

_WRITE = "UPDATE service_counts SET counts = $1::jsonb, counted_at = clock_timestamp()"

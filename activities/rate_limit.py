"""A rate limit for bulk work, so that what is due anyway is not delayed by it."""

import asyncio
import time


class RateLimiter:
    """Lets so many callers a second through, in the order in which they ask; it is shared by all bulk work."""

    def __init__(self, per_second: float) -> None:
        """Take the rate."""
        self._interval = 1 / per_second
        self._next = 0.0

    async def acquire(self) -> None:
        """Wait for the next free moment. What was missed is not caught up with."""
        now = time.monotonic()
        self._next = max(self._next + self._interval, now)
        await asyncio.sleep(self._next - now)

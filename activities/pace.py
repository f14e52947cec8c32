"""Pace: how fast work in bulk is handed out, so that what is due anyway is not delayed by it."""

import asyncio
import time


class Pace:
    """Lets through so many a second."""

    def __init__(self, per_second: float) -> None:
        """Take the rate."""
        self._interval = 1 / per_second
        self._next = 0.0

    async def step(self) -> None:
        """Wait for the next moment. What was missed is not caught up with."""
        now = time.monotonic()
        self._next = max(self._next + self._interval, now)
        await asyncio.sleep(self._next - now)

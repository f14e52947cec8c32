"""Waiting for what happens elsewhere, however busy this machine is with other things."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

LIMIT = 40.0
"""Seconds. Far more than anything takes: who waits for longer has found a fault, and not a slow machine."""

SHORTEST_PAUSE, LONGEST_PAUSE = 0.03, 0.5
"""Seconds between two looks: a quarter of what the wait has taken so far, since looks keep a machine busy, too."""


async def eventually(
    look: Callable[[], Awaitable[T]], holds: Callable[[T], object] = bool, *, limit: float = LIMIT
) -> T:
    """Return what a look shows once it holds.

    Raises:
        AssertionError: It did not within `limit` seconds; the message has what was seen last.
    """
    seen: list[T] = []
    began = time.monotonic()
    try:
        async with asyncio.timeout(limit):
            while not holds(found := await look()):
                seen = [found]
                await asyncio.sleep(min(max(SHORTEST_PAUSE, (time.monotonic() - began) / 4), LONGEST_PAUSE))
    except TimeoutError:
        raise AssertionError(f"not within {limit:g} s; seen last: {seen}") from None
    return found

"""Waiting for what happens elsewhere, however busy this machine is with other things."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

LIMIT = 40.0
"""Seconds. Far more than anything takes: who waits for longer has found a fault, and not a slow machine."""


async def eventually(
    look: Callable[[], Awaitable[T]], holds: Callable[[T], object] = bool, *, limit: float = LIMIT
) -> T:
    """Return what a look shows once it holds.

    Raises:
        AssertionError: It did not within `limit` seconds; the message has what was seen last.
    """
    seen: list[T] = []
    try:
        async with asyncio.timeout(limit):
            while not holds(found := await look()):
                seen = [found]
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not within {limit:g} s; seen last: {seen}") from None
    return found

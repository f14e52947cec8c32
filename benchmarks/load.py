"""How calls are made: so many at a time, or at an even rate whatever becomes of them."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

Call = Callable[[], Awaitable[object]]


def due_in(seconds: float) -> int:
    """Return the time so many seconds ahead, in milliseconds since the epoch."""
    return int((time.time() + seconds) * 1000)


async def timed_all(calls: Iterable[Call], in_flight: int) -> list[float]:
    """Make the calls, so many at a time, and return the milliseconds that each took."""
    took: list[float] = []
    left = iter(calls)

    async def work() -> None:
        for call in left:
            began = time.perf_counter()
            await call()
            took.append((time.perf_counter() - began) * 1000)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(in_flight):
            tasks.create_task(work())
    return took


async def at_rate(rate: float, count: int, call: Call) -> None:
    """Make calls at an even rate a second, without waiting for one before the next; return when all are answered."""
    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for n in range(count):
            await asyncio.sleep(max(0.0, began + n / rate - time.perf_counter()))
            tasks.create_task(_awaited(call))


async def _awaited(call: Call) -> None:
    await call()

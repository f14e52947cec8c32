"""Bulk work keeps to one rate, however much of it there is."""

import asyncio
import time

from activities.rate_limit import RateLimiter


async def test_all_who_share_a_limit_keep_to_it_together() -> None:
    rate = RateLimiter(50)
    started = time.monotonic()

    async def use() -> None:
        for _ in range(5):
            await rate.acquire()

    await asyncio.gather(*(use() for _ in range(4)))

    assert time.monotonic() - started >= 19 / 50


async def test_what_was_missed_is_not_caught_up_with() -> None:
    rate = RateLimiter(50)
    await rate.acquire()
    await asyncio.sleep(0.2)
    started = time.monotonic()

    for _ in range(5):
        await rate.acquire()

    assert time.monotonic() - started >= 4 / 50

"""How much later a healthy route's jobs are while another route's receiver never answers.

`python -m benchmarks.noisy_neighbour`: each round first measures 50 jobs of the healthy route alone, then
the same 50 with 500 jobs of the black hole due in the same seconds. Prints a line of JSON for each
round, and the ratios in the end.
"""

import asyncio
import os
from collections.abc import Sequence
from statistics import median

import httpx
import msgspec

from benchmarks.stack import fresh_stack
from devstack.terminal import say
from tests.support.receiver import Received, Receiver, receiving
from tests.support.service import Service, now_ms
from timemachine.process import exit_process

ROUNDS = int(os.environ.get("ROUNDS", "3"))
HEALTHY, NOISY = 50, 500
WINDOW = float(os.environ.get("WINDOW", "20"))
"""Seconds in which all of a round's jobs come due."""
AHEAD = 8.0
AT_A_TIME = 32


class Lateness(msgspec.Struct, frozen=True):
    """Milliseconds between trigger time and arrival."""

    jobs: int
    p50: int
    p99: int
    max: int


def lateness(received: Sequence[Received]) -> Lateness:
    """Summarise what a receiver got."""
    late = sorted(request.late_ms for request in received)
    if late[0] < 0:
        raise AssertionError(f"{-late[0]} ms early")
    return Lateness(len(late), late[len(late) // 2], late[min(len(late) - 1, int(len(late) * 0.99))], late[-1])


async def create(service: Service, route: str, count: int, first_due: int) -> None:
    """Create jobs that come due one after the other within the window."""
    limit = asyncio.Semaphore(AT_A_TIME)

    async def one(n: int) -> None:
        async with limit:
            due_in = (first_due - now_ms()) / 1000 + WINDOW * n / count
            await service.create(due_in, route=route)

    await asyncio.gather(*(one(n) for n in range(count)))


async def measure(service: Service, healthy: Receiver, *, noisy: bool) -> Lateness:
    """Let the jobs of one measurement come due, and return how late those of the healthy route were."""
    healthy.received.clear()
    first_due = now_ms(AHEAD + (12 if noisy else 0))
    if noisy:
        await create(service, "black-hole", NOISY, first_due)
    await create(service, "healthy", HEALTHY, first_due)
    await healthy.wait_until(lambda: len(healthy.received) >= HEALTHY, limit=120)
    return lateness(healthy.received)


async def never(_: Received) -> bytes:
    """Leave a request without an answer."""
    await asyncio.Event().wait()
    return b""


async def measure_both() -> tuple[Lateness, Lateness]:
    """Return how late the healthy route is alone and then beside the black hole, on a stack of their own."""
    async with (
        fresh_stack() as stack,
        receiving() as healthy,
        receiving() as black_hole,
        httpx.AsyncClient(base_url=stack.api_url, timeout=60) as api,
    ):
        black_hole.answer = never
        service = Service(api, "bench")
        await service.add_route(healthy.url, "healthy")
        await service.add_route(black_hole.url, "black-hole")
        alone = await measure(service, healthy, noisy=False)
        return alone, await measure(service, healthy, noisy=True)


async def bench() -> None:
    """Run the rounds."""
    ratios = []
    for n in range(ROUNDS):
        alone, among = await measure_both()
        ratios.append(among.p99 / alone.p99)
        say(msgspec.json.encode({"round": n, "alone": alone, "among": among}).decode())
    say(f"p99 beside the black hole / alone: {', '.join(f'{r:.2f}' for r in ratios)}; median {median(ratios):.2f}")


if __name__ == "__main__":
    asyncio.run(bench())
    exit_process(0)

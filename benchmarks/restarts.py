"""How long a restart takes: from the stop of processes until a job is accepted again, and until it is delivered."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from http import HTTPStatus

from benchmarks.implementations import Ours, new_id
from benchmarks.load import due_in
from benchmarks.results import RESTART, Measurement
from benchmarks.testbed import Testbed
from devstack.parts import Part

PARTS = {"Temporal": ("temporal",), "API and worker": ("api", "worker")}
"""What is restarted together, by its name in results."""

LIMIT = 600.0
"""Seconds that everything gets to work again."""

_ASK_EVERY = 0.25


async def restarts(testbed: Testbed, round_: int, level: int) -> AsyncIterator[Measurement]:
    """Restart all of Temporal, and then our API and our worker, among so many waiting jobs."""
    for what, names in PARTS.items():
        await testbed.quiet()
        notes = await _restart(testbed, [part for name in names for part in testbed.processes(name)])
        seconds = notes["arrived_seconds"]
        yield Measurement(
            scenario=f"{RESTART}{what}, {level} waiting jobs",
            implementation=testbed.ours.name,
            round=round_,
            jobs=1,
            seconds=seconds,
            per_second=round(1 / seconds, 3),
            cpu_ms_per_job={},
            notes=notes | {"waiting": float(level)},
        )


async def _restart(testbed: Testbed, parts: Sequence[Part]) -> dict[str, float]:
    """Stop and start parts, and return the seconds since the beginning until each step was done.

    Raises:
        TimeoutError: Within the limit there was no job that was accepted and delivered.
    """
    testbed.sink.clear()
    began = time.time()
    await asyncio.gather(*(part.stop() for part in parts))
    stopped = time.time()
    async with asyncio.timeout(LIMIT), asyncio.TaskGroup() as starting:
        for part in parts:
            starting.create_task(part.start())
        job_id, accepted = await _first_accepted(testbed.ours)
        await testbed.sink.wait_for(job_id)
    reached = {"stopped": stopped, "accepted": accepted, "arrived": testbed.sink.taken[job_id]}
    return {f"{name}_seconds": round(at - began, 2) for name, at in reached.items()}


async def _first_accepted(ours: Ours) -> tuple[str, float]:
    """Ask for jobs that are due at once, without waiting for answers, until one is accepted; return it, and when."""
    accepted: dict[str, float] = {}

    async def ask() -> None:
        job_id = new_id()
        with suppress(OSError, asyncio.IncompleteReadError):
            if await ours.create(job_id, due_in(0)) == HTTPStatus.OK:
                accepted.setdefault(job_id, time.time())

    async with asyncio.TaskGroup() as asking:
        while not accepted:
            asking.create_task(ask())
            await asyncio.sleep(_ASK_EVERY)
    return next(iter(accepted.items()))

"""Bulk work: it stops with its worker, yields its slot to others, and goes on from its last heartbeat."""

import asyncio
import time
from collections.abc import Collection, Coroutine
from datetime import timedelta
from typing import Any

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from timemachine.domain import stored_names

LONGEST_RUN = 30.0
"""Seconds after which a slot is left to what waits for one. There are few, and some work takes days."""

COUNTED_AT_ONCE = 1000
"""Runs that one query returns at most, as Temporal's own limit is."""

_AT_THE_END_OF_THE_QUEUE = timedelta(milliseconds=100)


class BulkRun:
    """One run of a bulk activity, which holds one of the few slots meanwhile."""

    def __init__(self) -> None:
        """Begin now."""
        self._ends = time.monotonic() + LONGEST_RUN

    def heartbeat(self, *progress: Any) -> None:
        """Tell Temporal how far this is.

        Raises:
            ApplicationError: This worker stops; another one goes on.
        """
        activity.heartbeat(*progress)
        if activity.is_worker_shutdown():
            raise ApplicationError("the worker stops; another one goes on", type=stored_names.WORKER_STOPS)

    def yield_slot(self) -> None:
        """Go to the end of the task queue after a long run. To be called where nothing would be done again.

        Raises:
            ApplicationError: The time is over. The next run begins with what `heartbeat` was told last.
        """
        if time.monotonic() > self._ends:
            raise ApplicationError(
                "others take their turn",
                type=stored_names.YIELDS_SLOT,
                next_retry_delay=_AT_THE_END_OF_THE_QUEUE,
                category=ApplicationErrorCategory.BENIGN,
            )


async def to_its_end(step: Coroutine[Any, Any, None]) -> None:
    """Do a step, which a cancel of this activity does not cut in two. What it comes to, it has to note by itself.

    Raises:
        asyncio.CancelledError: The activity was cancelled meanwhile; the step has been done.
        Exception: What the step has failed with: it may be done, or not.
    """
    await to_their_ends([asyncio.create_task(step)])


async def to_their_ends(steps: Collection[asyncio.Task[None]]) -> None:
    """Wait for steps that were begun, which a cancel of this activity does not cut in two.

    Raises:
        asyncio.CancelledError, Exception: As `to_its_end` does; the latter rather than the former.
    """
    is_cancelled = False
    while under_way := [step for step in steps if not step.done()]:
        try:
            await asyncio.wait(under_way)
        except asyncio.CancelledError:
            is_cancelled = True
    for step in steps:
        step.result()
    if is_cancelled:
        raise asyncio.CancelledError


def is_stop_requested() -> bool:
    """Return whether this activity is cancelled because its operation is to stop, and not because its worker does."""
    details = activity.cancellation_details()
    return details is not None and details.cancel_requested

"""Stops of operations on many jobs: what a workflow makes of its activity's end once a stop was asked for."""

import asyncio
from datetime import timedelta
from typing import TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

T = TypeVar("T")

VISIBILITY_LAG = timedelta(seconds=3)
"""Time after which Temporal's visibility shows what was done before a stop."""


async def until_ended(bulk: "workflow.ActivityHandle[T]") -> tuple[T, bool]:
    """Return what an activity has come to, and whether a stop of its workflow came in the moment in which it ended.

    A stop that comes before is passed on to it.

    Raises:
        ActivityError: It has failed, or was stopped before it could return anything.
    """
    try:
        await workflow.wait([bulk])
    except asyncio.CancelledError:
        # To cancel an activity that has ended loses what it has returned.
        await asyncio.sleep(0)  # noqa: TID251 - no time passes
        if bulk.done():
            return await bulk, True
        bulk.cancel()
    return await bulk, False


def is_stopped(error: ActivityError) -> bool:
    """Return whether an activity has ended because of a stop, or is not tried again because of one.

    The activity may not have learnt of it: Temporal tells it in the answer to a heartbeat, and its worker may have been
    killed, or have given it back, before that.
    """
    return is_cancelled_exception(error) or workflow.cancellation_reason() is not None

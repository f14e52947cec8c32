"""What bulk work has in common: it stops with its worker, and takes turns, and goes on from its last heartbeat."""

import time
from datetime import timedelta
from typing import Any

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

LONGEST_TURN = 30.0
"""Seconds after which a slot is left to what waits for one. There are few, and some work takes days."""

_AT_THE_END_OF_THE_QUEUE = timedelta(milliseconds=100)


class Turn:
    """One run of a bulk activity, which holds one of the few slots meanwhile."""

    def __init__(self) -> None:
        """Begin now."""
        self._ends = time.monotonic() + LONGEST_TURN

    def beat(self, *progress: Any) -> None:
        """Tell Temporal how far this is.

        Raises:
            ApplicationError: This worker stops; another one goes on.
        """
        activity.heartbeat(*progress)
        if activity.is_worker_shutdown():
            raise ApplicationError("the worker stops; another one goes on", type="Stopping")

    def give_way(self) -> None:
        """Go to the end of the task queue after a long turn. To be called where nothing would be done again.

        Raises:
            ApplicationError: The turn is over. The next one begins with what `beat` was told last.
        """
        if time.monotonic() > self._ends:
            raise ApplicationError(
                "others take their turn",
                type="GivesWay",
                next_retry_delay=_AT_THE_END_OF_THE_QUEUE,
                category=ApplicationErrorCategory.BENIGN,
            )

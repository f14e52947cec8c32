"""First attempts under way on this worker, which outlive the workflow task that wanted them."""

import asyncio
from collections.abc import Coroutine

from temporalio.exceptions import ApplicationError

from timemachine.delivery import Delivered

REMEMBERED = 60.0
"""Seconds that the end of an attempt is remembered, for a workflow task that was lost and is run again."""


def copy_of(error: BaseException) -> BaseException:
    """Return the error without traceback and context, which would keep the job and its meta in memory."""
    if not isinstance(error, ApplicationError):
        return ApplicationError(str(error), type=type(error).__name__)
    return ApplicationError(
        error.message,
        *error.details,
        type=error.type,
        non_retryable=error.non_retryable,
        next_retry_delay=error.next_retry_delay,
        category=error.category,
    )


async def end_of(flight: asyncio.Future[Delivered]) -> Delivered:
    """Wait for the end of an attempt, which goes on when we are cancelled.

    Raises:
        ApplicationError: How it failed; anew each time, since what is raised grows a traceback.
    """
    if not flight.done():
        await asyncio.wait([flight])
    if error := flight.exception():
        raise copy_of(error)
    return flight.result()


class Flights:
    """The first attempts of this worker by run id: under way, or ended a short while ago."""

    def __init__(self, limit: int) -> None:
        """Set how many may be under way at a time."""
        self._limit = limit
        self._under_way = 0
        self._flights: dict[str, asyncio.Future[Delivered]] = {}

    @property
    def full(self) -> bool:
        """Whether no other may take off now."""
        return self._under_way >= self._limit

    def of(self, run_id: str) -> asyncio.Future[Delivered] | None:
        """Return the attempt of a run, if it was made here."""
        return self._flights.get(run_id)

    def take_off(self, run_id: str, attempt: Coroutine[object, object, Delivered]) -> asyncio.Future[Delivered]:
        """Begin an attempt, which nothing cancels."""
        end: asyncio.Future[Delivered] = asyncio.get_running_loop().create_future()
        self._flights[run_id] = end
        self._under_way += 1
        task = asyncio.create_task(attempt)
        task.add_done_callback(lambda ended: self._land(run_id, ended, end))
        return end

    async def landed(self) -> None:
        """Wait until none is under way."""
        if under_way := [flight for flight in self._flights.values() if not flight.done()]:
            await asyncio.wait(under_way)

    def _land(self, run_id: str, ended: asyncio.Task[Delivered], end: asyncio.Future[Delivered]) -> None:
        self._under_way -= 1
        if ended.cancelled():
            end.cancel()
        elif error := ended.exception():
            end.set_exception(copy_of(error))
            end.exception()  # whether anybody still asks for it or not
        else:
            end.set_result(ended.result())
        end.get_loop().call_later(REMEMBERED, self._flights.pop, run_id, None)

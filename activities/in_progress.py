"""Attempts in progress on this worker. Each outlives the task that wanted it, and nothing cancels it."""

import asyncio
import logging
from collections.abc import Coroutine

from timemachine import metrics
from timemachine.domain.outcomes import Outcome

log = logging.getLogger(__name__)


class InProgress:
    """The attempts under way on this worker, by run id."""

    def __init__(self, limit: int) -> None:
        """Set how many may be under way before `is_full`."""
        self._limit = limit
        self._tasks: dict[str, asyncio.Task[Outcome]] = {}

    @property
    def run_ids(self) -> list[str]:
        """Runs whose attempts are under way."""
        return list(self._tasks)

    @property
    def is_full(self) -> bool:
        """Whether as many are under way as may be."""
        return len(self._tasks) >= self._limit

    def get(self, run_id: str) -> asyncio.Task[Outcome] | None:
        """Return the attempt of a run, if one is under way here."""
        return self._tasks.get(run_id)

    def start(self, run_id: str, attempt: Coroutine[object, object, Outcome]) -> asyncio.Task[Outcome]:
        """Begin an attempt."""
        task = asyncio.create_task(attempt)
        self._tasks[run_id] = task
        metrics.ATTEMPTS_IN_PROGRESS.set(len(self._tasks))
        task.add_done_callback(lambda ended: self._ended(run_id, ended))
        return task

    async def drain(self) -> None:
        """Wait until none is under way."""
        while self._tasks:
            await asyncio.wait(self._tasks.values())

    def _ended(self, run_id: str, task: asyncio.Task[Outcome]) -> None:
        del self._tasks[run_id]
        metrics.ATTEMPTS_IN_PROGRESS.set(len(self._tasks))
        if not task.cancelled() and (error := task.exception()):
            log.error("attempt broke off", exc_info=error, extra={"run_id": run_id})

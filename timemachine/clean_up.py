"""Clean-ups: what is done after something whose outcome is known already, and must not be replaced."""

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress

log = logging.getLogger(__name__)


async def clean_up(work: Coroutine[object, object, object], what: str) -> None:
    """Do a clean-up to its end. Never raises, so that no success and no error before it is replaced.

    A failure is logged. A cancel request that comes meanwhile came too late for what is cleaned up after: it is
    dropped, and the clean-up goes on.

    Args:
        work: The clean-up, which has a limit on its time of its own.
        what: What it does, for the log.
    """
    task = asyncio.ensure_future(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    failure = asyncio.CancelledError() if task.cancelled() else task.exception()
    if failure:
        log.warning("clean-up failed", extra={"clean_up": what, "reason": f"{type(failure).__name__}: {failure}"})

"""Prepare Postgres and Temporal for this version: `python -m timemachine.setup`. Safe to run again, and at once."""

import asyncio
import logging
import os

from temporalio.service import RPCError

from timemachine.errors import TimemachineError
from timemachine.postgres import migrate
from timemachine.process import leave
from timemachine.schedules import ensure_schedules
from timemachine.settings import Settings
from timemachine.telemetry import configure_logging
from timemachine.temporal import connect, ensure_search_attributes

log = logging.getLogger("setup")


async def prepare(settings: Settings) -> None:
    """Apply the migrations, register the search attributes and create the schedules that are missing.

    Raises:
        TimemachineError, RPCError, RuntimeError: One of the two does not answer, or does not have it so.
    """
    applied = await migrate(settings)
    log.info("postgres is ready", extra={"applied": applied})
    client = await connect()
    await ensure_search_attributes(client)
    await ensure_schedules(client, task_queue=settings.task_queue)
    log.info("temporal is ready", extra={"namespace": client.namespace})


def main() -> int:
    """Prepare both and return the exit status."""
    configure_logging()
    try:
        asyncio.run(prepare(Settings.from_env(os.environ)))
    except (TimemachineError, RPCError, RuntimeError) as error:
        log.error("cannot prepare", extra={"reason": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    leave(main())

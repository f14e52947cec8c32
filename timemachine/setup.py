"""Prepare Postgres and Temporal for this version: `python -m timemachine.setup`. Safe to run again, and at once.

It is run before the new programs start. Once no old ones are left, `python -m timemachine.setup --after` removes from
Postgres what only they needed.
"""

import argparse
import asyncio
import logging
import os
import sys

from temporalio.service import RPCError

from timemachine.domain.errors import TimemachineError
from timemachine.postgres.migrate import Part, migrate
from timemachine.process import exit_process
from timemachine.settings import Settings
from timemachine.telemetry import configure_logging
from timemachine.temporal.client import check_namespace, connect
from timemachine.temporal.registered_attributes import ensure_search_attributes
from timemachine.temporal.schedules import ensure_schedules

log = logging.getLogger("setup")


async def prepare(settings: Settings) -> None:
    """Apply the migrations, register the search attributes and create the schedules that are missing.

    Raises:
        TimemachineError, RPCError: One of the two does not answer, or does not have it so.
    """
    await apply(settings, Part.BEFORE)
    client = await connect()
    await check_namespace(client)
    await ensure_search_attributes(client)
    await ensure_schedules(client, task_queue=settings.task_queue)
    log.info("temporal is ready", extra={"namespace": client.namespace})


async def apply(settings: Settings, part: Part) -> None:
    """Apply the migrations of a part.

    Raises:
        MigrationError, SettingsError, UnavailableError: See `migrate`.
    """
    applied = await migrate(settings, part=part)
    log.info("postgres is ready", extra={"part": part, "applied": applied})


def main(arguments: list[str]) -> int:
    """Prepare both, or do what is for afterwards, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m timemachine.setup", description=__doc__)
    parser.add_argument("--after", action="store_true", help="remove what only the programs before this version needed")
    after = parser.parse_args(arguments).after
    configure_logging()
    try:
        settings = Settings.from_env(os.environ)
        asyncio.run(apply(settings, Part.AFTER) if after else prepare(settings))
    except (TimemachineError, RPCError) as error:
        log.error("cannot prepare", extra={"reason": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    exit_process(main(sys.argv[1:]))

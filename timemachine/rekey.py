"""Encrypt all that is secret anew with the first key: `python -m timemachine.rekey`. Safe beside running programs.

How a key of TIMEMACHINE_SECRET_KEYS is replaced, with deliveries going on all the while:

1. Make a key with `python -m timemachine.vault`, put it behind the present one (`present,new`), and restart every API
   and worker: now all of them can read what the new one encrypts.
2. Put it first (`new,present`), and restart them again: now all of them encrypt with it.
3. Run this.
4. Take the old one out (`new`), and restart them.

A key that others have come to know has given its secrets away: then rotate those of every route, too.
"""

import asyncio
import logging
import os

from timemachine.domain.errors import TimemachineError
from timemachine.postgres.pool import open_pool
from timemachine.postgres.route_store import RouteStore
from timemachine.process import exit_process
from timemachine.settings import Settings
from timemachine.telemetry import configure_logging
from timemachine.vault import Vault

log = logging.getLogger("rekey")


async def rekey(settings: Settings) -> int:
    """Encrypt everything anew with the first key, and return how much it was.

    Raises:
        SettingsError: The settings are wrong.
        UnavailableError: Postgres does not answer.
        VaultError: Something cannot be read with any of the keys.
    """
    vault = Vault(settings)
    async with open_pool(settings) as pool:
        return await RouteStore(pool, vault).reseal()


def main() -> int:
    """Do so, and return the exit status."""
    configure_logging()
    try:
        count = asyncio.run(rekey(Settings.from_env(os.environ)))
    except TimemachineError as error:
        log.error("cannot encrypt anew", extra={"reason": str(error)})
        return 1
    log.info("encrypted anew", extra={"count": count})
    return 0


if __name__ == "__main__":
    exit_process(main())

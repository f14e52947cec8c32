"""The key of `make run` that may do everything: made once, and kept in the data folder.

Run as a program, `python -m devstack.admin_key FILE`, so that it has the environment of the stack's programs: asyncpg
reads `PGPORT` also where the DSN has a port, and a list of ports there fits no host.
"""

import asyncio
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from devstack.folder import keep_secret
from timemachine.domain.audit import COMMAND_LINE
from timemachine.domain.keys import KeyRequest, Role, parse_key
from timemachine.postgres.key_store import KeyStore
from timemachine.postgres.pool import open_pool
from timemachine.settings import Settings


async def kept_admin_key(file: Path, dsn: str) -> str:
    """Return the admin key that a file holds; a new one, kept there, where it holds none that is valid.

    Raises:
        UnavailableError: Postgres does not answer.
    """
    kept = await asyncio.to_thread(read_key, file)
    async with open_pool(Settings(postgres_dsn=dsn)) as pool:
        store = KeyStore(pool)
        if await _is_valid(store, kept):
            return kept
        _, new = await store.create(KeyRequest(name="make run", role=Role.ADMIN, dbs=None), COMMAND_LINE)
    keep_secret(file, new.text)
    return new.text


def read_key(file: Path) -> str:
    """Return the text that a key's file holds, or nothing where there is no file."""
    return file.read_text(encoding="ascii").strip() if file.exists() else ""


async def _is_valid(store: KeyStore, text: str) -> bool:
    presented = parse_key(text)
    if presented is None:
        return False
    stored = (await store.find([presented.id])).get(presented.id)
    return stored is not None and stored.is_valid_with(presented.hash, datetime.now(UTC))


if __name__ == "__main__":
    asyncio.run(kept_admin_key(Path(sys.argv[1]), os.environ["TIMEMACHINE_POSTGRES_DSN"]))

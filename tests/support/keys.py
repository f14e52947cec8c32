"""Keys for tests: made in Postgres, as the command line does."""

from datetime import datetime, timedelta
from typing import Any

from timemachine.domain.audit import COMMAND_LINE
from timemachine.domain.keys import KeyRequest, Role
from timemachine.postgres.key_store import KeyStore
from timemachine.postgres.pool import open_pool
from timemachine.settings import Settings


async def make_key(
    settings: Settings,
    role: Role = Role.ADMIN,
    dbs: tuple[str, ...] | None = None,
    *,
    expires_at: datetime | None = None,
    requests_per_second: float | None = None,
) -> str:
    """Return a new key."""
    asked = KeyRequest(
        name="a test's", role=role, dbs=dbs, expires_at=expires_at, requests_per_second=requests_per_second
    )
    async with open_pool(settings) as pool:
        _, new = await KeyStore(pool).create(asked, COMMAND_LINE)
    return new.text


async def revoke_key(settings: Settings, key: str) -> None:
    async with open_pool(settings) as pool:
        await KeyStore(pool).revoke(id_of(key), COMMAND_LINE, keep_admin=False)


async def rotate_key(settings: Settings, key: str) -> str:
    """Return the key with a new secret; the one of before is valid no more."""
    async with open_pool(settings) as pool:
        _, new = await KeyStore(pool).rotate(id_of(key), timedelta(), COMMAND_LINE)
    return new.text


def id_of(key: str) -> str:
    return key.split("_")[1]


def bearer(key: str) -> dict[str, Any]:
    """Return the header by which a key is sent."""
    return {"authorization": f"Bearer {key}"}

"""Databases of a test's own, for what looks at whole tables or leaves no other test alone."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import asyncpg
from msgspec.structs import replace

from timemachine.settings import Settings


@asynccontextmanager
async def own_database(settings: Settings) -> AsyncIterator[Settings]:
    """Yield the settings of a new, empty database on the same server, which is dropped in the end."""
    assert settings.postgres_dsn
    name = f"own_{uuid.uuid4().hex[:12]}"
    admin = await asyncpg.connect(settings.postgres_dsn)
    await admin.execute(f"CREATE DATABASE {name}")
    try:
        yield replace(settings, postgres_dsn=urlsplit(settings.postgres_dsn)._replace(path=f"/{name}").geturl())
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()

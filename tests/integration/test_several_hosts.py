"""A DSN with several hosts: a machine that is gone does not hide those after it."""

import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from msgspec.structs import replace

from timemachine.domain.errors import UnavailableError
from timemachine.postgres.pool import connection, open_pool, session
from timemachine.settings import Settings


@pytest.fixture
def silent() -> Iterator[str]:
    """A host that takes connections and never says a word, as one that hangs."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def gone() -> str:
    """A host that refuses connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def before(settings: Settings, *hosts: str, attributes: str = "any") -> Settings:
    """Return settings whose DSN names other hosts before the one that is there."""
    url = urlsplit(settings.postgres_dsn or "")
    user, _, host = url.netloc.rpartition("@")
    dsn = url._replace(netloc=f"{user}@{','.join((*hosts, host))}", query=f"target_session_attrs={attributes}")
    return replace(settings, postgres_dsn=dsn.geturl())


@pytest.mark.parametrize("attributes", ["any", "read-write", "primary"])
async def test_a_host_that_does_not_answer_does_not_hide_the_next(
    settings: Settings, silent: str, gone: str, attributes: str
) -> None:
    several = before(settings, silent, gone, silent, attributes=attributes)

    async with open_pool(several) as pool, connection(pool) as postgres:
        assert await postgres.fetchval("SELECT 1") == 1
    async with session(several) as postgres:
        assert await postgres.fetchval("SELECT 1") == 1


async def test_each_host_has_its_own_line_in_a_file_of_passwords(settings: Settings, gone: str, tmp_path: Path) -> None:
    url = urlsplit(settings.postgres_dsn or "")
    passwords = tmp_path / "passwords"
    passwords.write_text(f"{gone}:*:*:of-another\n{url.hostname}:{url.port}:*:*:{url.password}\n")
    passwords.chmod(0o600)
    dsn = f"postgresql://{url.username}@{gone},{url.hostname}:{url.port}{url.path}?passfile={passwords}"

    async with open_pool(replace(settings, postgres_dsn=dsn)) as pool, connection(pool) as postgres:
        assert await postgres.fetchval("SELECT 1") == 1


async def test_where_no_host_can_be_used_postgres_does_not_answer(settings: Settings, silent: str, gone: str) -> None:
    dsn = (settings.postgres_dsn or "").replace(urlsplit(settings.postgres_dsn or "").netloc, f"us:pw@{silent},{gone}")
    nowhere = replace(settings, postgres_dsn=dsn)

    with pytest.raises(UnavailableError, match=r"^Postgres does not answer$"):
        async with open_pool(nowhere) as pool, connection(pool):
            pass
    with pytest.raises(UnavailableError, match=r"Connect call failed|refused"):
        async with session(nowhere):
            pass

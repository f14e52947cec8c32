"""The health of a program that serves no HTTP otherwise."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from devstack.ports import LOOPBACK, free_port
from tests.support.cases import each_case
from timemachine import health_server
from timemachine.domain.errors import SettingsError, UnavailableError
from timemachine.health_server import serving_health


async def ready() -> None:
    """Nothing is wrong."""


async def not_ready() -> None:
    raise UnavailableError("postgres is at 10.0.0.1")


async def broken() -> None:
    raise RuntimeError("postgres is at 10.0.0.1")


@asynccontextmanager
async def serving(check: health_server.CheckReady = ready) -> AsyncIterator[str]:
    address = f"{LOOPBACK}:{free_port()}"
    async with serving_health(address, check):
        yield address


@each_case(
    ("path", "check", "status", "body"),
    [
        ("/livez", ready, 200, {"status": "ok"}),
        ("/livez", not_ready, 200, {"status": "ok"}),
        ("/readyz", ready, 200, {"status": "ok"}),
        ("/readyz", not_ready, 503, {"status": "service unavailable"}),
        ("/readyz", broken, 503, {"status": "service unavailable"}),
        ("/metrics", ready, 404, {"status": "not found"}),
        ("/livez?verbose", ready, 200, {"status": "ok"}),
        ("/livez/x", ready, 404, {"status": "not found"}),
    ],
)
async def test_what_is_answered(path: str, check: health_server.CheckReady, status: int, body: dict[str, str]) -> None:
    async with serving(check) as address, httpx.AsyncClient() as http:
        answer = await http.get(f"http://{address}{path}")

    assert (answer.status_code, answer.json()) == (status, body)


async def test_other_methods_are_not_answered_as_get() -> None:
    async with serving() as address, httpx.AsyncClient() as http:
        assert (await http.post(f"http://{address}/livez")).status_code == 404


@each_case("sent", [b"", b"GET /livez HTTP/1.1\r\n", b"x" * 20_000 + b"\r\n\r\n"])
async def test_what_is_no_request_gets_no_answer(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_server, "READ_LIMIT", 0.2)
    async with serving() as address, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(LOOPBACK, int(address.rpartition(":")[2]))
        writer.write(sent)
        assert await reader.read() == b""
        writer.close()


async def test_an_address_that_is_taken_is_named() -> None:
    async with serving() as address:
        with pytest.raises(SettingsError, match=r"^TIMEMACHINE_HEALTH_ADDRESS: .*in use"):
            async with serving_health(address, ready):
                pass


async def test_without_an_address_nothing_is_served() -> None:
    async with serving_health(None, not_ready), serving_health("", not_ready):
        pass

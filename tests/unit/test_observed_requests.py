"""Each request has an id, in its answer and in its lines of the log."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any, cast

import pytest
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from api.observed_requests import ObservedRequests, request_id_of
from timemachine.domain.keys import generate_key, new_key_id
from timemachine.telemetry import JsonFormatter

log = logging.getLogger("test")


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What is logged, as it is written."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter())
    log.addHandler(handler)
    yield written
    log.removeHandler(handler)


class Framework:
    """Answers as the framework does, perhaps on a copy of the scope."""

    def __init__(self) -> None:
        self.seen: str | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen = request_id_of(scope)
        log.warning("working")
        await asyncio.create_task(logged_beside())
        await send(cast("Message", {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]}))


async def logged_beside() -> None:
    log.warning("working beside")


def copying(app: ASGIApp) -> ASGIApp:
    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        await app(cast("Scope", {**scope, "method": "GET"}), receive, send)

    return handle


async def nothing() -> Any:
    raise AssertionError("no body is read")


async def ask(app: ASGIApp, *given: bytes, method: str = "GET") -> list[tuple[bytes, bytes]]:
    """Return the headers of the answer to a request with these ids."""
    headers: list[tuple[bytes, bytes]] = []

    async def send(message: Message) -> None:
        headers.extend(cast("Any", message)["headers"])

    scope = {
        "type": "http",
        "method": method,
        "path": "/job/secret-db/c",
        "state": {},
        "headers": [(b"x-request-id", value) for value in given],
    }
    await ObservedRequests(copying(app))(cast("Scope", scope), nothing, send)
    return headers


@pytest.mark.parametrize("given", [b"r-1", b"a" * 128, b"!~"])
async def test_an_id_that_is_given_is_kept(given: bytes, lines: io.StringIO) -> None:
    framework = Framework()

    headers = await ask(framework, given)

    assert headers == [(b"a", b"b"), (b"x-request-id", given)]
    assert framework.seen == given.decode()
    assert [json.loads(line)["request_id"] for line in lines.getvalue().splitlines()] == [given.decode()] * 2


@pytest.mark.parametrize(
    "given",
    [b"", b"a" * 129, b"a b", b"a\tb", "ä".encode(), b"a\x7f", generate_key(new_key_id()).text.encode()],
    ids=["none", "long", "blank", "tab", "not ASCII", "control", "a key"],
)
async def test_any_other_is_replaced_by_a_new_one(given: bytes, lines: io.StringIO) -> None:
    first, second = [dict(await ask(Framework(), given))[b"x-request-id"] for _ in range(2)]

    assert first != second
    assert len(first) == 32
    assert first != given
    ids = [json.loads(line)["request_id"] for line in lines.getvalue().splitlines()]
    assert ids == [first.decode()] * 2 + [second.decode()] * 2


async def test_outside_of_requests_lines_have_no_id(lines: io.StringIO) -> None:
    await ask(Framework(), b"r-1")

    log.warning("afterward")

    assert "request_id" not in json.loads(lines.getvalue().splitlines()[-1])

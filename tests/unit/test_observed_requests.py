"""Each request has an id, in its answer and in its lines of the log, and is counted under the path that it leads to."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any, cast

import pytest
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send
from temporalio.common import MetricMeter

from api.observed_requests import ObservedRequests, noting_route, request_id_of
from tests.support.cases import each_case
from tests.support.meters import Counted
from timemachine import metrics
from timemachine.domain.keys import generate_key, new_key_id
from timemachine.telemetry import JsonFormatter

log = logging.getLogger("test")


@pytest.fixture
def counted() -> Iterator[Counted]:
    yield Counted()
    metrics.export_to(MetricMeter.noop)


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
    """Answers as the framework does: it finds out about the path, perhaps on a copy of the scope."""

    def __init__(self, template: str | None = "/job/{db}/{collection}", status: int | None = 200) -> None:
        self._template = template
        self._status = status
        self.seen: str | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._template:
            cast("HTTPScope", scope)["path_template"] = self._template
        self.seen = request_id_of(scope)
        log.warning("working")
        await asyncio.create_task(logged_beside())
        if self._status is None:
            raise ConnectionError
        await send(cast("Message", {"type": "http.response.start", "status": self._status, "headers": [(b"a", b"b")]}))


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
        "scheme": "http",
        "path": "/job/secret-db/c",
        "state": {},
        "headers": [(b"x-request-id", value) for value in given],
    }
    await ObservedRequests(copying(noting_route(app)))(cast("Scope", scope), nothing, send)
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


async def test_a_request_is_counted_by_its_template_and_not_by_its_path(counted: Counted) -> None:
    await ask(Framework())

    labels = {"method": "GET", "route": "/job/{db}/{collection}"}
    assert counted.total("timemachine_http_requests_total", status="200", **labels) == 1
    assert len(counted.values("timemachine_http_request_duration_seconds", **labels)) == 1


@each_case(
    ("framework", "method", "labels"),
    [
        (Framework(template=None, status=404), "GET", ("GET", "none", "404")),
        (Framework(), "HEAD", ("HEAD", "/job/{db}/{collection}", "200")),
        (Framework(status=405), "MADE-UP", ("other", "/job/{db}/{collection}", "405")),
    ],
)
async def test_labels_are_few_whatever_is_asked(
    framework: Framework, method: str, labels: tuple[str, str, str], counted: Counted
) -> None:
    await ask(framework, method=method)

    expected = dict(zip(("method", "route", "status"), labels, strict=True))
    assert counted.total("timemachine_http_requests_total", **expected) == 1


async def test_a_request_that_the_application_breaks_at_is_counted_as_an_error(counted: Counted) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await ask(broken)

    labels = {"method": "GET", "route": "none", "status": "500"}
    assert counted.total("timemachine_http_requests_total", **labels) == 1


async def test_a_request_that_is_not_answered_is_counted_too(counted: Counted) -> None:
    with pytest.raises(ConnectionError):
        await ask(Framework(status=None))

    labels = {"method": "GET", "route": "/job/{db}/{collection}", "status": "none"}
    assert counted.total("timemachine_http_requests_total", **labels) == 1

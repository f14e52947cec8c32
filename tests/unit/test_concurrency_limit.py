"""The limit on requests, before an application that the tests hold up."""

import asyncio
import json
from typing import Any

import pytest

from api.concurrency_limit import EXEMPT, MAX_STREAMED, STREAMED, ConcurrencyLimit


class App:
    """An application that is in a request for as long as a test wants."""

    def __init__(self) -> None:
        self.inside = 0
        self.entered = asyncio.Event()
        self.go_on = asyncio.Event()
        self.fails = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.inside += 1
        self.entered.set()
        await self.go_on.wait()
        self.inside -= 1
        if self.fails:
            raise ZeroDivisionError
        await send({"type": "http.response.start", "status": 200, "headers": []})


async def unread() -> Any:
    pytest.fail("the body of a request that is refused is read")


async def ask(limit: ConcurrencyLimit, path: str = "/job/a/b", kind: str = "http", receive: Any = unread) -> list[Any]:
    """Return what is sent for a request."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope: Any = {"type": kind, "method": "POST", "path": path, "headers": [], "query_string": b""}
    await limit(scope, receive, send)
    return sent


async def fill(limit: ConcurrencyLimit, app: App, slots: int) -> list[asyncio.Task[list[Any]]]:
    tasks = [asyncio.create_task(ask(limit)) for _ in range(slots)]
    while app.inside < slots:
        await asyncio.sleep(0)
    return tasks


@pytest.mark.parametrize("slots", [1, 3])
async def test_what_is_one_too_many_is_refused_unread_and_in_the_form_of_all_refusals(slots: int) -> None:
    limit = ConcurrencyLimit(app := App(), slots)
    inside = await fill(limit, app, slots)

    start, body = await ask(limit)

    assert start["status"] == 429
    assert dict(start["headers"])[b"retry-after"] == b"1"
    assert dict(start["headers"])[b"content-type"] == b"application/json"
    assert set(answer := json.loads(body["body"])) == {"error", "code"}
    assert answer["code"] == "E014"
    assert app.inside == slots
    app.go_on.set()
    assert [sent[0]["status"] for sent in await asyncio.gather(*inside)] == [200] * slots


@pytest.mark.parametrize("how", ["answered", "failed", "given up"])
async def test_a_place_is_free_again_however_its_request_ends(how: str) -> None:
    limit = ConcurrencyLimit(app := App(), 1)
    (inside,) = await fill(limit, app, 1)

    app.fails = how == "failed"
    if how == "given up":
        inside.cancel()
    else:
        app.go_on.set()
    await asyncio.gather(inside, return_exceptions=True)
    app.go_on.set()
    app.fails = False

    assert (await ask(limit))[0]["status"] == 200


async def test_health_is_answered_when_all_places_are_taken() -> None:
    limit = ConcurrencyLimit(app := App(), 1)
    inside = await fill(limit, app, 1)
    exempt = [asyncio.create_task(ask(limit, path)) for path in sorted(EXEMPT)]
    app.go_on.set()

    assert [sent[0]["status"] for sent in await asyncio.gather(*inside, *exempt)] == [200] * 4


async def test_what_is_no_request_is_let_through() -> None:
    limit = ConcurrencyLimit(app := App(), 1)
    inside = await fill(limit, app, 1)
    other = asyncio.create_task(ask(limit, kind="websocket"))
    app.go_on.set()

    assert [sent[0]["status"] for sent in await asyncio.gather(*inside, other)] == [200] * 2


async def test_a_client_that_does_not_send_its_body_loses_its_place() -> None:
    read: list[Any] = []
    pieces = iter([{"type": "http.request", "body": b"{", "more_body": True}])

    async def stalled() -> Any:
        for piece in pieces:
            return piece
        return await asyncio.Event().wait()

    async def reading(scope: Any, receive: Any, send: Any) -> None:
        while not read or read[-1]["type"] == "http.request":
            read.append(await receive())

    async with asyncio.timeout(20):
        await ask(ConcurrencyLimit(reading, 1, body_limit=0.01), receive=stalled)

    assert [message["type"] for message in read][-1] == "http.disconnect"


async def test_so_many_bodies_are_streamed_at_a_time_and_others_let_in_beside_them() -> None:
    limit = ConcurrencyLimit(app := App(), 2 * MAX_STREAMED)
    streamed = [asyncio.create_task(ask(limit, f"{STREAMED}a/b")) for _ in range(MAX_STREAMED)]
    while app.inside < MAX_STREAMED:
        await asyncio.sleep(0)

    assert (await ask(limit, f"{STREAMED}a/b"))[0]["status"] == 429
    others = [asyncio.create_task(ask(limit)) for _ in range(MAX_STREAMED)]
    app.go_on.set()
    assert [sent[0]["status"] for sent in await asyncio.gather(*streamed, *others)] == [200] * 2 * MAX_STREAMED
    assert (await ask(limit, f"{STREAMED}a/b"))[0]["status"] == 200


@pytest.mark.parametrize(("path", "whole"), [("/job/a/b", False), (f"{STREAMED}a/b", True)])
async def test_a_body_that_is_streamed_may_take_longer(path: str, whole: bool) -> None:
    read: list[str] = []

    async def slow() -> Any:
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def reading(scope: Any, receive: Any, send: Any) -> None:
        while len(read) < 10 and "http.disconnect" not in read:
            read.append((await receive())["type"])

    await ask(ConcurrencyLimit(reading, 1, body_limit=0.3), path, receive=slow)

    assert ("http.disconnect" not in read) == whole

"""The client of receivers, against sockets that behave badly."""

import asyncio
import logging
import socket
import threading
import time

import pytest

from tests.support.scripts import Script, drip, flood, says, scripted, silence
from timemachine.domain.address_guard import AddressGuard
from timemachine.domain.errors import NoAnswerError, OwnFaultError
from timemachine.webhooks.client import MAX_ANSWER_BYTES, WebhookClient, WebhookResponse

TIMEOUT = 1.0
ANYWHERE = AddressGuard(allow_private=True)


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    return


async def post(script: Script) -> WebhookResponse:
    """POST once; the client's own limits must end it."""
    async with (
        asyncio.timeout(TIMEOUT + 10),
        scripted(script) as url,
        WebhookClient(timeout=TIMEOUT, max_connections=4, address_guard=ANYWHERE) as client,
    ):
        return await client.post(url, b"{}", {"content-type": "application/json"})


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_any_2xx_takes_the_job(status: int) -> None:
    assert (await post(says(f"HTTP/1.1 {status} -\r\ncontent-length: 0"))).taken


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed_and_takes_nothing(status: int) -> None:
    answer = await post(says(f"HTTP/1.1 {status} -\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0"))

    assert (answer.status, answer.taken) == (status, False)


@pytest.mark.parametrize("location", ["http://[", "http://xn--a/", "http://h:x/", "//", "\x80"])
async def test_where_a_redirect_goes_is_not_read(location: str) -> None:
    assert (await post(says(f"HTTP/1.1 307 -\r\nLocation: {location}\r\ncontent-length: 0"))).status == 307


@pytest.mark.parametrize("status", [400, 404, 410, 429, 500, 503])
async def test_any_other_status_takes_nothing_and_keeps_its_body(status: int) -> None:
    answer = await post(says(f"HTTP/1.1 {status} -\r\ncontent-length: 4", b"why?"))

    assert (answer.status, answer.body, answer.taken) == (status, b"why?", False)


async def unfinished_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
    await drip(reader, writer)


@pytest.mark.parametrize("script", [silence, unfinished_head], ids=["says nothing", "drips its head"])
async def test_a_receiver_without_an_answer_in_time(script: Script) -> None:
    with pytest.raises(NoAnswerError, match=r"no answer within 1 s"):
        await post(script)


async def test_an_answer_counts_that_came_while_the_whole_process_was_stopped() -> None:
    asked, stopped = threading.Event(), threading.Event()

    def receive(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1_000)
            asked.set()
            stopped.wait()
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    async with WebhookClient(timeout=TIMEOUT, max_connections=1, address_guard=ANYWHERE) as client:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            receiving = asyncio.create_task(asyncio.to_thread(receive, listener))
            posting = asyncio.create_task(client.post(f"http://127.0.0.1:{listener.getsockname()[1]}/", b"", {}))
            await asyncio.to_thread(asked.wait)
            stopped.set()
            time.sleep(TIMEOUT)  # noqa: ASYNC251 - stops the whole process, beyond the limit
            assert (await posting).taken
            await receiving


@pytest.mark.parametrize("then", [silence, flood, drip], ids=["stalls", "never ends", "drips"])
async def test_a_body_that_does_not_end_cannot_take_the_answer_back(then: Script) -> None:
    answer = await post(says("HTTP/1.1 200 OK\r\nconnection: close", then=then))

    assert answer.taken
    assert len(answer.body) <= MAX_ANSWER_BYTES


@pytest.mark.parametrize(
    "script",
    [hang_up, says("nonsense"), says("HTTP/1.1 20x OK")],
    ids=["hangs up", "no HTTP", "no status"],
)
async def test_a_broken_answer_is_none(script: Script) -> None:
    with pytest.raises(NoAnswerError):
        await post(script)


async def test_a_closed_port_is_no_answer() -> None:
    async with WebhookClient(timeout=TIMEOUT, max_connections=1, address_guard=ANYWHERE) as client:
        with pytest.raises(NoAnswerError, match="connection refused"):
            await client.post("http://127.0.0.1:1/", b"", {})


async def test_an_unknown_host_is_no_answer() -> None:
    async with WebhookClient(timeout=TIMEOUT, max_connections=1, address_guard=ANYWHERE) as client:
        with pytest.raises(NoAnswerError):
            await client.post("http://no-such-host.invalid/", b"", {})


async def test_proxy_variables_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    assert (await post(says("HTTP/1.1 200 OK\r\ncontent-length: 0"))).taken


async def test_a_connection_is_used_again() -> None:
    connections = 0

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            await says("HTTP/1.1 200 OK\r\ncontent-length: 2", b"ok")(reader, writer)

    async with (
        scripted(count) as url,
        WebhookClient(timeout=TIMEOUT, max_connections=4, address_guard=ANYWHERE) as client,
    ):
        for _ in range(3):
            await client.post(url, b"", {})

    assert connections == 1


async def test_a_cookie_is_not_kept() -> None:
    heads = []

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).lower())
        writer.write(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\ncontent-length: 0\r\n\r\n")

    async with (
        scripted(keep) as url,
        WebhookClient(timeout=TIMEOUT, max_connections=4, address_guard=ANYWHERE) as client,
    ):
        for _ in range(2):
            await client.post(url, b"", {})

    assert [b"cookie" in head for head in heads] == [False, False]


async def test_a_url_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with (
        scripted(says("HTTP/1.1 200 OK\r\ncontent-length: 0")) as url,
        WebhookClient(timeout=TIMEOUT, max_connections=4, address_guard=ANYWHERE) as client,
    ):
        assert (await client.post(f"{url}?token=hidden", b"", {})).taken

    assert "hidden" not in caplog.text


async def test_who_waits_in_vain_takes_no_place_from_those_who_come_after() -> None:
    async with (
        scripted(silence) as black_hole,
        scripted(says("HTTP/1.1 200 OK\r\ncontent-length: 0")) as healthy,
        WebhookClient(timeout=TIMEOUT, max_connections=4, address_guard=ANYWHERE) as client,
    ):
        waiting = [asyncio.create_task(client.post(black_hole, b"", {}, timeout=0.3)) for _ in range(40)]
        await asyncio.sleep(0.1)
        for task in waiting[::3]:
            task.cancel()
        failed = await asyncio.gather(*waiting, return_exceptions=True)

        assert {type(failure) for failure in failed} <= {NoAnswerError, OwnFaultError, asyncio.CancelledError}
        assert all([(await client.post(healthy, b"", {})).taken for _ in range(8)])

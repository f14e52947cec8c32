"""What a connection is left with, and who may use it again: receivers and proxies that send exact bytes."""

import asyncio
import errno
import re
import resource
import socket
import ssl
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import NoReturn

import pytest
import trustme
import uvloop

from tests.support.scripts import Script, Wire, drip, proxying, scripted, silence
from timemachine.domain.address_guard import AddressGuard
from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.errors import NoAnswerError, NotSentError, OwnFaultError
from timemachine.webhooks import client as http
from timemachine.webhooks import default_route
from timemachine.webhooks.client import WebhookClient, WebhookResponse
from timemachine.webhooks.connection_pool import IDLE_TIME
from timemachine.webhooks.exchange import MAX_HEAD_BYTES, MAX_HEAD_LINES, MAX_INTERIM
from timemachine.webhooks.network import Connector, Stream

TIMEOUT = 2.0
ANYWHERE = AddressGuard(allow_private=True)
AUTHORITY = trustme.CA()
TAKEN = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
BUSY = b"HTTP/1.1 503 -\r\ncontent-length: 0\r\n\r\n"
BROKEN = b"HTTP/1.1 500 -\r\ncontent-length: 6\r\n\r\nbroken"
CHUNKED = b"HTTP/1.1 503 -\r\ntransfer-encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n"
WAYS = ["http", "https", "http by proxy", "https by proxy"]


def certified() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    AUTHORITY.issue_cert("127.0.0.1").configure_cert(context)
    return context


def make_client(proxy: str | None = None, *, timeout: float = TIMEOUT) -> WebhookClient:
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(trust)
    return WebhookClient(
        timeout=timeout, max_connections=100, address_guard=ANYWHERE, egress_proxy=proxy, ssl_context=trust
    )


@asynccontextmanager
async def reached(script: Script, way: str = "http") -> AsyncIterator[tuple[WebhookClient, str]]:
    """A client, and the URL of a receiver that it reaches in this way."""
    async with scripted(script, certified() if way.startswith("https") else None) as url:
        if way.endswith("by proxy"):
            async with scripted(proxying(url)) as proxy, make_client(proxy) as client:
                yield client, url
        else:
            async with make_client() as client:
                yield client, url


async def post(client: WebhookClient, url: str) -> WebhookResponse:
    async with asyncio.timeout(TIMEOUT + 10):
        return await client.post(url, b"{}", {"webhook-id": "msg_1"})


async def failure(client: WebhookClient, url: str) -> NoAnswerError:
    with pytest.raises(NoAnswerError) as caught:
        await post(client, url)
    return caught.value


# What is left of an answer


LEFT_OVER = {
    "another answer": BUSY + TAKEN,
    "the begin of another": BUSY + b"HTTP/1.1 2",
    "an interim answer": BUSY + b"HTTP/1.1 100 Continue\r\n\r\n",
    "a line end": BUSY + b"\r\n",
    "a line feed": BUSY + b"\n",
    "a 204 with a body": b"HTTP/1.1 204 -\r\ncontent-length: 2\r\n\r\nok",
    "a 204 with chunks": b"HTTP/1.1 204 -\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "a 304 with a body": b"HTTP/1.1 304 -\r\ncontent-length: 2\r\n\r\nok",
    "a short content-length": b"HTTP/1.1 503 -\r\ncontent-length: 2\r\n\r\nokay",
    "a content-length of nothing": b"HTTP/1.1 503 -\r\ncontent-length: 0\r\n\r\n" + b"x" * 300_000,
    "after the last chunk": CHUNKED + b"x",
    "a line end after the last chunk": CHUNKED + b"\r\n",
    "another answer after the last chunk": CHUNKED + TAKEN,
    "another answer after trailers": CHUNKED[:-2] + b"x: y\r\n\r\n" + TAKEN,
    "an unfinished body": b"HTTP/1.1 503 -\r\ncontent-length: 100000\r\n\r\n" + b"x" * 99_999,
    "length and chunks": CHUNKED.replace(b"\r\n", b"\r\ncontent-length: 2\r\n", 1),
    "a large body": b"HTTP/1.1 503 -\r\ncontent-length: 100000\r\n\r\n" + b"x" * 100_000,
    "close": BUSY.replace(b"\r\n", b"\r\nconnection: close\r\n", 1),
    "Close": BUSY.replace(b"\r\n", b"\r\nCONNECTION:Close\r\n", 1),
    "close among others": BUSY.replace(b"\r\n", b"\r\nConnection: foo ,\tCLOSE, keep-alive\r\n", 1),
    "close in a second line": BUSY.replace(b"\r\n", b"\r\nConnection: keep-alive\r\nConnection: close\r\n", 1),
    "close in a folded line": BUSY.replace(b"\r\n", b"\r\nConnection: keep-alive,\r\n close\r\n", 1),
    "HTTP/1.0": BUSY.replace(b"1.1", b"1.0"),
    "HTTP/1.0 to be kept": BUSY.replace(b"1.1 503 -\r\n", b"1.0 503 -\r\nConnection: keep-alive\r\n"),
    "switching protocols": b"HTTP/1.1 101 -\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n" + TAKEN,
    "many lines": BUSY.replace(b"\r\n", b"\r\n" + b"a: b\r\n" * MAX_HEAD_LINES, 1),
    "an odd header": BUSY.replace(b"\r\n", b"\r\nod d: 1\r\n", 1),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("first", LEFT_OVER.values(), ids=LEFT_OVER)
async def test_each_answer_is_that_to_its_own_request(first: bytes, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_TIME", 0.2)
    wire = Wire(first, BROKEN)
    async with reached(wire, way) as (client, url):
        assert (await post(client, url)).status == int(first[9:12])
        answer = await post(client, url)

    assert (answer.status, answer.body) == (500, b"broken")
    assert wire.by == [0, 1]


@pytest.mark.parametrize("way", ["http", "https"])
@pytest.mark.parametrize("late", [TAKEN, b"H", b"\r\n", b"HTTP/1.1 102 -\r\n\r\n", None], ids=str)
@pytest.mark.parametrize("turns", [0, 1, 5])
async def test_what_comes_after_an_answer_is_none_to_the_next_request(way: str, late: bytes | None, turns: int) -> None:
    """With no turn of the loop in between, it is in the system's buffer only."""
    wire = Wire(BUSY, BROKEN)
    async with reached(wire, way) as (client, url):
        assert (await post(client, url)).status == 503
        if late:
            wire.connections[0].write(late)
        else:
            wire.connections[0].close()
        for _ in range(turns):
            await asyncio.sleep(0)
        assert (await post(client, url)).status == 500

    assert wire.by == [0, 1]


WITHOUT_BODY = b"HTTP/1.1 204 -\r\n%b\r\n"
BODY_TO_COME = {
    "a 204 with a length": WITHOUT_BODY % b"content-length: 2\r\n",
    "a 204 with chunks": WITHOUT_BODY % b"Transfer-Encoding: chunked\r\n",
    "a 204 with a folded length": WITHOUT_BODY % b"CONTENT-LENGTH:\r\n 2\r\n",
    "a 204 with a length in line feeds": (WITHOUT_BODY % b"content-length:02\r\n").replace(b"\r\n", b"\n"),
    "a 304 with a length": BUSY.replace(b"503", b"304").replace(b": 0", b": 2"),
    "an interim answer with a length": b"HTTP/1.1 103 -\r\ncontent-length: 2\r\n\r\n" + BUSY,
    "an interim answer with chunks": b"HTTP/1.1 100 -\r\ntransfer-encoding: chunked\r\n\r\n" + BUSY,
    "a 205 with a length": BUSY.replace(b"503", b"205").replace(b": 0", b": 2"),
    "a 205 without a length": b"HTTP/1.1 205 -\r\n\r\n",
    "no length and chunks": BUSY.replace(b"\r\n", b"\r\ntransfer-encoding: chunked\r\n", 1),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("first", BODY_TO_COME.values(), ids=BODY_TO_COME)
async def test_a_body_that_may_still_come_is_no_answer_to_the_next_request(
    first: bytes, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes when the next request has left, where nobody can tell it from an answer."""
    monkeypatch.setattr(http, "BODY_TIME", 0.2)
    wire = Wire(first, BROKEN)
    async with reached(wire, way) as (client, url):
        await post(client, url)
        answer = await post(client, url)

    assert (answer.status, answer.body) == (500, b"broken")
    assert wire.by == [0, 1]


GOOD = {
    "a length": BROKEN,
    "nothing": BUSY,
    "chunks": CHUNKED,
    "trailers": CHUNKED[:-2] + b"x: y\r\n\r\n",
    "a 204": b"HTTP/1.1 204 -\r\n\r\n",
    "a 204 with a length of nothing": b"HTTP/1.1 204 -\r\nContent-Length:  0 \r\nx: y\r\n\r\n",
    "an interim answer with a length of nothing": b"HTTP/1.1 100 -\r\ncontent-length: 0\r\n\r\n" + BUSY,
    "interim answers": b"HTTP/1.1 100 -\r\n\r\nHTTP/1.1 103 -\r\nlink: x\r\n\r\n" + BUSY,
    "line feeds": BUSY.replace(b"\r\n", b"\n"),
    "the largest body": b"HTTP/1.1 200 -\r\ncontent-length: 65536\r\n\r\n" + b"x" * 65_536,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("first", GOOD.values(), ids=GOOD)
async def test_a_connection_with_nothing_left_on_it_is_used_again(first: bytes, way: str) -> None:
    wire = Wire(first, BROKEN, TAKEN)
    async with reached(wire, way) as (client, url):
        answers = [await post(client, url) for _ in range(3)]

    assert [answer.status for answer in answers[1:]] == [500, 200]
    assert wire.by == [0, 0, 0]


async def test_a_line_end_that_comes_in_the_next_answer_is_passed_over() -> None:
    wire = Wire(BUSY, b"\r\n" + BROKEN)
    async with reached(wire) as (client, url):
        assert [(await post(client, url)).status for _ in range(2)] == [503, 500]

    assert wire.by == [0, 0]


@pytest.mark.parametrize("way", ["http", "https"])
async def test_a_connection_on_which_a_request_is_still_being_sent_is_not_used_again(way: str) -> None:
    """Its receiver answered early, and reads no more."""
    connections, over, ended = 0, asyncio.Event(), asyncio.Semaphore(0)

    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(BUSY if connections == 1 else TAKEN)
        await over.wait()
        writer.transport.abort()
        ended.release()

    async with reached(early, way) as (client, url):
        assert (await client.post(url, b"x" * 16_000_000, {})).status == 503
        assert (await post(client, url)).taken
        over.set()
        for _ in range(connections):
            await ended.acquire()

    assert connections == 2


async def test_an_idle_connection_is_closed_before_its_receiver_would() -> None:
    wire = Wire(BUSY, TAKEN)
    async with reached(wire) as (client, url):
        await post(client, url)
        async with asyncio.timeout(IDLE_TIME + 10):
            while not wire.connections[0].transport.is_closing():
                await asyncio.sleep(0.05)
        assert IDLE_TIME < 5
        assert (await post(client, url)).taken

    assert wire.by == [0, 1]


async def test_no_more_idle_connections_are_kept_than_there_may_be_in_use() -> None:
    wire = Wire(*[TAKEN] * 9)
    async with (
        scripted(wire) as url,
        scripted(wire) as other,
        WebhookClient(timeout=TIMEOUT, max_connections=1, address_guard=ANYWHERE) as client,
    ):
        for target in (url, other, url, other):
            assert (await post(client, target)).taken

    assert wire.by == [0, 1, 0, 2]


# A kept connection that breaks


async def reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


class Closing(Wire):
    """Answers on each connection once; the second request on one finds it closed in this way."""

    def __init__(self, *answers: bytes | None, how: str) -> None:
        super().__init__(*answers)
        self.how = how
        self.served = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.served += 1
        once = Wire(self.answers.pop(0))
        once.answers.append(None)
        await once(reader, writer)
        if self.how == "reset":
            await reset(writer)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("how", ["end", "reset"])
async def test_a_kept_connection_that_breaks_before_any_answer_is_replaced_at_once(way: str, how: str) -> None:
    closing = Closing(BUSY, BROKEN, how=how)
    asked = 0

    def may_send() -> bool:
        nonlocal asked
        asked += 1
        return True

    async with reached(closing, way) as (client, url):
        assert (await post(client, url)).status == 503
        assert (await client.post(url, b"{}", {}, may_send=may_send)).status == 500

    assert closing.served == 2
    assert asked == 2


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_a_new_connection_that_breaks_is_a_failed_attempt(how: str) -> None:
    closing = Closing(None, TAKEN, how=how)
    async with reached(closing) as (client, url):
        error = await failure(client, url)

    assert (str(error), error.kind) == ("the connection broke before the answer", AttemptKind.PROTOCOL)
    assert closing.served == 1


async def test_the_replacement_is_not_replaced() -> None:
    closing = Closing(BUSY, None, TAKEN, how="end")
    async with reached(closing) as (client, url):
        assert (await post(client, url)).status == 503
        assert (await failure(client, url)).kind is AttemptKind.PROTOCOL

    assert closing.served == 2


async def test_a_request_that_a_kept_connection_took_was_sent_though_no_other_can_be_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def lacking(*_: object) -> NoReturn:
        raise OwnFaultError("no descriptors")

    async with reached(Closing(BUSY, TAKEN, how="end")) as (client, url):
        assert (await post(client, url)).status == 503
        monkeypatch.setattr(Connector, "connect", lacking)
        assert (await failure(client, url)).kind is AttemptKind.PROTOCOL
        with pytest.raises(OwnFaultError):
            await post(client, url)


async def test_a_kept_connection_that_breaks_within_an_answer_is_not_replaced() -> None:
    wire = Wire(BUSY, b"HTTP/1.1 2", TAKEN)

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving, first = asyncio.create_task(wire(reader, writer)), not wire.connections
        while first and len(wire.requests) < 2:
            await asyncio.sleep(0)
        if first:
            serving.cancel()
        await serving

    async with reached(cut) as (client, url):
        assert (await post(client, url)).status == 503
        assert (await failure(client, url)).kind is AttemptKind.PROTOCOL

    assert wire.by == [0, 0]


async def test_a_kept_connection_without_an_answer_in_time_is_not_replaced() -> None:
    wire = Wire(BUSY, b"", TAKEN)
    async with reached(wire) as (client, url):
        assert (await post(client, url)).status == 503
        with pytest.raises(NoAnswerError) as caught:
            await client.post(url, b"", {}, timeout=0.2)

    assert caught.value.kind is AttemptKind.TIMEOUT
    assert wire.by == [0, 0]


# Whether it may still be sent


@pytest.mark.parametrize("way", WAYS)
async def test_nothing_is_sent_that_may_no_longer_be(way: str) -> None:
    wire = Wire(TAKEN, TAKEN)
    async with reached(wire, way) as (client, url):
        with pytest.raises(NotSentError):
            await client.post(url, b"{}", {}, may_send=lambda: False)
        assert (await client.post(url, b"{}", {}, may_send=lambda: True)).taken
        with pytest.raises(NotSentError):
            await client.post(url, b"{}", {}, may_send=lambda: False)
        assert len(wire.requests) == 1
        assert (await post(client, url)).taken


@pytest.mark.parametrize("way", WAYS)
async def test_it_is_asked_in_the_step_in_which_the_request_is_written(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def may_send() -> bool:
        seen.append("asked")
        asyncio.get_running_loop().call_soon(seen.append, "the next step")
        return True

    def write(stream: Stream, data: bytes) -> None:
        seen.append(data[:4].decode())
        written(stream, data)

    written = Stream.write
    monkeypatch.setattr(Stream, "write", write)
    async with reached(Wire(TAKEN, TAKEN), way) as (client, url):
        for _ in range(2):
            assert (await client.post(url, b"{}", {}, may_send=may_send)).taken

    tunnel = ["CONN"] if way == "https by proxy" else []
    assert seen == [*tunnel, *["asked", "POST", "the next step"] * 2]


async def test_what_goes_wrong_in_asking_leaves_nothing_behind() -> None:
    wire = Wire(TAKEN)
    async with reached(wire) as (client, url):
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                await client.post(url, b"{}", {}, may_send=lambda: 1 // 0 == 0)
        async with asyncio.timeout(20):
            while len(wire.connections) < 2 or not all(one.transport.is_closing() for one in wire.connections):
                await asyncio.sleep(0)

    assert wire.requests == []


async def test_what_went_out_without_an_answer_is_not_said_to_be_unsent() -> None:
    closing = Closing(BUSY, TAKEN, how="end")
    may = iter([True, False])
    async with reached(closing) as (client, url):
        assert (await post(client, url)).status == 503
        with pytest.raises(NoAnswerError):
            await client.post(url, b"{}", {}, may_send=lambda: next(may))

    assert closing.served == 2


# Interim answers and heads without an end


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> None:
    await reader.readuntil(b"\r\n\r\n")
    while True:
        writer.write(data)
        await writer.drain()


ENDLESS = {
    "interim answers": b"HTTP/1.1 100 Continue\r\n\r\n" * 2_000,
    "early hints": b"HTTP/1.1 103 -\r\nlink: </style.css>\r\n\r\n" * 1_000,
    "one-byte chunks": b"HTTP/1.1 200 -\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 10_000,
    "blanks in the head": b"HTTP/1.1 200 -\r\nx:" + b" " * 60_000 + b"\0\r\n\r\n",
    "blanks in a chunk": b"HTTP/1.1 200 -\r\ntransfer-encoding: chunked\r\n\r\n1;" + b" " * 60_000 + b"\n\r\n",
}


@pytest.mark.parametrize("data", [*ENDLESS.values(), b"a: b\r\n" * 10_000, b"x" * 60_000, b"\r\n" * 30_000])
async def test_answers_without_an_end_hold_up_nobody_else(data: bytes) -> None:
    """What a turn of the loop takes at worst, in CPU time, is that of the receiver here, too."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not data.startswith((b"HTTP", b"\r\n")):
            writer.write(b"HTTP/1.1 200 OK\r\n")
        await endless(reader, writer, data)

    async with reached(script) as (client, url):
        posts = [asyncio.create_task(client.post(url, b"", {})) for _ in range(16)]
        longest = 0.0
        while not all(task.done() for task in posts):
            began = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - began)
        ended = await asyncio.gather(*posts, return_exceptions=True)

    assert longest < 0.5
    assert {getattr(end, "kind", None) for end in ended} == {None if b" 200 -" in data else AttemptKind.PROTOCOL}


async def test_a_few_interim_answers_are_passed_over() -> None:
    wire = Wire(b"HTTP/1.1 102 -\r\n\r\n" * MAX_INTERIM + TAKEN, b"HTTP/1.1 102 -\r\n\r\n" * (MAX_INTERIM + 1) + TAKEN)
    async with reached(wire) as (client, url):
        assert (await post(client, url)).taken
        assert str(await failure(client, url)) == "no HTTP answer: too many interim answers"


# The status line decides


ODD = {
    "two transfer-encodings": b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
    "an unknown transfer-encoding": b"transfer-encoding: gzip\r\n",
    "a blank in a name": b"x y: z\r\n",
    "a blank after a name": b"content-length : 0\r\n",
    "no colon": b"nonsense\r\n",
    "no name": b": x\r\n",
    "an empty content-length": b"content-length:\r\n",
    "a negative content-length": b"content-length: -1\r\n",
    "a content-length in words": b"content-length: zero\r\n",
    "two content-lengths": b"content-length: 1\r\ncontent-length: 2\r\n",
    "a huge content-length": b"content-length: " + b"9" * 5_000 + b"\r\n",
    "a control character": b"x: \0\x01\r\n",
    "bytes beyond ASCII": "é: ü\r\n".encode(),
    "a fold at the begin": b" x: y\r\n",
    "many lines": b"a: b\r\n" * (MAX_HEAD_LINES + 1),
    "a long line": b"a: " + b"b" * 60_000 + b"\r\n",
    "a bare carriage return": b"a: b\rc: d\r\n",
}
LINES = [b"1.1 200 OK", b"1.1 200", b"1.1 200 ", b"1.0 200 \x07\xff", b"1.1 299 -", b"2.0 200 -"]


@pytest.mark.parametrize("way", ["http", "https by proxy"])
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
async def test_what_stands_below_the_status_line_takes_nothing_back(odd: bytes, way: str) -> None:
    wire = Wire(b"HTTP/1.1 200 OK\r\n" + odd + b"\r\n", BROKEN)
    async with reached(wire, way) as (client, url):
        assert (await client.post(url, b"{}", {}, timeout=0.5)).taken
        assert (await post(client, url)).status == 500

    assert wire.by == [0, 1]


@pytest.mark.parametrize("line", LINES)
async def test_a_status_line_in_its_many_forms(line: bytes) -> None:
    async with reached(Wire(b"HTTP/" + line + b"\r\ncontent-length: 0\r\n\r\n")) as (client, url):
        assert (await post(client, url)).taken


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 20x OK\r\n\r\n",
        b"HTTP/1.1 020 OK\r\n\r\n",
        b"http/1.1 200 OK\r\n\r\n",
        b"HTTP/x 200 OK\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"x HTTP/1.1 200 OK\r\n\r\n",
        b"SSH-2.0-OpenSSH_9\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * MAX_HEAD_BYTES + b"\r\n\r\n",
    ],
)
async def test_what_is_no_answer(head: bytes) -> None:
    async with reached(Wire(head)) as (client, url):
        error = await failure(client, url)

    assert error.kind is AttemptKind.PROTOCOL
    assert str(error).startswith("no HTTP answer: ")


@pytest.mark.parametrize("echo", [b"nonsense hidden", b"HTTP/1.1 hidden\r\n\r\n", b"hidden: 1\r\n\r\n"])
async def test_what_is_no_answer_is_not_repeated(echo: bytes) -> None:
    async with reached(Wire(echo)) as (client, url):
        assert "hidden" not in str(await failure(client, url))


@pytest.mark.parametrize("wish", [b"retry-after: \xc3\xa9", b"Retry-After: \xff 30"])
async def test_a_wish_that_is_no_text_takes_nothing_back(wish: bytes) -> None:
    async with reached(Wire(TAKEN.replace(b"\r\n", b"\r\n" + wish + b"\r\n", 1))) as (client, url):
        assert (await post(client, url)).taken


@pytest.mark.parametrize(
    "lines",
    [
        b"Retry-After: 1\r\nretry-after: 3600\r\n",
        b"RETRY-AFTER:3600\r\nRetry-After: 1\r\n",
        b"retry-after: 3600\r\nx y: z\r\n",
        b"content-length:\r\nretry-after: 3600\r\n",
        b"a: b\r\n" * (MAX_HEAD_LINES + 1) + b"retry-after: 3600\r\n",
        b"retry-after:\r\n 3600\r\n",
        b"retry-after : 3600\r\n",
    ],
)
async def test_the_longest_wish_of_an_answer_counts_whatever_else_its_head_says(lines: bytes) -> None:
    async with reached(Wire(BUSY.replace(b"\r\n", b"\r\n" + lines, 1))) as (client, url):
        assert (await client.post(url, b"", {}, timeout=0.5)).retry_after == "3600"


@pytest.mark.parametrize(("asked", "kept"), [(b"30", "30"), (b" 7 ", "7"), (b"Bearer hidden", None), (b"", None)])
async def test_a_retry_after_is_kept_without_any_other_text(asked: bytes, kept: str | None) -> None:
    async with reached(Wire(BUSY.replace(b"\r\n", b"\r\nRetry-After: " + asked + b"\r\n", 1))) as (client, url):
        assert (await post(client, url)).retry_after == kept


# The egress proxy


@pytest.mark.parametrize("extra", [TAKEN, b"\x16\x03\x03", b"\r\n", b"x"])
@pytest.mark.parametrize("head", [b"HTTP/1.1 200 -\r\n\r\n", b"HTTP/1.1 200 -\r\ncontent-length: 1\r\n\r\n"])
async def test_what_comes_before_tls_is_not_the_receivers(head: bytes, extra: bytes) -> None:
    wire = Wire(TAKEN)
    async with (
        scripted(wire, certified()) as url,
        scripted(proxying(url, head + extra)) as proxy,
        make_client(proxy) as client,
    ):
        error = await failure(client, url)

    assert str(error).startswith("the egress proxy ")
    assert error.kind is AttemptKind.CONNECT
    assert wire.requests == []


async def test_what_comes_into_the_tunnel_later_is_not_the_receivers_either() -> None:
    async def forge(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 -\r\n\r\n")
        await reader.read(1)
        writer.write(TAKEN)
        await reader.read()

    async with scripted(forge) as proxy, make_client(proxy) as client:
        assert (await failure(client, "https://127.0.0.1:1/")).kind is AttemptKind.TLS


@pytest.mark.parametrize("turns", [0, 20])
async def test_what_a_receiver_says_before_tls_is_no_answer(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def forge(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(TAKEN)
        await writer.start_tls(certified())
        await reader.read()

    async def late(stream: Stream, context: ssl.SSLContext, name: str) -> None:
        for _ in range(turns):
            await asyncio.sleep(0.001)
        await start_tls(stream, context, name)

    start_tls = Stream.start_tls
    monkeypatch.setattr(Stream, "start_tls", late)
    async with reached(forge) as (client, url):
        assert (await failure(client, url.replace("http", "https"))).kind is AttemptKind.TLS


def at_connect(answer: bytes, then: Script | None = None) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        if then:
            await then(reader, writer)

    return script


async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reset(writer)


def in_tls(answer: bytes) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(16)
        writer.write(answer)

    return script


TUNNEL = b"HTTP/1.1 200 -\r\n\r\n"
PROXIES = {
    "hangs up": (at_connect(b""), "hung up"),
    "hangs up at once": (rude, "hung up"),
    "resets": (at_connect(b"", rude), "hung up"),
    "hangs up within the head": (at_connect(b"HTTP/1.1 200 -\r\n"), "hung up"),
    "hangs up after the head": (at_connect(TUNNEL), "(hung up, or sent more than its answer|closed the tunnel)"),
    "hangs up in TLS": (at_connect(TUNNEL, in_tls(b"")), "closed the tunnel before TLS stood"),
    "resets in TLS": (at_connect(TUNNEL, rude), "(hung up, or sent more than its answer|closed the tunnel)"),
    "garbage": (at_connect(b"nonsense\r\n\r\n"), "gave no HTTP answer: it does not begin with a status line"),
    "garbage without an end": (at_connect(b"nonsense", silence), "gave no HTTP answer: it does not begin with"),
    "too long a head": (at_connect(b"HTTP/1.1 200 -\r\nx: " + b"y" * MAX_HEAD_BYTES), "gave no HTTP answer: its head"),
    "interim answers": (at_connect(b"HTTP/1.1 100 -\r\n\r\n" * (MAX_INTERIM + 1)), "gave no HTTP answer: too many"),
    "407": (at_connect(b"HTTP/1.1 407 Who Are You\r\n\r\n"), "refused: 407 Who Are You"),
    "502": (at_connect(b"HTTP/1.1 502 Bad\r\ncontent-length: 9\r\n\r\n"), "refused: 502 Bad"),
    "a redirect": (at_connect(b"HTTP/1.1 302 -\r\nlocation: x\r\n\r\n"), "refused: 302 -"),
    "switching": (at_connect(b"HTTP/1.1 101 -\r\n\r\n"), "refused: 101 -"),
}


@pytest.mark.parametrize(("script", "message"), PROXIES.values(), ids=PROXIES)
async def test_a_proxy_that_fails_is_named(script: Script, message: str) -> None:
    async with scripted(script) as proxy, make_client(proxy) as client:
        error = await failure(client, "https://127.0.0.1:1/")

    assert re.match(f"the egress proxy {message}", str(error))
    assert error.kind is AttemptKind.CONNECT


@pytest.mark.parametrize(
    "script", [silence, at_connect(b"HTTP/1.1 200 -\r\nx: ", drip)], ids=["silence", "a long head"]
)
async def test_a_proxy_that_gives_no_answer_in_time_is_named(script: Script) -> None:
    async with scripted(script) as proxy, make_client(proxy, timeout=0.5) as client:
        error = await failure(client, "https://127.0.0.1:1/")

    assert (str(error), error.kind) == ("no answer from the egress proxy within 0.5 s", AttemptKind.TIMEOUT)


async def test_no_tls_behind_a_proxy_is_the_receivers() -> None:
    async with (
        scripted(at_connect(TUNNEL, in_tls(b"HTTP/1.1 400 -\r\n\r\n"))) as proxy,
        make_client(proxy) as client,
    ):
        error = await failure(client, "https://127.0.0.1:1/")

    assert (str(error), error.kind) == ("TLS failed: wrong version number", AttemptKind.TLS)


async def test_a_receiver_behind_a_proxy_that_has_the_wrong_certificate_is_named() -> None:
    other = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(other)
    async with scripted(silence, other) as url, scripted(proxying(url)) as proxy, make_client(proxy) as client:
        error = await failure(client, url)

    assert (error.kind, str(error)[:12]) == (AttemptKind.TLS, "TLS failed: ")


async def test_a_forwarding_proxy_that_wants_a_password_is_named() -> None:
    wire = Wire(b"HTTP/1.1 407 hidden\r\ncontent-length: 0\r\n\r\n")
    async with scripted(wire) as proxy, make_client(proxy) as client:
        error = await failure(client, "http://127.0.0.1:1/")

    assert (str(error), error.kind) == ("the egress proxy refused: 407", AttemptKind.CONNECT)


FORWARDING = {
    "hangs up": (b"", "the connection to the egress proxy broke before the answer"),
    "hangs up within the head": (b"HTTP/1.1 200 -\r\n", "the connection to the egress proxy broke before the answer"),
    "garbage": (b"nonsense\r\n\r\n", "no HTTP answer from the egress proxy: it does not begin with"),
    "too long a head": (
        b"HTTP/1.1 200 -\r\nx: " + b"y" * MAX_HEAD_BYTES + b"\r\n\r\n",
        "no HTTP answer from the egress proxy: its head is too long",
    ),
}


@pytest.mark.parametrize(("answer", "message"), FORWARDING.values(), ids=FORWARDING)
async def test_a_forwarding_proxy_that_fails_is_named(answer: bytes, message: str) -> None:
    async with scripted(at_connect(answer)) as proxy, make_client(proxy) as client:
        error = await failure(client, "http://127.0.0.1:1/")

    assert str(error).startswith(message)
    assert error.kind is AttemptKind.PROTOCOL


async def test_a_forwarding_proxy_without_an_answer_is_named() -> None:
    async with scripted(silence) as proxy, make_client(proxy, timeout=0.5) as client:
        error = await failure(client, "http://127.0.0.1:1/")

    assert (str(error), error.kind) == ("no answer through the egress proxy within 0.5 s", AttemptKind.TIMEOUT)


@pytest.mark.parametrize("echo", ["hid%20den", "HID DEN", "user:hid den", "dXNlcjpoaWQgZGVu", "hid den in it"])
async def test_a_proxy_that_repeats_its_password_is_not_quoted(echo: str) -> None:
    async with (
        scripted(at_connect(f"HTTP/1.1 407 No {echo}\r\n\r\n".encode())) as proxy,
        make_client(proxy.replace("//", "//user:hid%20den@")) as client,
    ):
        assert str(await failure(client, "https://127.0.0.1:1/")) == "the egress proxy refused: 407"


@pytest.mark.parametrize("host", ["[::1]:1", "[0:0::0:1]:1"])
async def test_a_tunnel_to_an_ipv6_address_is_asked_for_in_brackets(host: str) -> None:
    heads = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 502 Bad\r\n\r\n")

    async with scripted(script) as proxy, make_client(proxy) as client:
        assert str(await failure(client, f"https://{host}/")) == "the egress proxy refused: 502 Bad"

    assert heads == [b"CONNECT [::1]:1 HTTP/1.1\r\nHost: [::1]:1\r\n\r\n"]


async def test_a_receiver_that_answers_407_is_a_receiver() -> None:
    async with reached(Wire(b"HTTP/1.1 407 -\r\ncontent-length: 0\r\n\r\n")) as (client, url):
        assert (await post(client, url)).status == 407


# Our own faults


@pytest.mark.parametrize(
    "number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.ENETDOWN]
)
async def test_what_this_machine_lacks_is_no_attempt(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def create_connection(*_: object) -> None:
        raise OSError(number, "it says")

    wire = Wire(TAKEN)
    async with reached(wire) as (client, url):
        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", create_connection)
        with pytest.raises(OwnFaultError):
            await post(client, url)

    assert wire.connections == []


async def test_a_machine_without_ipv6_is_no_fault_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a job for a receiver that has nothing else would be put off for ever."""

    async def create_connection(*_: object) -> None:
        raise OSError(errno.EADDRNOTAVAIL, "it says")

    async with make_client() as client:
        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", create_connection)
        assert (await failure(client, "http://[::1]:1/")).kind is AttemptKind.CONNECT


NEAR = ((socket.AF_INET, "127.0.0.1"),)
HAD_ONE_AND_LOST_IT = pytest.param(NEAR, (), OwnFaultError, id="lost")
HAS_ONE = pytest.param(NEAR, NEAR, NoAnswerError, id="there")
NEVER_HAD_ONE = pytest.param((), (), NoAnswerError, id="never there")
HAS_ONE_NOW = pytest.param((), NEAR, NoAnswerError, id="there now")
Routes = tuple[tuple[socket.AddressFamily, str], ...]


@pytest.mark.parametrize("host", ["192.0.2.1", "[2001:db8::1]", "unknown.test", "near.test"])
@pytest.mark.parametrize(("before", "now", "outcome"), [HAD_ONE_AND_LOST_IT, HAS_ONE, NEVER_HAD_ONE, HAS_ONE_NOW])
async def test_only_a_machine_that_has_lost_its_network_makes_no_attempt(
    before: Routes, now: Routes, outcome: type[Exception], host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receiver that this machine never had a route to, as one with IPv6 only, would be put off for ever."""

    async def create_connection(*_: object) -> None:
        raise OSError(errno.ENETUNREACH, "it says")

    async def resolve(name: str) -> list[str]:
        if name == "unknown.test":
            raise OSError("it says")
        return ["192.0.2.1", "2001:db8::1"]

    monkeypatch.setattr(default_route, "FAR_AWAY", before)
    async with WebhookClient(timeout=TIMEOUT, max_connections=1, address_guard=ANYWHERE, resolve=resolve) as client:
        monkeypatch.setattr(default_route, "FAR_AWAY", now)
        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", create_connection)
        with pytest.raises(outcome):
            await post(client, f"http://{host}/")


async def test_a_network_that_came_after_the_start_can_be_lost_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(_: str) -> list[str]:
        raise OSError("it says")

    monkeypatch.setattr(default_route, "FAR_AWAY", ())
    async with (
        reached(Wire(TAKEN)) as (_, url),
        WebhookClient(timeout=TIMEOUT, max_connections=1, address_guard=ANYWHERE, resolve=resolve) as client,
    ):
        monkeypatch.setattr(default_route, "FAR_AWAY", NEAR)
        assert (await post(client, url)).taken
        monkeypatch.setattr(default_route, "FAR_AWAY", ())
        with pytest.raises(OwnFaultError):
            await post(client, "http://unknown.test/")


async def test_what_is_near_is_refused_by_itself_on_a_machine_that_has_lost_its_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setattr(default_route, "FAR_AWAY", NEAR)
    async with make_client() as client:
        monkeypatch.setattr(default_route, "FAR_AWAY", ())
        assert (await failure(client, f"http://127.0.0.1:{port}/")).kind is AttemptKind.CONNECT


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "unknown.test"])
async def test_a_process_without_a_descriptor_left_makes_no_attempt(host: str) -> None:
    wire = Wire(TAKEN)
    async with reached(wire) as (client, url):
        url = url.replace("127.0.0.1", host)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket() as next_one:
            lowest = next_one.fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
        try:
            with pytest.raises(OwnFaultError):
                await post(client, url)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        if host == "127.0.0.1":
            assert (await post(client, url)).taken


async def test_a_process_without_a_place_left_makes_no_attempt() -> None:
    async with (
        scripted(silence) as url,
        WebhookClient(timeout=TIMEOUT, max_connections=1, address_guard=ANYWHERE) as client,
    ):
        waiting = asyncio.create_task(client.post(url, b"", {}))
        await asyncio.sleep(0)
        with pytest.raises(OwnFaultError):
            await client.post(url, b"", {}, timeout=0.1)
        waiting.cancel()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
async def test_a_receiver_that_resets_before_tls_begins_is_told_and_leaves_no_trace(
    run: Callable[[Coroutine[None, None, AttemptKind]], AttemptKind],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    start_tls, connected = Stream.start_tls, threading.Event()

    async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not connected.is_set():
            await asyncio.sleep(0.01)
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    async def once_it_has_hung_up(stream: Stream, context: ssl.SSLContext, name: str) -> None:
        connected.set()
        while not stream._ended:
            await asyncio.sleep(0.01)
        await start_tls(stream, context, name)

    async def call() -> AttemptKind:
        async with make_client() as client:
            return (await failure(client, url.replace("http:", "https:"))).kind

    monkeypatch.setattr(Stream, "start_tls", once_it_has_hung_up)
    async with scripted(reset) as url:
        kind = await asyncio.to_thread(lambda: run(call()))

    assert kind is AttemptKind.TLS
    assert [record for record in caplog.records if record.name == "asyncio"] == []
    assert capfd.readouterr().err == ""

"""HTTP/1.1 as the API speaks it: one request, one answer, whatever the request's headers say.

uvicorn reads requests with h11, which reads a body by its framing alone. Its faster parser, httptools, ends a request
at its head when the request has an `Upgrade` header, and takes the body for the next request (decision 0017).
"""

import asyncio
import re
from collections.abc import Iterable
from typing import Any, cast
from urllib.parse import unquote

import h11
import msgspec
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPReceiveMessage, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from api.errors import ErrorBody, refuse
from api.observed_requests import HEADER, new_request_id
from timemachine import (
    h11_patterns,  # noqa: F401 - replaced where h11 reads
    metrics,
)
from timemachine.domain.errors import MalformedError

Headers = Iterable[tuple[bytes, bytes]]

_NO_METHOD = "NONE"
"""A method that no path takes."""

_ABSOLUTE = re.compile(rb"https?://[^/]*/?", re.IGNORECASE)

PIECE = 8 * 1024
"""Bytes of a connection that are read before others have their turn: of chunks of one byte, some 10 ms."""


READ_LIMIT = 30.0
"""Seconds for which a client may leave what it was sent unread, once no more of it is taken for it."""


class JsonErrorProtocol(H11Protocol):
    """Answers what is no HTTP in the API's own form, and closes the connection. Keeps no other connection waiting.

    It also closes that of a client which does not read its answer: nothing else would end a request that sends much.
    """

    _abort: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what uvicorn gives."""
        super().__init__(*args, **kwargs)
        self._unread = bytearray()

    def data_received(self, data: bytes) -> None:
        """Read what has come, piece by piece."""
        is_first = not self._unread
        self._unread += data
        del data  # an error's traceback would keep it, and itself, until garbage is collected
        if is_first:
            self._read_piece()

    def _read_piece(self) -> None:
        if not self.transport.is_closing():
            piece = bytes(self._unread[:PIECE])
            del self._unread[:PIECE]
            super().data_received(piece)
        if self.transport.is_closing():
            self._unread.clear()
        elif self._unread:
            self.transport.pause_reading()
            self.loop.call_soon(self._read_piece)
        elif not self.flow.read_paused:
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        """Give the client some time to read."""
        super().pause_writing()
        self._abort = self.loop.call_later(READ_LIMIT, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: the client reads."""
        self._stop_waiting()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _stop_waiting(self) -> None:
        if self._abort:
            self._abort.cancel()

    def send_400_response(self, msg: str) -> None:
        """Answer 400 with E001 in place of plain text. Where an answer is half sent, only the connection can tell."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # what the application still answers goes nowhere
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        metrics.REFUSED.add("E001")
        body = msgspec.json.encode(ErrorBody(msg.rstrip(".").lower(), "E001"))
        head = h11.Response(
            status_code=400,
            headers=[
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                (b"connection", b"close"),
                (HEADER, new_request_id().encode()),
            ],
            reason=b"Bad Request",
        )
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class UnambiguousRequests:
    """Lets pass only requests that everybody between the client and us reads in the same way.

    A request that a proxy could read differently is answered 400, and its connection closed, so that no byte after its
    head is ever taken for another request.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Take the application behind."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        _strip_authority(scope)
        if reason := ambiguity(scope["http_version"], scope["raw_path"], scope["headers"]):
            await refuse(MalformedError(reason), scope, receive, _closing(send))
        else:
            if any(name == b"expect" for name, _ in scope["headers"]):
                receive, send = _closed_unless_read(receive, send)
            await self._app(scope, receive, send)


class HeadAndOptions:
    """Answers HEAD and OPTIONS as HTTP wants them (RFC 9110, 9.3), for whatever methods the application has."""

    def __init__(self, app: ASGIApp) -> None:
        """Take the application behind, which answers 405 to a method that a path does not take, with `allow`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer HEAD as GET but for the body, and OPTIONS with the methods that the path takes."""
        if scope["type"] == ScopeType.HTTP:
            if scope["method"] == "HEAD":
                scope, send = _with_method(scope, "GET"), _without_body(send)
            elif scope["method"] == "OPTIONS":
                # The framework's own answer has the methods of one of the path's handlers only.
                scope, send = _with_method(scope, _NO_METHOD), _as_options(send)
            send = _naming_all_methods(send)
        await self._app(scope, receive, send)


def ambiguity(http_version: str, path: bytes, headers: Headers) -> str | None:
    """Return why a request's path or the length of its body could be read in two ways (RFC 9112, 3.2 and 6.1)."""
    if path != b"*" and not path.startswith(b"/"):
        return "the path must begin with a slash"
    names = {name for name, _ in headers}
    if b"transfer-encoding" not in names:
        return None
    if b"content-length" in names:
        return "content-length and transfer-encoding exclude each other"
    if http_version == "1.0":
        return "HTTP/1.0 has no transfer-encoding"
    return None


def declares_body(headers: Headers) -> bool:
    """Return whether a request says that it has a body."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0") != b"")
        for name, value in headers
    )


def _with_method(scope: Scope, method: str) -> Scope:
    return cast("Scope", {**scope, "method": method})


def _naming_all_methods(send: Send) -> Send:
    """Add to the `allow` of a 405 what is answered here."""

    async def send_all_methods(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 405:
            message["headers"] = [
                (name, _all_methods(value) if name == b"allow" else value) for name, value in message["headers"]
            ]
        await send(message)

    return send_all_methods


def _all_methods(allow: bytes) -> bytes:
    methods = {*allow.split(b", "), b"OPTIONS"}
    return b", ".join(sorted(methods | {b"HEAD"} if b"GET" in methods else methods))


def _without_body(send: Send) -> Send:
    """Send an answer's head, which tells the length of the body all the same."""

    async def send_head(message: Message) -> None:
        if message["type"] == "http.response.body":
            message["body"] = b""
        await send(message)

    return send_head


def _as_options(send: Send) -> Send:
    """Turn the answer that a path does not take a method into one that tells which it takes."""
    answers_options = False

    async def send_options(message: Message) -> None:
        nonlocal answers_options
        if message["type"] == "http.response.start" and message["status"] == 405:
            answers_options = True
            message["status"] = 204
            message["headers"] = [(name, value) for name, value in message["headers"] if name == b"allow"]
        elif message["type"] == "http.response.body" and answers_options:
            message["body"] = b""
        await send(message)

    return send_options


def _strip_authority(scope: Scope) -> None:
    """Turn a request line with a whole URL, as for a proxy, into one with a path (RFC 9112, 3.2.2)."""
    if _ABSOLUTE.match(scope["raw_path"]):
        scope["raw_path"] = b"/" + _ABSOLUTE.sub(b"", scope["raw_path"], count=1)
        scope["path"] = unquote(scope["raw_path"].decode("ascii"))


def _closing(send: Send) -> Send:
    """Say in the answer that the connection is closed after it, which uvicorn then does."""

    async def send_and_close(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"connection", b"close")]
        await send(message)

    return send_and_close


def _closed_unless_read(receive: Receive, send: Send) -> tuple[Receive, Send]:
    """Close the connection after an answer that came before the client was asked for its body.

    It waits for `100 Continue`, and may send the body or leave it out: what follows could be read in two ways.
    """
    was_read = False

    async def noted() -> HTTPReceiveMessage:
        nonlocal was_read
        was_read = True
        return cast("HTTPReceiveMessage", await receive())

    async def closed_unless_read(message: Message) -> None:
        await (send if was_read else _closing(send))(message)

    return noted, closed_unless_read

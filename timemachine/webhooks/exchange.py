"""One request and its answer, as HTTP/1.1 has them. The only file that imports h11 for deliveries."""

import asyncio
import re
from collections.abc import Iterable

import h11
import msgspec

from timemachine import h11_patterns  # noqa: F401 - replaced where h11 reads
from timemachine.webhooks.network import Stream

MAX_HEAD_BYTES = 64 * 1024
"""Bytes up to the end of an answer's head, interim answers (1xx) included; what is longer is no answer."""

MAX_HEAD_LINES = 256
"""Lines of a head that are read below its first; of a longer one only that counts."""

MAX_INTERIM = 100
"""Interim answers that may come before the answer."""

MAX_LINE_ENDS = 4
"""Carriage returns and line feeds before an answer that are passed over."""

PARTS_AT_A_TIME = 64
"""Parts of a body that are read before others have their turn: each may be a single byte."""

_STATUS_LINE = re.compile(rb"HTTP/[0-9]\.[0-9] ([1-9][0-9]{2})(?=[ \r\n])")
_BEGIN = b"HTTP/"
_END_OF_HEAD = re.compile(rb"\n\r?\n")
_RETRY_AFTER = re.compile(rb"(?i)\nretry-after[ \t]*:((?:[^\r\n]|\r?\n[ \t])*)")
_SWITCHING_PROTOCOLS = 101
_WITHOUT_BODY = frozenset({*range(100, 200), 204, 304})
_DECLARES_BODY = re.compile(rb"(?i)\n(?:transfer-encoding|content-length(?![ \t]*:[ \t]*0+[ \t]*\r?\n))[ \t]*:")


class HungUpError(ConnectionError):
    """The connection broke before the first byte of an answer."""


class NoHttpError(Exception):
    """What came is no HTTP answer. The message repeats nothing of it, which may be what we have sent."""


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The head of an answer, and what is known of what comes with it."""

    status: int
    lines: bytes
    rest: bytes
    """What came after the head so far."""
    body_unread: bool
    """Whether this answer, or an interim one before it, declares a body though its status has none (RFC 9112, 6.3).

    Nobody reads such a body, and it may still come.
    """


class Exchange:
    """A request, and what has been read of its answer."""

    def __init__(self, method: str, target: str, headers: Iterable[tuple[bytes, bytes]], body: bytes = b"") -> None:
        """Put the request into HTTP.

        Raises:
            ValueError: It cannot be.
        """
        self._http = h11.Connection(h11.CLIENT)
        try:
            head = h11.Request(method=method, target=target, headers=list(headers))
            self.request = b"".join(self._http.send(part) or b"" for part in (head, h11.Data(body), h11.EndOfMessage()))
        except h11.LocalProtocolError as error:
            raise ValueError("the request cannot be put into HTTP") from error
        self.retry_afters: list[bytes] = []
        self.body = bytearray()
        self._end_unclear = False

    @property
    def complete(self) -> bool:
        """Whether the answer was read to its end and nothing came after it, so that another request may follow."""
        states, left = self._http.states.values(), self._http.trailing_data
        return set(states) == {h11.DONE} and left == (b"", False) and not self._end_unclear

    async def read_head(self, stream: Stream) -> int:
        """Read the answer's head and return its status. Its first line decides that, whatever stands below.

        Raises:
            HungUpError: Nothing came, and nothing will.
            OSError: The connection broke within the head.
            NoHttpError: It is no HTTP answer, or its head is too long.
        """
        head = await read_head(stream)
        # Not left to h11, which reads nothing of a head with anything odd in it.
        self.retry_afters = _RETRY_AFTER.findall(head.lines)
        if head.lines.count(b"\n") > MAX_HEAD_LINES:
            return head.status
        self._http.receive_data(head.lines + head.rest)
        try:
            answer = self._http.next_event()
        except h11.RemoteProtocolError:  # where the answer ends is not known then: it has no body and is not complete
            return head.status
        if isinstance(answer, h11.Response):
            framed_twice = {b"content-length", b"transfer-encoding"} <= dict(answer.headers).keys()
            self._end_unclear = framed_twice or head.body_unread
        return head.status

    async def read_body(self, stream: Stream, most: int) -> None:
        """Read the answer's body into `body`, until it ends or there is more than `most` bytes of it.

        Raises:
            OSError: The connection broke. What was read before stays.
        """
        received = turns = 0
        while self._http.their_state is h11.SEND_BODY and max(received, len(self.body)) <= most:
            try:
                part = self._http.next_event()
            except h11.RemoteProtocolError:
                return
            if isinstance(part, h11.Data):
                self.body += part.data
            elif part is h11.NEED_DATA:
                data = await stream.read()
                received += len(data)
                self._http.receive_data(data)
            turns += 1
            if turns % PARTS_AT_A_TIME == 0:
                await asyncio.sleep(0)


async def read_head(stream: Stream) -> Head:
    """Return an answer's head, and what came after that. Interim answers are passed over.

    Raises:
        HungUpError: Nothing came, and nothing will.
        OSError: The connection broke within the head.
        NoHttpError: It is no HTTP answer, or its head is too long.
    """
    came = bytearray(await _first_bytes(stream))
    allowed, body_unread = MAX_HEAD_BYTES, False
    for _ in range(MAX_INTERIM + 1):
        status, end = await _next_head(stream, came, allowed)
        lines = bytes(came[:end])
        body_unread = body_unread or (status in _WITHOUT_BODY and bool(_DECLARES_BODY.search(lines)))
        if status >= 200 or status == _SWITCHING_PROTOCOLS:
            return Head(status=status, lines=lines, rest=bytes(came[end:]), body_unread=body_unread)
        del came[:end]
        allowed -= end
    raise NoHttpError("too many interim answers")


async def _first_bytes(stream: Stream) -> bytes:
    """Return what comes first, without a line end or two too many of the answer before."""
    passed = 0
    while True:
        try:
            read = await stream.read()
        except OSError as error:
            raise HungUpError(str(error)) from error
        if not read:
            raise HungUpError("hung up")
        came = read.lstrip(b"\r\n")
        passed += len(read) - len(came)
        if passed > MAX_LINE_ENDS:
            raise NoHttpError("it begins with empty lines")
        if came:
            return came


async def _next_head(stream: Stream, came: bytearray, allowed: int) -> tuple[int, int]:
    """Read on until `came` begins with a whole head, and return its status and length."""
    searched = 0
    while not (end := _END_OF_HEAD.search(came, searched)):
        if not came.startswith(_BEGIN[: len(came)]) or len(came) > allowed:
            break
        searched = max(len(came) - 2, 0)
        if not (more := await stream.read()):
            raise ConnectionResetError("hung up within the head")
        came += more
    line = _STATUS_LINE.match(came)
    if not line:
        raise NoHttpError("it does not begin with a status line of HTTP/1")
    if not end or end.end() > allowed:
        raise NoHttpError("its head is too long")
    return int(line[1]), end.end()

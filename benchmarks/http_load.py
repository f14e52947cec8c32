"""An HTTP client that costs next to nothing, so that the load does not take from what is measured."""

import asyncio
import re
import time
from urllib.parse import urlsplit

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)

_KEPT = 60.0
"""Seconds that an idle connection is used again; the API closes one after 75."""

_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class HttpLoad:
    """Kept connections to one server; as many as there are requests in flight."""

    def __init__(self, url: str, *, key: str | None = None) -> None:
        """Name the server, as `http://host:port`, and the key that it wants, if it does."""
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port
        self._authorization = f"authorization: Bearer {key}\r\n" if key else ""
        self._idle: list[tuple[_Connection, float]] = []

    async def send(self, method: str, path: str, body: bytes = b"") -> int:
        """Send a request and return the answer's status; its body is read and dropped.

        Raises:
            OSError, asyncio.IncompleteReadError: There was no answer.
        """
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: load\r\n{self._authorization}"
            f"content-type: application/json\r\ncontent-length: {len(body)}"
        )
        connection = await self._connection()
        try:
            status = await _exchange(connection, head.encode() + b"\r\n\r\n" + body)
        except BaseException:
            connection[1].close()
            raise
        self._idle.append((connection, time.monotonic()))
        return status

    async def send_once(self, path: str, body: bytes, *, content_type: str) -> bytes:
        """POST a body on a connection of its own, and return the whole answer, whose end is the connection's.

        Raises:
            OSError: There was no answer.
        """
        head = (
            f"POST {path} HTTP/1.1\r\nhost: load\r\n{self._authorization}"
            f"connection: close\r\ncontent-type: {content_type}\r\n"
        )
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            return await reader.read()
        finally:
            writer.close()

    async def _connection(self) -> _Connection:
        while self._idle:
            (reader, writer), since = self._idle.pop()
            if not reader.at_eof() and time.monotonic() - since < _KEPT:
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self._host, self._port)

    def close(self) -> None:
        """Close the connections, which must be idle."""
        for (_, writer), _ in self._idle:
            writer.close()


async def _exchange(connection: _Connection, request: bytes) -> int:
    reader, writer = connection
    writer.write(request)
    answer = await reader.readuntil(b"\r\n\r\n")
    if length := _LENGTH.search(answer):
        await reader.readexactly(int(length[1]))
    return int(answer[9:12])

"""The API as a process of its own, spoken to over a socket, byte for byte."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

JSON = b"content-type: application/json\r\n"


class Server:
    """A running API."""

    def __init__(self, port: int, log: Path) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.log = log

    async def exchange(self, request: bytes, *, end: bool = False) -> bytes:
        """Send bytes, and return all that comes until the answer is whole or the server closes.

        Args:
            end: Close our side of the connection after the bytes, as a client that dies does.
        """
        async with asyncio.timeout(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                writer.write(request)
                if end:
                    writer.write_eof()
                return await _read_answer(reader, head_only=request.startswith(b"HEAD "))
            finally:
                writer.close()

    async def send(self, request: bytes, *, end: bool = False) -> httpx.Response:
        """Send bytes, and return the answer."""
        return parse(await self.exchange(request, end=end))

    async def request(self, method: str, path: str, body: bytes | None = None, headers: bytes = JSON) -> httpx.Response:
        """Send a request whose path goes out exactly as it is given."""
        length = b"" if body is None else headers + b"content-length: %d\r\n" % len(body)
        return await self.send(f"{method} {path} HTTP/1.1\r\nhost: x\r\n".encode() + length + b"\r\n" + (body or b""))

    def faults(self, since: int = 0) -> str:
        """Return what the log holds of tracebacks and errors after a position."""
        with self.log.open("rb") as log:
            log.seek(since)
            lines = log.read().decode().splitlines()
        return "\n".join(line for line in lines if "Traceback" in line or '"level":"error"' in line)

    @contextmanager
    def faultless(self) -> Iterator[None]:
        """Demand that nothing inside makes the server log a traceback or an error."""
        since = self.log.stat().st_size
        yield
        assert self.faults(since) == ""


async def _read_answer(reader: asyncio.StreamReader, *, head_only: bool) -> bytes:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        return error.partial
    length = 0 if head_only else int(parse(head).headers.get("content-length", 0))
    return head + await reader.readexactly(length)


def parse(answer: bytes) -> httpx.Response:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
    return httpx.Response(int(status.split()[1]), headers=headers, content=body)

"""A receiver of webhooks over a real socket, whose answers a test decides."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec

from tests.support.http_connections import listening
from tests.support.waiting import LIMIT


class Received(msgspec.Struct, frozen=True, kw_only=True):
    """One request that arrived."""

    at_ms: int
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def job_id(self) -> str:
        return self.headers["timemachine-job-id"]

    @property
    def late_ms(self) -> int:
        return self.at_ms - int(self.headers["timemachine-trigger-time"])


Answer = Callable[[Received], Awaitable[bytes]]


def response(status: int, body: bytes = b"", headers: str = "") -> bytes:
    """Return a whole HTTP response."""
    return f"HTTP/1.1 {status} -\r\ncontent-length: {len(body)}\r\n{headers}\r\n".encode() + body


async def take(_: Received) -> bytes:
    return response(200)


class Receiver:
    """Keeps every request; answers each as `answer` says, 200 at first. Never answers when `answer` never returns.

    Jobs of earlier tests, and of those beside, are still retried on ports where nobody listens any more, and which the
    system gives away again. They find nobody here either.
    """

    def __init__(self, db: str = "") -> None:
        self.db = db
        """What the names of the dbs begin with that it listens to."""
        self.port = 0
        self.answer: Answer = take
        self.received: list[Received] = []
        self._arrived = asyncio.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def of(self, job_id: str) -> list[Received]:
        """Return the requests of one job."""
        return [received for received in self.received if received.job_id == job_id]

    async def wait_for(self, job_id: str, count: int = 1, *, limit: float = LIMIT) -> list[Received]:
        """Return the requests of a job once there are `count` of them."""
        async with asyncio.timeout(limit), self._arrived:
            await self._arrived.wait_for(lambda: len(self.of(job_id)) >= count)
        return self.of(job_id)

    async def wait_until(self, condition: Callable[[], bool], *, limit: float = LIMIT) -> None:
        """Return once a condition on what was received holds."""
        async with asyncio.timeout(limit), self._arrived:
            await self._arrived.wait_for(condition)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received = await read_request(reader)
        if not received.headers.get("timemachine-db", self.db).startswith(self.db):
            raise ConnectionResetError
        async with self._arrived:
            self.received.append(received)
            self._arrived.notify_all()
        writer.write(await self.answer(received))
        await writer.drain()


async def read_request(reader: asyncio.StreamReader) -> Received:
    """Return the next request of a connection.

    Raises:
        IncompleteReadError: The sender ended it before or within a request.
    """
    request, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
    return Received(
        at_ms=int(time.time() * 1000),
        path=request.split()[1],
        headers=headers,
        body=await reader.readexactly(int(headers.get("content-length", 0))),
    )


@asynccontextmanager
async def receiving(db: str = "") -> AsyncIterator[Receiver]:
    """Listen on a free loopback port."""
    receiver = Receiver(db)
    async with listening(receiver._exchange) as receiver.port:
        yield receiver

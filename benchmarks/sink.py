"""A receiver that costs next to nothing: it notes when each job arrived, and answers."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_JOB = re.compile(rb"\r\ntimemachine-job-id: *([^\r]+)", re.IGNORECASE)
_DUE = re.compile(rb"\r\ntimemachine-trigger-time: *(\d+)", re.IGNORECASE)

_TAKEN = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
_REFUSED = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n"


class Sink:
    """Keeps, of each job, how late its first request came and when the one came that was taken."""

    def __init__(self) -> None:
        """Take everything at once; a scenario may want otherwise."""
        self.port = 0
        self.answer_after = 0.0
        """Seconds that an answer takes."""
        self.refusals = 0
        """Requests of each job that are answered with a 500 before one is taken."""
        self.clear()

    def clear(self) -> None:
        """Forget what came."""
        self.late_ms: dict[str, float] = {}
        self.requests: dict[str, int] = {}
        self.taken: dict[str, float] = {}
        self._waiting: dict[str, asyncio.Event] = {}
        self._enough = asyncio.Event()
        self._wanted = 0

    @property
    def url(self) -> str:
        """Where webhooks are sent."""
        return f"http://127.0.0.1:{self.port}/hook"

    async def wait_for(self, job_id: str) -> None:
        """Return once a job was taken."""
        if job_id not in self.taken:
            await self._waiting.setdefault(job_id, asyncio.Event()).wait()

    async def wait_for_count(self, count: int) -> None:
        """Return once this many jobs were taken."""
        self._wanted = count
        if len(self.taken) < count:
            await self._enough.wait()

    def note(self, job_id: str, due_ms: int) -> bool:
        """Note a request, and return whether its job is taken by it."""
        now = time.time()
        self.late_ms.setdefault(job_id, now * 1000 - due_ms)
        self.requests[job_id] = self.requests.get(job_id, 0) + 1
        if self.requests[job_id] <= self.refusals:
            return False
        self.taken.setdefault(job_id, now)
        if waiting := self._waiting.pop(job_id, None):
            waiting.set()
        if self._wanted and len(self.taken) >= self._wanted:
            self._enough.set()
        return True


class _Connection(asyncio.Protocol):
    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._read += data
        while (end := self._read.find(b"\r\n\r\n")) >= 0:
            head = self._read[:end]
            length = _LENGTH.search(head)
            size = end + 4 + (int(length[1]) if length else 0)
            if len(self._read) < size:
                return
            self._read = self._read[size:]
            self._answer(head)

    def _answer(self, head: bytes) -> None:
        job, due = _JOB.search(head), _DUE.search(head)
        if job is None or due is None:
            self._transport.close()
            return
        answer = _TAKEN if self._sink.note(job[1].decode(), int(due[1])) else _REFUSED
        if self._sink.answer_after:
            asyncio.get_running_loop().call_later(self._sink.answer_after, self._transport.write, answer)
        else:
            self._transport.write(answer)


@asynccontextmanager
async def receiving() -> AsyncIterator[Sink]:
    """Listen on a free loopback port."""
    sink = Sink()
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(sink), "127.0.0.1", 0)
    sink.port = server.sockets[0].getsockname()[1]
    try:
        yield sink
    finally:
        server.close()

"""A receiver that remembers everything, and answers each job as its scenario says."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import msgspec

from tests.support.receiver import Received, read_request, response


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """How a request is answered: so many seconds after it came."""

    status: int = 200
    delay: float = 0.0
    headers: str = ""


class Arrival(msgspec.Struct, kw_only=True):
    """One request that arrived. Times are in milliseconds since the epoch."""

    job: str
    """`db/collection/id`."""
    webhook_id: str
    attempt: int
    trigger_time: int
    version: int
    """Of the job, from its meta."""
    port: int
    """The sender's, which tells whose request it was."""
    arrived_ms: int
    answered_ms: int | None = None
    status: int | None = None
    heard: bool = False
    """Whether the sender was there still when it was answered."""

    @property
    def taken(self) -> bool:
        """Whether somebody heard that the receiver took the job."""
        return self.heard and self.status is not None and 200 <= self.status < 300


class Numbered(msgspec.Struct):
    """What the scenarios' jobs carry as meta."""

    v: int
    pad: str = ""


class Hook:
    """Keeps every request by its job."""

    def __init__(self) -> None:
        self.port = 0
        self.arrivals: defaultdict[str, list[Arrival]] = defaultdict(list)
        self.answer: Callable[[Arrival, str], Answer] = _by_path
        """Chooses the answer to a request, from the request and its path."""
        self._connections: set[asyncio.Task[None]] = set()

    def url(self, *, delay: float = 0.0) -> str:
        """Return where a request is answered after some seconds."""
        return f"http://127.0.0.1:{self.port}/{delay}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                received = await read_request(reader)
                arrival = _noted(received, writer.get_extra_info("peername")[1])
                self.arrivals[arrival.job].append(arrival)
                await _answer(self.answer(arrival, received.path), arrival, reader, writer)
        writer.close()

    async def _hang_up(self) -> None:
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _by_path(_: Arrival, path: str) -> Answer:
    return Answer(delay=float(path.removeprefix("/")))


def _noted(received: Received, port: int) -> Arrival:
    headers = received.headers
    return Arrival(
        job="/".join(headers[f"timemachine-{part}"] for part in ("db", "collection", "job-id")),
        webhook_id=headers["webhook-id"],
        attempt=int(headers["timemachine-attempt"]),
        trigger_time=int(headers["timemachine-trigger-time"]),
        version=msgspec.json.decode(received.body, type=Numbered).v,
        port=port,
        arrived_ms=received.at_ms,
    )


async def _answer(answer: Answer, arrival: Arrival, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(answer.delay)
    # Nothing follows a request before its answer, so that an end of what comes is the end of the sender.
    arrival.heard = not (reader.at_eof() or reader.exception() or writer.is_closing())
    arrival.status, arrival.answered_ms = answer.status, int(time.time() * 1000)
    writer.write(response(answer.status, headers=answer.headers))
    await writer.drain()


@asynccontextmanager
async def hooked() -> AsyncIterator[Hook]:
    """Listen on a free loopback port."""
    hook = Hook()
    server = await asyncio.start_server(hook._serve, "127.0.0.1", 0, limit=2**20, backlog=1000)
    hook.port = server.sockets[0].getsockname()[1]
    try:
        yield hook
    finally:
        server.close()
        await hook._hang_up()

"""A receiver that remembers everything, and answers each job as its scenario says."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec

from tests.support.http_connections import listening
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

    def url(self, *, delay: float = 0.0) -> str:
        """Return where a request is answered after some seconds."""
        return f"http://127.0.0.1:{self.port}/{delay}"

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received = await read_request(reader)
        arrival = _noted(received, writer.get_extra_info("peername")[1])
        self.arrivals[arrival.job].append(arrival)
        await _answer(self.answer(arrival, received.path), arrival, reader, writer)


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
    async with listening(hook._exchange, limit=2**20, backlog=1000) as hook.port:
        yield hook

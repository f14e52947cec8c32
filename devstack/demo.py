"""`make demo`: one job, from the request that creates it to the webhook that it calls."""

import asyncio
import http.client
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from devstack.children import Commands
from devstack.ports import LOOPBACK
from devstack.stack import Stack, local_stack
from devstack.terminal import say
from timemachine.domain.errors import LocalStackError
from timemachine.settings import Settings

# Digits, order and escapes that a parser in between would not keep.
META = rb'{"note": "as it was written", "n": 12345678901234567890.10, "b":1,"a":"\u00e9"}'

_AHEAD_MS = 3_000
_ARRIVAL_LIMIT = 30.0
_REPEAT_WATCH = 2.0


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """A request that the receiver got, and when, in milliseconds since the epoch."""

    at: int
    head: str
    body: bytes


class State(msgspec.Struct):
    """Of a job that was read, what the demonstration checks."""

    state: str


async def demonstrate(settings: Settings, env: Mapping[str, str]) -> None:
    """Run the stack on free ports and a temporary folder, and see one job through.

    Raises:
        LocalStackError: The stack did not start, or the job did not go as promised; the message says what.
    """
    with tempfile.TemporaryDirectory(prefix="timemachine-demo-", ignore_cleanup_errors=True) as folder:
        own = Settings(
            data_dir=folder, http_port=0, temporal_port=0, temporal_ui_port=0, temporal_cli=settings.temporal_cli
        )
        # Neither a Postgres nor a Temporal of yours: the demonstration leaves nothing behind.
        plain = {name: value for name, value in env.items() if not name.startswith(("TIMEMACHINE_", "TEMPORAL_"))}
        quiet = Commands(logs=Path(folder) / "logs")
        async with local_stack(own, plain, commands=quiet) as stack, _receiver() as (webhook_url, arrivals):
            await _see_through(stack, webhook_url, arrivals)


async def _see_through(stack: Stack, webhook_url: str, arrivals: asyncio.Queue[Arrival]) -> None:
    trigger_time = await _create(stack, webhook_url)
    _check(await _state(stack) == "scheduled", "the job is not scheduled")
    try:
        arrival = await asyncio.wait_for(arrivals.get(), _ARRIVAL_LIMIT)
    except TimeoutError as error:
        raise LocalStackError(f"demo: nothing arrived within {_ARRIVAL_LIMIT:g} s") from error
    _show(arrival, trigger_time)
    after = await _last_state(stack)
    _check(arrival.at >= trigger_time, f"it came {trigger_time - arrival.at} ms early")
    _check(arrival.body == META, f"meta was changed on its way: sent {META!r}, got {arrival.body!r}")
    _check(after == "delivered", f"the job is {after}, not delivered")
    await asyncio.sleep(_REPEAT_WATCH)
    _check(arrivals.empty(), "it arrived more than once")
    say("\ndemo: the job arrived once, on time, byte for byte")


async def _create(stack: Stack, webhook_url: str) -> int:
    """Create the route and the job, and return the job's trigger time."""
    route = {"id": "receiver", "type": "REST", "webhook_url": webhook_url}
    await _call(stack, "POST", "/route/demo", msgspec.json.encode(route))
    trigger_time = _now() + _AHEAD_MS
    job = {"id": "first", "trigger_time": trigger_time, "meta": msgspec.Raw(META), "route": "receiver"}
    say(f"\n{_clock(_now())}  a job for {_clock(trigger_time)}:")
    await _call(stack, "POST", "/job/demo/jobs", msgspec.json.encode(job))
    return trigger_time


async def _state(stack: Stack) -> str:
    job = await _call(stack, "GET", "/job/demo/jobs/first")
    return msgspec.json.decode(job, type=State).state


async def _last_state(stack: Stack) -> str:
    """Return the state that the job comes to: the receiver has the request before Temporal has its outcome."""
    deadline = time.monotonic() + 10
    while True:
        answer = await asyncio.to_thread(_exchange, stack.api_url, "GET", "/job/demo/jobs/first", b"")
        state = msgspec.json.decode(answer[1], type=State).state
        if state not in {"scheduled", "delivering"} or time.monotonic() > deadline:
            say(f"\n{_clock(_now())}  the job now:\n    {answer[1].decode()}")
            return state
        await asyncio.sleep(0.05)


async def _call(stack: Stack, method: str, path: str, body: bytes = b"") -> bytes:
    """Call the API, show request and answer, and return the answer's body."""
    status, answer = await asyncio.to_thread(_exchange, stack.api_url, method, path, body)
    say(f"    {method} {path} {body.decode()}\n    {status} {answer.decode()}")
    _check(status == http.HTTPStatus.OK, f"{method} {path} was answered {status}")
    return answer


def _exchange(url: str, method: str, path: str, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    try:
        connection.request(method, path, body or None, {"content-type": "application/json"} if body else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise LocalStackError(f"demo: {method} {path}: {error}") from error
    finally:
        connection.close()


@asynccontextmanager
async def _receiver() -> AsyncIterator[tuple[str, asyncio.Queue[Arrival]]]:
    """Listen for webhooks, answer each 200, and give out the address and what arrives."""
    arrivals: asyncio.Queue[Arrival] = asyncio.Queue()

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip()
        at = _now()
        body = await reader.readexactly(_content_length(head))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()
        arrivals.put_nowait(Arrival(at=at, head=head, body=body))

    async with await asyncio.start_server(receive, LOOPBACK) as server:
        yield f"http://{LOOPBACK}:{server.sockets[0].getsockname()[1]}/hook", arrivals


def _content_length(head: str) -> int:
    lengths = [line.partition(":")[2] for line in head.splitlines() if line.lower().startswith("content-length:")]
    return int(lengths[0]) if lengths else 0


def _show(arrival: Arrival, trigger_time: int) -> None:
    lines = [*arrival.head.splitlines(), "", arrival.body.decode(errors="replace")]
    say(f"\n{_clock(arrival.at)}  the receiver gets, {arrival.at - trigger_time} ms late:")
    say("\n".join(f"    {line}" for line in lines))


def _check(held: bool, otherwise: str) -> None:
    if not held:
        raise LocalStackError(f"demo: {otherwise}")


def _now() -> int:
    return time.time_ns() // 1_000_000


def _clock(milliseconds: int) -> str:
    return f"{time.strftime('%H:%M:%S', time.localtime(milliseconds // 1000))}.{milliseconds % 1000:03}"

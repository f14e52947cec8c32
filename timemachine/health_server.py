"""`/livez` and `/readyz` of a program that serves no HTTP otherwise."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from http import HTTPStatus

from timemachine.domain.errors import SettingsError, UnavailableError

log = logging.getLogger(__name__)

MAX_HEAD = 8 * 1024
"""Bytes of a request that are read."""

READ_LIMIT = 5.0
"""Seconds within which a request has to be there."""

CheckReady = Callable[[], Awaitable[None]]
"""Raises UnavailableError while the program cannot work."""


@asynccontextmanager
async def serving_health(address: str | None, check_ready: CheckReady) -> AsyncIterator[None]:
    """Answer 200 to `/livez`, and to `/readyz` 200 or 503, at an `address:port`; without one nothing is served.

    Raises:
        SettingsError: The address is none of this machine's, or taken.
    """
    if not address:
        yield
        return
    host, _, port = address.rpartition(":")
    try:
        server = await asyncio.start_server(partial(_serve, check_ready), host.strip("[]"), int(port), limit=MAX_HEAD)
    except OSError as error:
        raise SettingsError(f"TIMEMACHINE_HEALTH_ADDRESS: {error}") from error
    try:
        yield
    finally:
        server.close()


async def _serve(check_ready: CheckReady, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request, and close the connection. What is no request gets no answer."""
    with suppress(OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
        async with asyncio.timeout(READ_LIMIT):
            head = await reader.readuntil(b"\r\n\r\n")
        status = await _status(head, check_ready)
        body = b'{"status":"%s"}' % (b"ok" if status is HTTPStatus.OK else status.phrase.lower().encode())
        writer.write(
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()
            + body
        )
        async with asyncio.timeout(READ_LIMIT):
            await writer.drain()
    writer.close()


async def _status(head: bytes, check_ready: CheckReady) -> HTTPStatus:
    method, _, target = head.partition(b" ")
    match method, target.partition(b" ")[0].partition(b"?")[0]:
        case b"GET", b"/livez":
            return HTTPStatus.OK
        case b"GET", b"/readyz":
            try:
                await check_ready()
            except UnavailableError:
                return HTTPStatus.SERVICE_UNAVAILABLE
            except Exception:
                log.exception("not known whether this program is ready")
                return HTTPStatus.SERVICE_UNAVAILABLE
            return HTTPStatus.OK
    return HTTPStatus.NOT_FOUND

"""How connections to receivers are opened: a name is looked up once, every answer is checked, and an address is called.

Between the check and the call nothing is looked up again, so a name cannot stand for one address when it is checked and
for another when it is called. The name stays what TLS and the request say.
"""

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import ip_address
from itertools import chain, zip_longest
from typing import Any, cast

import httpcore

from timemachine.delivery import Kind
from timemachine.errors import BlockedTargetError, NoAnswerError
from timemachine.targets import Address, literal_address

CONNECT_TIME = 5.0
"""Seconds that one address may take to connect; with several, or little time, each gets its share of what is left."""

MOST_ADDRESSES = 4
"""Addresses of a name that are tried; all that it has are checked."""

MOST_LOOK_UPS = 256
"""Names that are looked up at a time."""

MOST_UNREAD = 256 * 1024
"""Bytes that a receiver may send ahead of what is read of them."""

Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""Looks a host name up and returns its addresses. Raises OSError when it has none."""


class SystemResolver:
    """Looks names up as the system does, in threads of its own.

    A name is looked up once at a time: however many deliveries wait for a name server that does not answer, they hold
    up one thread, and nobody else's.
    """

    def __init__(self) -> None:
        """Begin without a thread."""
        self._threads = ThreadPoolExecutor(MOST_LOOK_UPS, thread_name_prefix="resolve")
        self._running: dict[str, asyncio.Future[list[str]]] = {}

    async def __call__(self, host: str) -> list[str]:
        """Return the addresses of a host.

        Raises:
            OSError: It has none, or no name server says so.
        """
        if host not in self._running:
            looking = asyncio.get_running_loop().run_in_executor(self._threads, _look_up, host)
            self._running[host] = looking
            looking.add_done_callback(partial(self._done, host))
        return await asyncio.shield(self._running[host])

    def close(self) -> None:
        """Begin nothing more. A look-up under way ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _done(self, host: str, looked: asyncio.Future[list[str]]) -> None:
        del self._running[host]
        if not looked.cancelled():
            looked.exception()  # nobody may be left to hear of it


def _look_up(host: str) -> list[str]:
    found = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class Stream(asyncio.Protocol, httpcore.AsyncNetworkStream):
    """A connection, for httpcore.

    In place of the streams that httpcore brings: it is asked before each request whether a kept connection was closed
    by the receiver meanwhile, and knows it without a call to the system; and a request leaves in one piece.
    """

    def __init__(self) -> None:
        """Begin with nothing read; the loop connects it."""
        self._transport: asyncio.Transport
        self._unread = bytearray()
        self._ended = False
        self._error: Exception | None = None
        self._news = asyncio.Event()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - the interface
        """Return what has come, waiting for it; nothing at the end.

        Raises:
            httpcore.ReadError: The connection broke, and all that had come before was read.
        """
        while not self._unread and not self._ended:
            self._news.clear()
            async with asyncio.timeout(timeout):
                await self._news.wait()
        if self._error and not self._unread:
            raise httpcore.ReadError(str(self._error)) from self._error
        taken = bytes(self._unread[:max_bytes])
        del self._unread[:max_bytes]
        if not self._unread and not self._ended:
            self._transport.resume_reading()
        return taken

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the interface
        """Hand over what is to be sent, without waiting: it is no more than a request, which is in memory anyway.

        That it could not be sent shows when the answer is read, which a receiver may have sent before it hung up.
        """
        self._transport.write(buffer)

    async def aclose(self) -> None:
        """Close at once, whatever is still on its way."""
        self._transport.abort()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface of httpcore
    ) -> httpcore.AsyncNetworkStream:
        """Go on in TLS.

        Raises:
            httpcore.ConnectError: The receiver has the wrong certificate, or none, or hangs up.
            httpcore.ConnectTimeout: It does not answer in time.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                secured = await loop.start_tls(self._transport, self, ssl_context, server_hostname=server_hostname)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(str(error)) from error
        except OSError as error:  # an SSLError is one
            raise httpcore.ConnectError(str(error)) from error
        self._transport = cast("asyncio.Transport", secured)
        return self

    def get_extra_info(self, info: str) -> Any:
        """Return what httpcore asks for."""
        if info == "is_readable":
            return self._ended or bool(self._unread)
        return self._transport.get_extra_info(info)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the way to send by."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Keep what has come until it is read."""
        self._unread += data
        if len(self._unread) > MOST_UNREAD:
            self._transport.pause_reading()
        self._news.set()

    def eof_received(self) -> None:
        """Note that no more will come."""
        self._ended = True
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that no more will come, and why."""
        self._ended, self._error = True, exc
        self._news.set()


class Connector(httpcore.AsyncNetworkBackend):
    """Opens connections for the pool of httpcore, to addresses that may be called."""

    def __init__(self, resolve: Resolve, may_call: Callable[[Address], bool], *, peer: str = "the receiver") -> None:
        """Take the look-up and the check.

        Args:
            peer: What messages call the other side.
        """
        self._resolve = resolve
        self._may_call = may_call
        self._peer = peer
        self._opened: dict[asyncio.Task[object] | None, httpcore.AsyncNetworkStream] = {}

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface of httpcore
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Look the host up, check all that it stands for, and connect to the first that answers.

        Raises:
            BlockedTargetError: One of the addresses may not be called.
            NoAnswerError: There is none, or none that takes the connection.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (timeout or CONNECT_TIME)
        addresses = await self._checked(host)
        error: OSError | None = None
        for left in range(len(addresses), 0, -1):
            limit = min(CONNECT_TIME, max(deadline - loop.time(), 0) / (left + 1))
            try:
                async with asyncio.timeout(limit):
                    _, stream = await loop.create_connection(Stream, str(addresses[-left]), port)
            except OSError as failure:
                error = failure
            else:
                self._opened[asyncio.current_task()] = stream
                return stream
        raise self._unreachable(error)

    @asynccontextmanager
    async def none_left_behind(self) -> AsyncIterator[None]:
        """Close what this task has opened within, unless all goes well.

        httpcore itself does not when it is cancelled, by a limit on time too, in TLS or before the first request.
        """
        try:
            yield
        except BaseException:
            if stream := self._opened.pop(asyncio.current_task(), None):
                await stream.aclose()
            raise
        self._opened.pop(asyncio.current_task(), None)

    async def sleep(self, seconds: float) -> None:
        """Wait, as the interface of httpcore has it."""
        await asyncio.sleep(seconds)

    async def _checked(self, host: str) -> list[Address]:
        """Return the addresses to try. What cannot be read as an address is none: nothing unchecked is called."""
        try:
            literal = literal_address(host)
            found = [literal] if literal else [ip_address(answer) for answer in await self._resolve(host)]
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise NoAnswerError(f"the host name of {self._peer} is not found: {reason}", kind=Kind.DNS) from error
        if not found:
            raise NoAnswerError(f"the host name of {self._peer} has no address", kind=Kind.DNS)
        for address in found:
            if not self._may_call(address):
                raise BlockedTargetError(kind=Kind.BLOCKED, detail=f"{host} stands for {address}")
        return _taking_turns(found)[:MOST_ADDRESSES]

    def _unreachable(self, error: OSError | None) -> NoAnswerError:
        if isinstance(error, TimeoutError):
            return NoAnswerError(f"no connection to {self._peer} in time", kind=Kind.TIMEOUT)
        return NoAnswerError(f"no connection to {self._peer}: {_system_reason(error)}", kind=Kind.CONNECT)


def _taking_turns(addresses: list[Address]) -> list[Address]:
    """Return the addresses with IPv4 and IPv6 in turns, begun by the family that the look-up put first."""
    first = [address for address in addresses if address.version == addresses[0].version]
    second = [address for address in addresses if address.version != addresses[0].version]
    return [address for address in chain(*zip_longest(first, second)) if address]


def _system_reason(error: OSError | None) -> str:
    """Return the system's own words for a failure, without the address, which is nobody's business."""
    return os.strerror(error.errno).lower() if error and error.errno else "it failed"

"""How connections to receivers are opened: a name is looked up once, every answer is checked, and an address is called.

Between the check and the call nothing is looked up again, so a name cannot stand for one address when it is checked and
for another when it is called. The name stays what TLS and the request say.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import ip_address
from itertools import chain, zip_longest

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
        self._tcp = httpcore.AnyIOBackend()
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
        now = asyncio.get_running_loop().time
        deadline = now() + (timeout or CONNECT_TIME)
        addresses = await self._checked(host)
        error: Exception | None = None
        for left in range(len(addresses), 0, -1):
            address = str(addresses[-left])
            limit = min(CONNECT_TIME, max(deadline - now(), 0) / (left + 1))
            try:
                stream = await self._tcp.connect_tcp(address, port, limit, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as failure:
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

    def _unreachable(self, error: Exception | None) -> NoAnswerError:
        if isinstance(error, httpcore.ConnectTimeout):
            return NoAnswerError(f"no connection to {self._peer} in time", kind=Kind.TIMEOUT)
        return NoAnswerError(f"no connection to {self._peer}: {_system_reason(error)}", kind=Kind.CONNECT)


def _taking_turns(addresses: list[Address]) -> list[Address]:
    """Return the addresses with IPv4 and IPv6 in turns, begun by the family that the look-up put first."""
    first = [address for address in addresses if address.version == addresses[0].version]
    second = [address for address in addresses if address.version != addresses[0].version]
    return [address for address in chain(*zip_longest(first, second)) if address]


def _system_reason(error: BaseException | None) -> str:
    """Return the system's own words for a failure, without the address, which is nobody's business."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return os.strerror(error.errno).lower()
        error = error.__cause__
    return "it failed"

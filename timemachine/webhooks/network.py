"""How connections to receivers are opened: a name is looked up once, every answer is checked, and an address is called.

Between the check and the call nothing is looked up again, so a name cannot stand for one address when it is checked and
for another when it is called. The name stays what TLS and the request say.
"""

import asyncio
import errno
import os
import select
import ssl
import sys
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from itertools import chain, zip_longest
from typing import cast

from timemachine.domain.address_guard import Address, literal_address
from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.errors import BlockedAddressError, NoAnswerError, OwnFaultError
from timemachine.webhooks.default_route import DefaultRoute
from timemachine.webhooks.dns import Resolve

CONNECT_TIME = 5.0
"""Seconds that one address may take to connect; with several, or little time, each gets its share of what is left."""

MOST_ADDRESSES = 4
"""Addresses of a name that are tried; all that it has are checked."""

MOST_UNREAD = 256 * 1024
"""Bytes that a receiver may send ahead of what is read of them."""

OUR_FAULTS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.ENETDOWN})
"""What the system says when this machine lacks something: descriptors, memory, ports to call from, a network."""


_NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL})
"""What the system says when it has no route, or one that leads nowhere: unreachable, prohibited, or a black hole."""


class Stream(asyncio.Protocol):
    """A connection: what has come and was not read, and whether more may come.

    asyncio's own `StreamReader` would not do: when a receiver answers early and resets the connection, it forgets the
    answer.
    """

    def __init__(self) -> None:
        """Begin with nothing read; the loop connects it."""
        self._wire: asyncio.Transport
        """What sends the bytes; with TLS, `_transport` is above it."""
        self._transport: asyncio.Transport
        self._unread = bytearray()
        self._ended = False
        self._error: Exception | None = None
        self._news = asyncio.Event()

    async def read(self) -> bytes:
        """Return all that has come, waiting for some; nothing at the end.

        Raises:
            OSError: The connection broke, and all that had come before was read.
        """
        while not self._unread and not self._ended:
            self._news.clear()
            await self._news.wait()
        if self._error and not self._unread:
            raise ConnectionResetError(str(self._error)) from self._error
        came = bytes(self._unread)
        self._unread.clear()
        if not self._ended:
            self._transport.resume_reading()
        return came

    def write(self, request: bytes) -> None:
        """Hand over what is to be sent, without waiting: it is in memory anyway.

        That it could not be sent shows when the answer is read, which a receiver may have sent before it hung up.
        """
        self._transport.write(request)

    def at_rest(self) -> bool:
        """Return whether all that was sent is gone, and nothing has come: not here, not in TLS, not in the system."""
        tls = self._transport.get_extra_info("ssl_object")
        return not (
            self._unread
            or self._ended
            or self._transport.is_closing()
            or self._transport.get_write_buffer_size()
            or self._wire.get_write_buffer_size()
            or (tls and tls.pending())
            or _readable(self._transport.get_extra_info("socket").fileno())
        )

    def close(self) -> None:
        """Close at once, whatever is still on its way."""
        self._transport.abort()

    async def start_tls(self, context: ssl.SSLContext, name: str) -> None:
        """Go on in TLS.

        Raises:
            ssl.SSLError: The receiver has the wrong certificate, or speaks no TLS.
            OSError: It hangs up, or has spoken before.
        """
        if self._unread:
            raise ssl.SSLError(0, "it spoke before TLS began")
        if self._ended or self._transport.is_closing():
            raise ConnectionResetError("it hung up before TLS began")
        loop = asyncio.get_running_loop()
        try:
            secured = await loop.start_tls(self._transport, self, context, server_hostname=name)
        except RuntimeError as error:  # how the loop says that the connection was closed meanwhile
            raise ConnectionResetError(str(error)) from error
        self._transport = cast("asyncio.Transport", secured)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the way to send by."""
        self._wire = self._transport = cast("asyncio.Transport", transport)

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


def _readable(descriptor: int) -> bool:
    """Return whether the system holds bytes, or the end, that the loop has not seen yet."""
    if sys.platform == "win32":
        return bool(select.select([descriptor], [], [], 0)[0])
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


class Connector:
    """Opens connections to addresses that may be called."""

    def __init__(self, resolve: Resolve, may_call: Callable[[Address], bool], *, peer: str = "the receiver") -> None:
        """Take the look-up and the check.

        Args:
            peer: What messages call the other side.
        """
        self._resolve = resolve
        self._may_call = may_call
        self._peer = peer
        self._default_route = DefaultRoute()

    async def connect(self, host: str, port: int, deadline: float) -> Stream:
        """Look the host up, check all that it stands for, and connect to the first that answers.

        Args:
            deadline: By the loop's clock. Each address gets its share of the time until then.

        Raises:
            BlockedAddressError: One of the addresses may not be called.
            NoAnswerError: There is none, or none that takes the connection.
            OwnFaultError: This machine lacks what it takes, or has lost its network.
        """
        loop = asyncio.get_running_loop()
        self._default_route.look()
        addresses = await self._checked(host)
        error: OSError | None = None
        unroutable = False
        for left in range(len(addresses), 0, -1):
            limit = min(CONNECT_TIME, max(deadline - loop.time(), 0) / (left + 1))
            try:
                async with asyncio.timeout(limit):
                    _, stream = await loop.create_connection(Stream, str(addresses[-left]), port)
            except OSError as failure:
                _check_ours(failure, addresses[-left])
                error, unroutable = failure, unroutable or failure.errno in _NO_ROUTE
            else:
                return stream
        if unroutable:
            self._check_network()
        raise self._unreachable(error)

    async def _checked(self, host: str) -> list[Address]:
        """Return the addresses to try. What cannot be read as an address is none: nothing unchecked is called."""
        try:
            literal = literal_address(host)
            found = [literal] if literal else [ip_address(answer) for answer in await self._resolve(host)]
        except (OSError, ValueError) as error:
            self._check_network()
            reason = getattr(error, "strerror", None) or str(error)
            raise NoAnswerError(
                f"the host name of {self._peer} is not found: {reason}", kind=AttemptKind.DNS
            ) from error
        if not found:
            raise NoAnswerError(f"the host name of {self._peer} has no address", kind=AttemptKind.DNS)
        for address in found:
            if not self._may_call(address):
                raise BlockedAddressError(kind=AttemptKind.BLOCKED, detail=f"{host} stands for {address}")
        return _taking_turns(found)[:MOST_ADDRESSES]

    def _check_network(self) -> None:
        """Raise OwnFaultError if this machine has lost its network, so that what failed says nothing of its peer."""
        if self._default_route.lost():
            raise OwnFaultError("this machine has lost its default route")

    def _unreachable(self, error: OSError | None) -> NoAnswerError:
        if isinstance(error, TimeoutError):
            return NoAnswerError(f"no connection to {self._peer} in time", kind=AttemptKind.TIMEOUT)
        return NoAnswerError(f"no connection to {self._peer}: {_system_reason(error)}", kind=AttemptKind.CONNECT)


def _taking_turns(addresses: list[Address]) -> list[Address]:
    """Return the addresses with IPv4 and IPv6 in turns, begun by the family that the look-up put first."""
    first = [address for address in addresses if address.version == addresses[0].version]
    second = [address for address in addresses if address.version != addresses[0].version]
    return [address for address in chain(*zip_longest(first, second)) if address]


def _check_ours(error: OSError, address: Address) -> None:
    """Raise OwnFaultError for what this machine lacks, other than IPv6: then each such address is not available."""
    without_ipv6 = error.errno == errno.EADDRNOTAVAIL and isinstance(address, IPv6Address)
    if error.errno in OUR_FAULTS and not without_ipv6:
        raise OwnFaultError(f"no connection can be opened here: {_system_reason(error)}") from error


def _system_reason(error: OSError | None) -> str:
    """Return the system's own words for a failure, without the address, which is nobody's business."""
    return os.strerror(error.errno).lower() if error and error.errno else "it failed"

"""How the names of receivers are looked up."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import aiodns
from aiodns import error as dns

from timemachine.domain.errors import OwnFaultError

_OUR_DNS_FAULTS = frozenset({dns.ARES_ECONNREFUSED, dns.ARES_ENOMEM, dns.ARES_EFILE})

Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""Looks a host name up and returns its addresses. Raises OSError when it has none."""


class SystemResolver:
    """Looks names up in the hosts file and at the name servers that the system is told to use.

    It holds no thread while it waits, so no look-up waits for another, however many name servers do not answer. A name
    is looked up once at a time.
    """

    def __init__(self, name_servers: Sequence[str] | None = None) -> None:
        """Take the `address:port` of the name servers, if they are not the system's."""
        self._name_servers = name_servers
        self._resolver: aiodns.DNSResolver | None = None
        self._running: dict[str, asyncio.Future[list[str]]] = {}

    async def __call__(self, host: str) -> list[str]:
        """Return the addresses of a host.

        Raises:
            OSError: It has none, or no name server says so.
            OwnFaultError: There is no name server to ask.
        """
        if host not in self._running:
            looking = asyncio.ensure_future(self._look_up(host))
            self._running[host] = looking
            looking.add_done_callback(partial(self._done, host))
        return await asyncio.shield(self._running[host])

    async def aclose(self) -> None:
        """End every look-up."""
        if self._resolver:
            await self._resolver.close()

    async def _look_up(self, host: str) -> list[str]:
        try:
            self._resolver = self._resolver or aiodns.DNSResolver(self._name_servers)
        except Exception as error:  # whatever the library has found lacking here
            raise OwnFaultError(f"names cannot be looked up here: {error}") from error
        try:
            found = await self._resolver.getaddrinfo(host, family=socket.AF_UNSPEC, type=socket.SOCK_STREAM)
        except aiodns.error.DNSError as error:
            code, reason = error.args
            if code in _OUR_DNS_FAULTS:
                raise OwnFaultError(f"no name server can be asked: {reason}") from error
            raise OSError(reason) from error
        return list(dict.fromkeys(node.addr[0].decode("ascii") for node in found.nodes))

    def _done(self, host: str, looked: asyncio.Future[list[str]]) -> None:
        del self._running[host]
        if not looked.cancelled():
            looked.exception()  # nobody may be left to hear of it

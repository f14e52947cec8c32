"""How the names of receivers are looked up."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import aiodns
import pycares
from aiodns import error as dns

from timemachine.domain.errors import OwnFaultError

_UNANSWERED = frozenset({dns.ARES_ECONNREFUSED, dns.ARES_ETIMEOUT, dns.ARES_ENOMEM, dns.ARES_EFILE})
"""How a look-up ends that no name server has answered. Without a route it is any of the first two."""

TRIES = 8
"""How often a name server is asked for a name. The first tries are short where it answered other names fast, so that
fewer would end before a name whose own name servers are slow is found. All take from half a minute to minutes."""

ALONE = 16
"""Look-ups at a time that share nothing with others. Each costs a thread, and some descriptors."""

PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
"""Seconds, a half more or less, after which a name is asked for again that cannot be looked up alone: too many are."""

SLOW = 5.0
"""Seconds after which it is asked whether the name servers answer anything at all, and how long that may take."""

LONGEST = 30.0
"""Seconds that a look-up may take, as an attempt. Its tries are minutes apart in the end, and who asks meanwhile would
wait for the next of them, though the name has long been answered for again."""

ONE_TURN = 1.0
"""Seconds that each name server is given for that, the first time."""

Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""Looks a host name up and returns its addresses. Raises OSError when it has none."""


class _GivenUpError(OSError):
    """A look-up took too long; whoever joined it late may ask once more."""


class SystemResolver:
    """Looks names up in the hosts file and at the name servers that the system is told to use.

    One thread waits for all of them, so no look-up waits for another, however many name servers do not answer. A name
    is looked up once at a time.
    """

    def __init__(self, name_servers: Sequence[str] | None = None) -> None:
        """Take the `address:port` of the name servers, if they are not the system's."""
        self._name_servers = name_servers
        self._shared: aiodns.DNSResolver | None = None
        self._resolvers = set[aiodns.DNSResolver]()
        self._alone = asyncio.Semaphore(ALONE)
        self._running: dict[str, asyncio.Future[list[str]]] = {}
        self._answering: asyncio.Future[bool] | None = None

    async def __call__(self, host: str) -> list[str]:
        """Return the addresses of a host.

        Raises:
            OSError: It has none, or no name server says so; or look-ups have been ended.
            OwnFaultError: No name server answers anything.
        """
        joins = host in self._running
        try:
            return await self._together(host)
        except _GivenUpError:
            if not joins:
                raise
            return await self._together(host)

    async def _together(self, host: str) -> list[str]:
        """Look a name up, or wait with those for whom it is being looked up."""
        if host not in self._running:
            looking = asyncio.ensure_future(self._look_up(host))
            self._running[host] = looking
            looking.add_done_callback(partial(self._done, host))
        return await asyncio.shield(self._running[host])

    async def aclose(self) -> None:
        """End every look-up."""
        for resolver in list(self._resolvers):
            await resolver.close()

    async def _look_up(self, host: str) -> list[str]:
        self._shared = self._shared or self._open()
        asking = asyncio.ensure_future(self._ask(self._shared, host))
        try:
            async with asyncio.timeout(LONGEST):
                await asyncio.wait({asking}, timeout=SLOW)
                if not asking.done():
                    answering = self._answers()
                    await asyncio.wait((asking, answering), return_when=asyncio.FIRST_COMPLETED)
                    if not asking.done() and not answering.result():
                        raise OwnFaultError("no name server answers")
                return await asking
        except TimeoutError as error:
            if not await asyncio.shield(self._answers()):
                raise OwnFaultError("no name server answers") from error
            raise _GivenUpError(f"no name server has answered for it within {LONGEST:g} s") from error
        except aiodns.error.DNSError as error:
            code, reason = error.args
            if code in _UNANSWERED and not await asyncio.shield(self._answers()):
                raise OwnFaultError(f"no name server can be asked: {reason}") from error
            raise OSError(reason) from error
        except RuntimeError as error:  # closed while the name waited to be asked for once more
            raise OSError(str(error)) from error
        finally:
            asking.cancel()

    def _open(self, **how: Any) -> aiodns.DNSResolver:
        try:
            resolver = aiodns.DNSResolver(self._name_servers, **{"tries": TRIES, **how})
        except Exception as error:  # whatever the library has found lacking here
            raise OwnFaultError(f"names cannot be looked up here: {error}") from error
        self._resolvers.add(resolver)
        return resolver

    async def _ask(self, shared: aiodns.DNSResolver, host: str) -> list[str]:
        """Look a name up. A malformed answer, to whatever name, breaks off all look-ups on its socket.

        So the name is asked for once more on a socket of its own, where only its own answers count.
        """
        pauses = iter(PAUSES)
        while True:
            try:
                return await _addresses(shared, host)
            except aiodns.error.DNSError as error:
                if error.args[0] != dns.ARES_EBADRESP:
                    raise
                malformed = error
            if not self._alone.locked():
                return await self._ask_alone(host)
            pause = next(pauses, None)
            if pause is None:
                raise malformed
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - guards nothing

    async def _ask_alone(self, host: str) -> list[str]:
        async with self._alone, self._opened() as resolver:
            return await _addresses(resolver, host)

    @asynccontextmanager
    async def _opened(self, **how: Any) -> AsyncIterator[aiodns.DNSResolver]:
        resolver = self._open(**how)
        try:
            yield resolver
        finally:
            self._resolvers.remove(resolver)
            await resolver.close()

    def _answers(self) -> asyncio.Future[bool]:
        """Find out whether a name server answers anything, though not for one name.

        That name's own name servers may be down, or a long answer's connection not be taken. It may be so for ever, so
        it is no fault that passes.
        """
        if self._answering is None or self._answering.done():
            self._answering = asyncio.ensure_future(self._is_answered())
        return self._answering

    async def _is_answered(self) -> bool:
        """Ask for what every name server knows, but not the resolver that is shared, which remembers answers.

        Each name server has its turn, whatever the system's own time for each: others may be there. It has longer ones
        until the time is over, since one that is slow answers, too. An answer that is too long is one.
        """
        try:
            async with (
                self._opened(timeout=ONE_TURN, flags=pycares.ARES_FLAG_IGNTC) as resolver,
                asyncio.timeout(SLOW),
            ):
                await resolver.query_dns(".", "NS")
        except aiodns.error.DNSError as error:
            return error.args[0] not in _UNANSWERED
        except (TimeoutError, OwnFaultError):
            return False
        return True

    def _done(self, host: str, looked: asyncio.Future[list[str]]) -> None:
        del self._running[host]
        if not looked.cancelled():
            looked.exception()  # nobody may be left to hear of it


async def _addresses(resolver: aiodns.DNSResolver, host: str) -> list[str]:
    found = await resolver.getaddrinfo(host, family=socket.AF_UNSPEC, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(node.addr[0].decode("ascii") for node in found.nodes))

"""Connections that are kept for a while after a request, for the next one to the same receiver."""

from collections import defaultdict, deque
from collections.abc import Callable

import httpcore

_Key = tuple[bytes, bytes, int]
_Connection = httpcore.AsyncConnectionInterface


class KeepAlive:
    """Lends a connection at a time to each request.

    In place of httpcore's own pool, which goes through all of its connections before and after each request, and
    through all of them again for each that is idle.
    """

    def __init__(self, new: Callable[[httpcore.Origin], _Connection], most: int) -> None:
        """Begin with none.

        Args:
            new: Makes the connection for a request that finds none; it says itself when it is too old to be kept.
            most: Connections that are kept; beyond it the one that has been idle longest is closed.
        """
        self._new = new
        self._most = most
        # Both in the order in which they have become idle.
        self._idle: dict[_Connection, _Key] = {}
        self._of: defaultdict[_Key, deque[_Connection]] = defaultdict(deque)

    async def borrow(self, origin: httpcore.Origin) -> _Connection:
        """Return a connection that nobody else has: the one last given back of those that are still open, or a new one.

        It is to be given back, whatever becomes of the request.
        """
        key = (origin.scheme, origin.host, origin.port)
        while kept := self._of.get(key):
            connection = kept.pop()
            self._forget(connection)
            if not connection.has_expired():
                return connection
            await connection.aclose()
        return self._new(origin)

    async def give_back(self, connection: _Connection, origin: httpcore.Origin) -> None:
        """Keep a connection of which the answer was read to its end; close any other."""
        if not connection.is_available():
            await connection.aclose()
            return
        key = (origin.scheme, origin.host, origin.port)
        self._idle[connection] = key
        self._of[key].append(connection)
        while (oldest := next(iter(self._idle), None)) and (len(self._idle) > self._most or oldest.has_expired()):
            self._of[self._idle[oldest]].popleft()
            self._forget(oldest)
            await oldest.aclose()

    async def aclose(self) -> None:
        """Close all that are kept."""
        for connection in self._idle:
            await connection.aclose()
        self._idle.clear()
        self._of.clear()

    def _forget(self, connection: _Connection) -> None:
        key = self._idle.pop(connection)
        if not self._of[key]:
            del self._of[key]

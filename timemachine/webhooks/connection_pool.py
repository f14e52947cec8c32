"""Connections that are kept for a while after a request, for the next one to the same receiver."""

import asyncio
from collections.abc import Hashable

from timemachine.webhooks.network import Stream

IDLE_TIME = 4.0
"""Seconds that a connection is kept. Many receivers close theirs after five (uvicorn and Node do by default)."""


class ConnectionPool:
    """Lends a connection at a time to each request."""

    def __init__(self, most: int) -> None:
        """Begin with none, and keep at most so many."""
        self._most = most
        self._count = 0
        self._kept: dict[Hashable, dict[Stream, asyncio.TimerHandle]] = {}

    def acquire(self, receiver: Hashable) -> Stream | None:
        """Return the connection last used of those to a receiver that are still good, and keep it no longer."""
        while kept := self._kept.get(receiver):
            stream = next(reversed(kept))
            self._forget(receiver, stream)
            if stream.at_rest():
                return stream
            stream.close()
        return None

    def release(self, receiver: Hashable, stream: Stream) -> None:
        """Keep a connection of which the last answer was read to its end, or close it where there are too many."""
        if self._count >= self._most:
            stream.close()
            return
        expiry = asyncio.get_running_loop().call_later(IDLE_TIME, self._expire, receiver, stream)
        self._kept.setdefault(receiver, {})[stream] = expiry
        self._count += 1

    def close(self) -> None:
        """Close all that are kept."""
        for receiver, kept in list(self._kept.items()):
            for stream in list(kept):
                self._expire(receiver, stream)

    def _expire(self, receiver: Hashable, stream: Stream) -> None:
        self._forget(receiver, stream)
        stream.close()

    def _forget(self, receiver: Hashable, stream: Stream) -> None:
        kept = self._kept[receiver]
        kept.pop(stream).cancel()
        self._count -= 1
        if not kept:
            del self._kept[receiver]

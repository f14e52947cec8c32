"""Whose turn it is: a worker's slots shared among routes, so that nobody waits for a stranger's slow receiver."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from timemachine.errors import NotYetError, UnavailableError

PATIENCE = 2.0
"""Seconds that an attempt waits for its turn in place, holding a slot; a longer wait is spent outside the worker."""

GUESS = 3.0
"""Seconds that an attempt is taken to last on a route of which none has ended yet."""

_SMOOTHING = 0.2


class _Line:
    """The attempts of one route on this worker: those under way, and those that wait."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.places = asyncio.Semaphore(limit)
        self.started: dict[object, float] = {}
        self.waiting = 0
        self.typical = GUESS
        self.known = False
        self.booked_until = 0.0

    def expected_wait(self, now: float) -> float:
        """Return the seconds until a newcomer gets a place."""
        if len(self.started) + self.waiting < self.limit:
            return 0.0
        return self._lasting(now) * (self.waiting + 1) / self.limit

    def book(self, now: float) -> float:
        """Return the seconds until a place is likely free for one more that is sent away; each gets a later one."""
        self.booked_until = max(self.booked_until, now) + self._lasting(now) / self.limit
        return max(self.booked_until - now, 1.0)

    def note(self, lasted: float) -> None:
        self.typical += (_SMOOTHING if self.known else 1) * (lasted - self.typical)
        self.known = True

    def _lasting(self, now: float) -> float:
        """Return the seconds that an attempt takes: what it took before, or what those under way take already."""
        return max(self.typical, now - min(self.started.values(), default=now))


class Turns:
    """Gives each route no more than its share of a worker's slots."""

    def __init__(self, per_route: int) -> None:
        """Set how many attempts a route may have under way at a time; as many again may wait in place."""
        self._per_route = per_route
        self._lines: dict[str, _Line] = {}

    @asynccontextmanager
    async def turn(self, route_key: str, limit: int | None = None) -> AsyncIterator[None]:
        """Hold a place of the route.

        Args:
            limit: The route's own limit, where it has one. A changed one counts once the route has been idle.

        Raises:
            NotYetError: All are taken, and waiting for one would hold a slot for too long.
        """
        share = min(self._per_route, limit or self._per_route)
        line = self._lines.get(route_key) or self._lines.setdefault(route_key, _Line(share))
        await self._wait(line)
        token, started, made = object(), time.monotonic(), True
        line.started[token] = started
        try:
            yield
        except (NotYetError, UnavailableError):
            made = False  # what was not attempted says nothing of how long an attempt takes
            raise
        finally:
            del line.started[token]
            if made:
                line.note(time.monotonic() - started)
            line.places.release()
            if not line.started and not line.waiting and line.booked_until < started:
                self._lines.pop(route_key, None)

    async def _wait(self, line: _Line) -> None:
        now = time.monotonic()
        if line.waiting >= line.limit or line.expected_wait(now) > PATIENCE:
            raise NotYetError(line.book(now))
        line.waiting += 1
        try:
            async with asyncio.timeout(PATIENCE):
                await line.places.acquire()
        except TimeoutError:
            raise NotYetError(line.book(time.monotonic())) from None
        finally:
            line.waiting -= 1

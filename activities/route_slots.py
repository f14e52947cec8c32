"""A worker's slots shared among routes, so that a slow receiver delays its own route only."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from timemachine import metrics
from timemachine.domain.errors import NoSlotError

PATIENCE = 2.0
"""Seconds that an attempt waits in place for a slot of its route; a longer wait is spent outside the worker."""

FIRST_ESTIMATE = 3.0
"""Seconds that an attempt is taken to last on a route of which none has ended yet."""

LONGEST_STEP = 0.5
"""Seconds by which each attempt that is sent away comes back after the one before, at most: so that a limit that is
raised, or a receiver that recovers, counts soon for those that wait already. Some ask in vain for that."""

LIMITS_KEPT = 10_000
"""Routes whose own limit is remembered while they are idle."""

_SMOOTHING = 0.2

_Slot = asyncio.Future[None]
"""Done once the slot is held."""


class _RouteUse:
    """The attempts of one route on this worker: those that run, and those that wait for a slot."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.running: dict[_Slot, float] = {}
        """Since when, by the monotonic clock."""
        self.waiting: deque[_Slot] = deque()
        self.typical = FIRST_ESTIMATE
        self.measured = False
        self.reserved_until = 0.0

    async def acquire(self) -> _Slot:
        """Take a slot, in the order in which attempts ask.

        Raises:
            NoSlotError: There is none, and waiting for one would take too long.
        """
        now = time.monotonic()
        if len(self.waiting) >= self.limit or self._expected_wait(now) > PATIENCE:
            raise NoSlotError(self.reserve_retry(now))
        slot: _Slot = asyncio.get_running_loop().create_future()
        self.waiting.append(slot)
        self.admit()
        try:
            async with asyncio.timeout(PATIENCE):
                await slot
        except TimeoutError:
            self.release(slot)
            raise NoSlotError(self.reserve_retry(time.monotonic())) from None
        except BaseException:
            self.release(slot)
            raise
        return slot

    def release(self, slot: _Slot) -> None:
        """Give a slot back, or stop waiting for it."""
        if self.running.pop(slot, None) is None and slot in self.waiting:
            self.waiting.remove(slot)
        self.admit()

    def admit(self) -> None:
        """Let as many of those that wait run as may."""
        while self.waiting and len(self.running) < self.limit:
            slot = self.waiting.popleft()
            if not slot.done():
                self.running[slot] = time.monotonic()
                slot.set_result(None)

    def set_limit(self, limit: int) -> None:
        """Set another limit. What was reserved under a lower one does not put those off that come from now on."""
        if limit > self.limit:
            self.reserved_until = 0.0
        self.limit = limit
        self.admit()

    def reserve_retry(self, now: float) -> float:
        """Return the seconds until a slot is likely free for one more that is sent away; each gets a later one."""
        step = self._duration(now) / self.limit
        self.reserved_until = max(self.reserved_until + min(step, LONGEST_STEP), now + step)
        return max(self.reserved_until - now, 1.0)

    def measure(self, duration: float) -> None:
        """Note how long an attempt took."""
        self.typical += (_SMOOTHING if self.measured else 1) * (duration - self.typical)
        self.measured = True

    def idle(self, now: float) -> bool:
        """Whether nothing needs to be remembered."""
        return not self.running and not self.waiting and self.reserved_until < now

    def _expected_wait(self, now: float) -> float:
        if len(self.running) + len(self.waiting) < self.limit:
            return 0.0
        return self._duration(now) * (len(self.waiting) + 1) / self.limit

    def _duration(self, now: float) -> float:
        """Return the seconds that an attempt takes: what it took before, or what those that run take already."""
        return max(self.typical, now - min(self.running.values(), default=now))


class RouteSlots:
    """Gives each route no more than its share of a worker's slots."""

    def __init__(self, per_route: int) -> None:
        """Set how many attempts a route may have under way at a time; as many again may wait in place."""
        self._per_route = per_route
        self._in_use: dict[str, _RouteUse] = {}
        self._own_limits: dict[str, int] = {}

    @asynccontextmanager
    async def slot(self, route_key: str) -> AsyncIterator[Callable[[], None]]:
        """Hold a slot of the route, from before it is read: by the limit that was last set, if one was.

        What it yields is to be called when the receiver is about to be called: only such an attempt tells how long one
        takes.

        Raises:
            NoSlotError: All are taken, and waiting for one would hold the worker's own slot for too long.
        """
        route = self._in_use.get(route_key) or self._in_use.setdefault(route_key, _RouteUse(self._limit(route_key)))
        asked_at = time.monotonic()
        slot = await route.acquire()
        metrics.SLOT_WAIT.record(time.monotonic() - asked_at)
        started, attempted = route.running[slot], False

        def note_attempt() -> None:
            nonlocal attempted
            attempted = True

        try:
            yield note_attempt
        finally:
            if attempted:
                route.measure(time.monotonic() - started)
            route.release(slot)
            if route.idle(started):
                self._in_use.pop(route_key, None)

    def set_limit(self, route_key: str, limit: int | None) -> None:
        """Set the route's own limit as it was just read, None where it has none. It counts at once.

        Those that run beyond a lowered limit go on; those that wait get the slots that a raised one adds.
        """
        self._own_limits.pop(route_key, None)
        if limit and limit < self._per_route:
            self._own_limits[route_key] = limit
        if len(self._own_limits) > LIMITS_KEPT:
            del self._own_limits[next(iter(self._own_limits))]
        if route := self._in_use.get(route_key):
            route.set_limit(self._limit(route_key))

    def _limit(self, route_key: str) -> int:
        return self._own_limits.get(route_key, self._per_route)

"""Whether a route exists, for jobs that are created or changed: few of them ask Postgres.

A look that has found a route holds for a moment, and whoever removes one waits until no such look holds any more. So
what is sent after a removal was answered is refused, by all processes (decision 37). Those that ask while one looks
wait for what it finds, so that a busy route's many jobs do not all look in the same moment.
"""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass

from timemachine.postgres.route_store import RouteStore

LOOK_HOLDS = 0.5
"""Seconds for which a look holds that has found a route, from the moment in which Postgres was asked."""

REMOVAL_TIME = 0.6
"""Seconds after which no look at a removed route holds. Longer than one does, as clocks do not all go alike."""

REMEMBERED = 10_000
"""Looks that are remembered, some hundred bytes each."""


@dataclass(slots=True)
class _Look:
    holds_until: float
    goes_on: asyncio.Event | None
    """Set when the look ends, and None from then on: ten thousand of them would take megabytes."""
    found: bool = False

    async def holds(self) -> bool:
        """Return whether it has found the route, or finds it while it would hold: nobody waits for it any longer."""
        left = self.holds_until - time.monotonic()
        if left <= 0:
            return False
        if self.goes_on:
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self.goes_on.wait()
        return self.found

    def end(self) -> None:
        if self.goes_on:
            self.goes_on.set()
            self.goes_on = None


class KnownRoutes:
    """The looks of a process at routes, those of the last moment among them."""

    def __init__(self, store: RouteStore) -> None:
        """Take the routes."""
        self._store = store
        self._looks: dict[tuple[str, str], _Look] = {}

    async def check(self, db: str, route_id: str) -> None:
        """Refuse a route that does not exist.

        One that is missing is looked for each time: it may be there in the next moment.

        Raises:
            NoSuchRouteError: There is none.
            UnavailableError: Postgres does not answer.
        """
        latest = self._looks.get((db, route_id))
        if not latest or not await latest.holds():
            await self._look(db, route_id)

    async def _look(self, db: str, route_id: str) -> None:
        if len(self._looks) >= REMEMBERED:
            self._looks.clear()
        look = self._looks[db, route_id] = _Look(time.monotonic() + LOOK_HOLDS, asyncio.Event())
        try:
            await self._store.check(db, route_id)
            look.found = True
        finally:
            look.end()

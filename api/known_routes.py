"""Whether a route exists, for jobs that are created or changed: few of them ask Postgres.

A look that has found a route holds for a moment, and whoever removes one waits until no such look holds any more. So
what is sent after a removal was answered is refused, by all processes (decision 37).
"""

import math
import time

from timemachine.postgres.route_store import RouteStore

LOOK_HOLDS = 0.5
"""Seconds for which a look holds that has found a route, from the moment in which Postgres was asked."""

REMOVAL_TIME = 0.6
"""Seconds after which no look at a removed route holds. Longer than one does, as clocks do not all go alike."""

REMEMBERED = 10_000
"""Routes that are remembered, some hundred bytes each."""


class KnownRoutes:
    """The routes of a process that were seen to exist a moment ago."""

    def __init__(self, store: RouteStore) -> None:
        """Take the routes."""
        self._store = store
        self._seen: dict[tuple[str, str], float] = {}

    async def check(self, db: str, route_id: str) -> None:
        """Refuse a route that does not exist.

        One that is missing is looked for each time: it may be there in the next moment.

        Raises:
            NoSuchRouteError: There is none.
            UnavailableError: Postgres does not answer.
        """
        now = time.monotonic()
        if now - self._seen.get((db, route_id), -math.inf) < LOOK_HOLDS:
            return
        await self._store.check(db, route_id)
        if len(self._seen) >= REMEMBERED:
            self._seen.clear()
        self._seen[db, route_id] = now

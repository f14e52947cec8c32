"""Rate limits: how often something may happen, each thing by itself, in a memory that does not grow."""

import time
from collections import OrderedDict


class RateLimits:
    """Limits by name, such as an address. The names that were seen last are remembered, and each takes one number.

    It is the generic cell rate algorithm: of each name it is kept when what it has used up is free again.
    """

    def __init__(self, *, remembered: int) -> None:
        """Take the number of names that are remembered."""
        self._remembered = remembered
        self._free_at: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        """Return how many names are remembered."""
        return len(self._free_at)

    def acquire(self, name: str, *, per_second: float, burst: float) -> float:
        """Return 0 where another one is within the limit, and else the seconds until one is. Then nothing is used up.

        Args:
            burst: How many may come at once, after a pause.
        """
        now = time.monotonic()
        free_at = max(self._free_at.get(name, now), now)
        wait = free_at + 1 / per_second - burst / per_second - now
        if wait > 0:
            return wait
        self._free_at[name] = free_at + 1 / per_second
        self._free_at.move_to_end(name)
        if len(self._free_at) > self._remembered:
            self._free_at.popitem(last=False)
        return 0.0

"""Retry: when a delivery is tried again."""

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

MAX_ATTEMPTS = 100
MIN_WAIT = 0.1
MAX_WAIT = 7 * 86_400.0

Wait = Annotated[float, Meta(ge=MIN_WAIT, le=MAX_WAIT)]
Waits = Annotated[
    tuple[Wait, ...],
    Meta(
        min_length=1,
        max_length=MAX_ATTEMPTS - 1,
        description="Seconds between the attempts, one by one, in place of all the others; one attempt more than there "
        "are waits.",
        examples=[[60, 600, 3600]],
    ),
]


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """When to try again, in Temporal's terms. The default tries 13 times within a little more than two days.

    Stored in histories and in Postgres: fields may only be added, with defaults.
    """

    initial_interval: Annotated[
        Wait, Meta(description="Seconds between the first and the second attempt.", examples=[5])
    ] = 5.0
    backoff_coefficient: Annotated[
        float, Meta(ge=1, le=10, description="By how much each wait is longer than the one before.", examples=[3])
    ] = 3.0
    maximum_interval: Annotated[
        Wait, Meta(description="Seconds that no wait exceeds, jitter aside.", examples=[43_200])
    ] = 43_200.0
    maximum_attempts: Annotated[int, Meta(ge=1, le=MAX_ATTEMPTS, description="Attempts in all.", examples=[13])] = 13
    waits: Waits | UnsetType = UNSET

    @property
    def longest(self) -> float:
        """Seconds of the longest wait, jitter aside."""
        return self.maximum_interval if self.waits is UNSET else max(self.waits)

    def wait_after(self, attempt: int) -> float | None:
        """Return the seconds to wait after a failed attempt (from 1), or None when it was the last one."""
        if self.waits is not UNSET:
            return self.waits[attempt - 1] if attempt <= len(self.waits) else None
        if attempt >= self.maximum_attempts:
            return None
        # No overflow: at most 10 to the power of 98.
        return min(self.initial_interval * self.backoff_coefficient ** (attempt - 1), self.maximum_interval)

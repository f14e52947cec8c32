"""What is counted for all programs by one of them."""

from collections.abc import Mapping

import msgspec

from timemachine.domain.routes import RouteState


class ServiceCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How much there is. Stored in Postgres: fields may only be added, with defaults."""

    scheduled: int
    """Jobs that are not due yet."""
    due: int
    """Jobs that are due, not held, and have not ended: attempted, or between two attempts."""
    held: int
    overdue: int
    """Jobs that are late, not held, not spread by a resume, and neither under way nor between two attempts."""
    overdue_known: bool = True
    """Whether `overdue` is a count. It is none where that was cut before it found one."""
    keys_expiring: int
    """Valid keys that expire soon."""
    routes: Mapping[RouteState, int] = {}
    """By state. Nothing where a worker of a version that did not count them has counted."""

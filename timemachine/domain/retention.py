"""Retention: what keeps the log of attempts from growing for ever."""

import msgspec

CLEAN_ATTEMPTS = "timemachine-clean-attempts"
"""Id of the schedule, and of what it runs. Stored: do not rename."""


class Cleaned(msgspec.Struct, frozen=True, kw_only=True):
    """What was removed. Stored in histories: fields may only be added, with defaults."""

    removed: int = 0

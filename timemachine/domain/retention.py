"""Retention: what keeps the log of attempts from growing for ever."""

import msgspec


class Cleaned(msgspec.Struct, frozen=True, kw_only=True):
    """What was removed. Stored in histories: fields may only be added, with defaults."""

    removed: int = 0

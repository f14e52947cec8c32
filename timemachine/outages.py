"""Outages: what is told of a server that does not answer, by words of our own in answers, by its own in the log."""

import logging
import time

log = logging.getLogger(__name__)


class OutageLog:
    """Logs that a server does not answer, and not for each of the thousands that find it out at once."""

    def __init__(self, message: str) -> None:
        """Take what is logged, beside the reason."""
        self._message = message
        self._reason = ""
        self._quiet_until = 0.0

    def note(self, error: BaseException) -> None:
        """Log it, unless the same was logged within the last second."""
        now = time.monotonic()
        reason = f"{type(error).__name__}: {error}"
        if reason != self._reason or now >= self._quiet_until:
            self._reason, self._quiet_until = reason, now + 1.0
            log.warning(self._message, extra={"reason": reason})

"""The request of an attempt: what is known of it, whatever else goes wrong."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from timemachine.clock import boot_time
from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.delivery import RequestResult
from timemachine.tracing import Span

INTERNAL_ERROR = "an internal error; the worker's log has it"


class WebhookRequest:
    """A request, from before it is made. As long as it has no result, the receiver has not been called."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self.result: RequestResult | None = None
        self.reason: str | None = None
        """Why the receiver did not take the job; None when it did."""
        self.body = b""
        """What is kept of the answer's body."""
        self.started_at = datetime.now(UTC)
        """By the worker's clock."""
        self.seconds = 0.0
        """How long it took, by a clock that nobody sets."""
        self.span = Span()
        """The request in its trace."""

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Note that the receiver is called, and for how long.

        Until more is known it counts as a request that broke off: not known to be taken, and an attempt, or it would
        be made for ever.
        """
        self.result, self.reason = RequestResult(kind=AttemptKind.PROTOCOL), INTERNAL_ERROR
        self.started_at, began = datetime.now(UTC), boot_time()
        try:
            yield
        finally:
            self.seconds = boot_time() - began

    def end(self, result: RequestResult, reason: str | None) -> None:
        """Note how it ended."""
        self.result, self.reason = result, reason

    def give_back(self) -> None:
        """Note that nothing was sent."""
        self.result = None

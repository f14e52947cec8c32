"""Cancel of many: which jobs, and how far that is."""

import hashlib
from datetime import datetime

import msgspec

from timemachine.domain.job_filter import JobFilter
from timemachine.domain.operations import Counts, OperationKey, OperationKind


class CancelJobs(msgspec.Struct, frozen=True, kw_only=True):
    """What a cancel of many is asked for. Stored in histories: fields may only be added, with defaults."""

    filter: JobFilter

    @property
    def key(self) -> OperationKey:
        """What there is one cancel of at a time: the filter."""
        digest = hashlib.blake2b(msgspec.json.encode(self.filter), digest_size=8).hexdigest()
        return OperationKey(kind=OperationKind.CANCEL, db=self.filter.db, name=digest)


class OpenJobs(msgspec.Struct, frozen=True, kw_only=True):
    """The jobs of a filter that were there and had not ended at a time.

    Stored in histories: fields may only be added, with defaults.
    """

    filter: JobFilter
    at: datetime
    """By Temporal's clock. What the filter says of times and of the state is as of then."""
    stopped: bool = False
    """Whether they are only counted, because the cancel was stopped."""


class CancelProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a cancel of many is: the activity's heartbeat detail and its result.

    Stored in histories: fields may only be added, with defaults.
    """

    matched: int = 0
    """Jobs that are meant. Until the end, as they were counted at the start."""
    cancelled: int = 0
    delivered: int = 0
    """Jobs whose receivers took them meanwhile."""
    failed: int = 0
    """Jobs that failed meanwhile, or that may have been taken: an attempt was lost with its worker."""
    stopped: bool = False

    @property
    def counts(self) -> Counts:
        """As operations show it."""
        return Counts(
            matched=self.matched,
            done=self.cancelled,
            failed=self.delivered + self.failed,
            delivered=self.delivered,
            stopped=self.stopped,
        )

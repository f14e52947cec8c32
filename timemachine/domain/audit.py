"""The audit log: who changed what, beside the single jobs, which keep who created them themselves."""

from datetime import datetime
from enum import StrEnum

import msgspec

from timemachine.domain.keys import ApiKey


class AuditAction(StrEnum):
    """What was done. Stored: values are never changed."""

    ROUTE_CREATED = "route.create"
    ROUTE_CHANGED = "route.change"
    ROUTE_DELETED = "route.delete"
    ROUTE_PAUSED = "route.pause"
    ROUTE_DISABLED = "route.disable"
    ROUTE_RESUMED = "route.resume"
    ROUTE_REDELIVERED = "route.redeliver"
    EVENTS_CHANGED = "events.change"
    EVENTS_DELETED = "events.delete"
    SECRET_ROTATED = "secret.rotate"  # noqa: S105 - no secret
    JOB_REDELIVERED = "job.redeliver"
    JOBS_CANCELLED = "jobs.cancel"
    OPERATION_STOPPED = "operation.stop"
    KEY_CREATED = "key.create"
    KEY_ROTATED = "key.rotate"
    KEY_REVOKED = "key.revoke"


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks for something, and from where."""

    key: ApiKey | None
    """None where no key is needed, and for the command line."""
    secret_hash: bytes | None = None
    """SHA-256 of the key's secret that was sent, of the several that may be valid; None where there is no key."""
    address: str
    """The address that the request came from, which may be a proxy's; or `command line`."""
    request_id: str | None = None
    """The id of the request: the client's own, or one that it was given. None for the command line."""
    trace_links: tuple[str, ...] = ()
    """The request's `traceparent`, if it has one: to be kept with a job that it creates, changes or has sent."""

    @property
    def key_id(self) -> str | None:
        """The id of the key, for logs and for what is kept."""
        return self.key.id if self.key else None

    @property
    def dbs(self) -> tuple[str, ...] | None:
        """The dbs that the caller may deal with; None for all."""
        return self.key.dbs if self.key else None

    def covers(self, dbs: tuple[str, ...] | None) -> bool:
        """Return whether the caller may deal with all of these dbs; None stands for all that there are."""
        return self.key is None or self.key.covers(dbs)


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was done."""

    at: datetime
    key_id: str | None
    action: str
    """An `AuditAction`, or one of a later version."""
    db: str | None
    """None for what is about all dbs."""
    target: str
    """What it was done to: a route, a `collection/id`, a filter, or the id of an operation or a key."""
    address: str
    request_id: str | None


COMMAND_LINE = Caller(key=None, address="command line")

"""How an attempt can end."""

from enum import StrEnum


# Stored in the log: names are not to be changed.
class AttemptKind(StrEnum):
    """How an attempt ended: `taken`, `refused`, or why there was no answer."""

    TAKEN = "taken"
    REFUSED = "refused"
    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    PROTOCOL = "protocol"
    BLOCKED = "blocked"
    LOST = "lost"
    """Lost with its worker: nobody knows how it ended. Only in the ledger."""
    EXPIRED = "expired"
    """Not made: the job's deadline had passed. Only in the ledger."""
    NOT_MADE = "not_made"
    """Not made, for a reason that passes; to be tried again. Only in the ledger."""


OF_REQUESTS = frozenset(AttemptKind) - {AttemptKind.LOST, AttemptKind.EXPIRED, AttemptKind.NOT_MADE}
"""How a request can end that was made."""

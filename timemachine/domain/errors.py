"""Every error of this project, in one tree. Errors know no HTTP; `api/errors.py` gives them status and code.

TimemachineError
├── SettingsError
├── MigrationError
├── SetupError
├── VaultError
├── LocalStackError
├── UnavailableError
│   └── SlowStatementError
├── BusyError
│   └── TooManySecretsError
├── NoSlotError
├── OwnFaultError
├── NotSentError
├── NoAnswerError
│   └── BlockedAddressError
└── RefusedError
    ├── MalformedError
    ├── ForbiddenNameError
    ├── TriggerTimeError
    ├── NoSuchJobError
    ├── NoSuchOperationError
    ├── JobExistsError
    ├── TooLateError
    ├── NoSuchRouteError
    ├── RouteExistsError
    ├── RouteInUseError
    ├── WebhookUrlError
    ├── TooLargeError
    ├── ContentTypeError
    ├── UnauthorizedError
    ├── ForbiddenError
    ├── NoSuchKeyError
    └── LastAdminKeyError
"""

from timemachine.domain.attempt_kind import AttemptKind


class TimemachineError(Exception):
    """Something went wrong."""

    def __init__(self, message: str | None = None) -> None:
        """Take the message, or else the first line of the class's docstring."""
        super().__init__(message or (self.__doc__ or "").partition("\n")[0])


class SettingsError(TimemachineError):
    """The settings are wrong."""


class MigrationError(TimemachineError):
    """The database's schema is not one that this version knows."""


class SetupError(TimemachineError):
    """Temporal lacks something that the programs need. The message says what, and how it is made."""


class VaultError(TimemachineError):
    """What was encrypted cannot be read with the keys of TIMEMACHINE_SECRET_KEYS."""


class LocalStackError(TimemachineError):
    """The stack of `make run` cannot be started. The message says what to do, where that is known."""


class UnavailableError(TimemachineError):
    """Postgres or Temporal does not answer; nothing is known to be lost."""


class SlowStatementError(UnavailableError):
    """Postgres did not do a statement in the time that it is given; asked for less, it may."""


class BusyError(TimemachineError):
    """Too much is asked for at a time; repeat it in a moment."""

    def __init__(self, message: str | None = None, *, retry_after: int = 1) -> None:
        """Take the seconds after which it is worth asking again."""
        super().__init__(message)
        self.retry_after = retry_after


class TooManySecretsError(BusyError):
    """As many secrets of the route, or of the key, are valid already as may be at a time."""


class NoSlotError(TimemachineError):
    """The route has as many requests in flight as it may have."""

    def __init__(self, after: float, message: str | None = None) -> None:
        """Take the seconds after which it is worth asking again, and why, where that is something else."""
        super().__init__(message)
        self.after = after


class OwnFaultError(TimemachineError):
    """This machine lacks what an attempt takes, such as a descriptor or a name server; the receiver was not asked."""


class NotSentError(TimemachineError):
    """Nothing was sent: the caller no longer wanted it when the connection stood."""


class NoAnswerError(TimemachineError):
    """The receiver did not answer: it could not be reached, or not in time. The message is for a client to read."""

    def __init__(self, message: str | None = None, *, kind: AttemptKind) -> None:
        """Take the message, and what went wrong."""
        super().__init__(message)
        self.kind = kind


class BlockedAddressError(NoAnswerError):
    """The webhook_url points where deliveries may not go."""

    def __init__(self, *, kind: AttemptKind, detail: str) -> None:
        """Take what the log may know. The message says no more than that, or it would tell what is behind the guard."""
        super().__init__(kind=kind)
        self.detail = detail


class RefusedError(TimemachineError):
    """The request is refused for what it asks. The message is for the client to read."""


class MalformedError(RefusedError):
    """The body or a parameter is malformed."""


class ForbiddenNameError(RefusedError):
    """A db, collection, job or route name is not allowed."""


class TriggerTimeError(RefusedError):
    """trigger_time is too far in the past or in the future."""


class NoSuchJobError(RefusedError):
    """There is no such job."""


class NoSuchOperationError(RefusedError):
    """There is no such operation."""


class JobExistsError(RefusedError):
    """Another job with this id exists."""


class TooLateError(RefusedError):
    """Too late: the job is being delivered or has ended."""


class NoSuchRouteError(RefusedError):
    """There is no such route."""


class RouteExistsError(RefusedError):
    """Another route with this id exists."""


class RouteInUseError(RefusedError):
    """Jobs wait on the route, or events go to it."""


class WebhookUrlError(RefusedError):
    """webhook_url is malformed, or points where deliveries may not go."""


class TooLargeError(RefusedError):
    """The request is too large."""


class ContentTypeError(RefusedError):
    """The body is not sent as JSON."""


class UnauthorizedError(RefusedError):
    """The request has no valid key."""


class ForbiddenError(RefusedError):
    """The key does not allow what is asked."""


class NoSuchKeyError(RefusedError):
    """There is no such key."""


class LastAdminKeyError(RefusedError):
    """It is the last admin key: revoke it by the command line."""

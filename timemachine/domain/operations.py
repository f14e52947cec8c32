"""Operations: what is done with many jobs of a db in the background, each a workflow, and how one is named."""

import re
from enum import StrEnum

import msgspec

from timemachine.domain import stored_names
from timemachine.domain.errors import NoSuchOperationError
from timemachine.domain.jobs import check_name

MAX_OPERATION_ID = 160

_ID = re.compile(r"(?P<kind>[a-z]+):(?P<name>.+):(?P<run>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\Z")


class OperationKind(StrEnum):
    """What is done with the jobs."""

    RELEASE = "release"
    REDELIVERY = "redelivery"
    CANCEL = "cancel"


class OperationState(StrEnum):
    """State of an operation."""

    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"


WORKFLOW_TYPES = {
    OperationKind.RELEASE: stored_names.RELEASE,
    OperationKind.REDELIVERY: stored_names.REDELIVERY,
    OperationKind.CANCEL: stored_names.CANCEL_MANY,
}
_PREFIXES = {
    OperationKind.RELEASE: stored_names.RELEASE_ID_PREFIX,
    OperationKind.REDELIVERY: stored_names.REDELIVERY_ID_PREFIX,
    OperationKind.CANCEL: stored_names.CANCEL_ID_PREFIX,
}


class OperationKey(msgspec.Struct, frozen=True, kw_only=True):
    """What there is one operation of at a time."""

    kind: OperationKind
    db: str
    name: str
    """The route of a release; route and window of a redelivery, with a slash between; the filter of a cancel."""

    @property
    def workflow_id(self) -> str:
        """The id of the workflow. It has four parts or five, and is no job's id, which has three."""
        return f"{_PREFIXES[self.kind]}{self.db}/{self.name}"

    @property
    def route(self) -> str | None:
        """The route whose jobs are meant; None where that is not part of the key."""
        return None if self.kind is OperationKind.CANCEL else self.name.partition("/")[0]

    def operation_id(self, run_id: str) -> str:
        """Return the operation's id, which names one run: after its end another one may have the same key."""
        return f"{self.kind}:{self.name.replace('/', ':')}:{run_id}"


def key_of_workflow(kind: OperationKind, workflow_id: str) -> OperationKey:
    """Return the key of an operation's workflow."""
    db, _, name = workflow_id.removeprefix(_PREFIXES[kind]).partition("/")
    return OperationKey(kind=kind, db=db, name=name)


def parse_operation_id(db: str, operation_id: str) -> tuple[OperationKey, str]:
    """Return the key and the run of an operation.

    Raises:
        ForbiddenNameError: The db or the id has characters that no name has, or is too long.
        NoSuchOperationError: No operation has such an id.
    """
    check_name("db", db)
    check_name("id", operation_id, limit=MAX_OPERATION_ID)
    parts = _ID.match(operation_id)
    if parts is None or parts["kind"] not in list(OperationKind):
        raise NoSuchOperationError
    kind, name = OperationKind(parts["kind"]), parts["name"]
    if kind is OperationKind.REDELIVERY:
        # A route may have a colon, which a window has not.
        name = "/".join(name.rsplit(":", 1))
    return OperationKey(kind=kind, db=db, name=name), parts["run"]


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """How far an operation is."""

    matched: int
    """Jobs that are meant, as far as they are known."""
    done: int
    failed: int = 0
    """Jobs with which it was not done: too late, or something else has happened to them."""
    delivered: int | None = None
    """How many of these their receivers took; None where that is not known."""
    stopped: bool = False
    """Whether it ended before all was done."""

"""Pages: how lists are asked for."""

import base64
import binascii
from contextlib import suppress
from typing import Annotated, TypeVar

import msgspec
from litestar.params import QueryParameter

from api.schemas import MAX_TIME
from timemachine.domain.errors import MalformedError, VaultError
from timemachine.domain.jobs import looks_like_seconds, seconds_given
from timemachine.vault import Vault

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
MAX_CURSOR = 4096


Limit = Annotated[int, QueryParameter(ge=1, le=MAX_LIMIT, description="Entries of a page, at most.")]
Cursor = Annotated[
    str | None,
    QueryParameter(
        max_length=MAX_CURSOR,
        schema_extra={"max_length": MAX_CURSOR},
        description="The `next` of the page before; the first page without it.",
    ),
]


def time_parameter(description: str) -> QueryParameter:
    """Return a parameter that is a time. The document has its bounds only where they are written out for it."""
    extra = {"minimum": 0, "maximum": MAX_TIME}
    return QueryParameter(ge=0, le=MAX_TIME, schema_extra=extra, description=description)


Since = Annotated[int | None, time_parameter("From this time on, in milliseconds since the epoch.")]
Until = Annotated[int | None, time_parameter("Before this time, in milliseconds since the epoch.")]


def check_window(since: int | None, until: int | None, names: tuple[str, str] = ("since", "until")) -> None:
    """Refuse a stretch of time whose ends were meant in seconds.

    Raises:
        MalformedError: One of them looks like it.
    """
    for name, time in zip(names, (since, until), strict=True):
        if time is not None and looks_like_seconds(time):
            raise MalformedError(seconds_given(name))


T = TypeVar("T")


class _Sealed(msgspec.Struct, frozen=True, array_like=True):
    """Where a page begins, and the list that it belongs to."""

    of: bytes
    position: msgspec.Raw


def seal_cursor(vault: Vault, of: object, position: object) -> str:
    """Return a position as a cursor that nobody else can make, and that is of use for one list only.

    Args:
        of: All that the list was asked for, but for the length of its pages.
    """
    sealed = _Sealed(msgspec.msgpack.encode(of), msgspec.Raw(msgspec.msgpack.encode(position)))
    return vault.seal(msgspec.msgpack.encode(sealed)).decode()


def open_cursor(vault: Vault, of: object, cursor: str | None, kind: type[T]) -> T | None:
    """Return the position that a cursor stands for; None for the first page.

    Raises:
        MalformedError: It was not given out for this very list.
    """
    if cursor is None:
        return None
    with suppress(VaultError, UnicodeError, msgspec.DecodeError):
        sealed = msgspec.msgpack.decode(vault.open(cursor.encode("ascii")), type=_Sealed)
        if sealed.of == msgspec.msgpack.encode(of):
            return msgspec.msgpack.decode(sealed.position, type=kind)
    raise MalformedError("cursor: it must be the `next` of a page of this very list")


def encode_cursor(position: object) -> str:
    """Return a position as text that needs no escape in a query. Its form may change: clients must not read it."""
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(position)).decode().rstrip("=")


def decode_cursor(cursor: str, kind: type[T]) -> T:
    """Return the position that a cursor stands for.

    Raises:
        MalformedError: It is not one that this list gave out.
    """
    try:
        packed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        return msgspec.msgpack.decode(packed, type=kind)
    except (ValueError, binascii.Error, msgspec.DecodeError) as error:
        raise MalformedError("cursor: it must be a `next` of the page before") from error

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


def _time(description: str) -> QueryParameter:
    """Return a parameter that is a time. The document has its bounds only where they are written out for it."""
    extra = {"minimum": 0, "maximum": MAX_TIME}
    return QueryParameter(ge=0, le=MAX_TIME, schema_extra=extra, description=description)


Since = Annotated[int | None, _time("From this time on, in milliseconds since the epoch.")]
Until = Annotated[int | None, _time("Before this time, in milliseconds since the epoch.")]


def check_window(since: int | None, until: int | None, names: tuple[str, str] = ("since", "until")) -> None:
    """Refuse a stretch of time whose ends were meant in seconds.

    Raises:
        MalformedError: One of them looks like it.
    """
    for name, time in zip(names, (since, until), strict=True):
        if time is not None and looks_like_seconds(time):
            raise MalformedError(seconds_given(name))


T = TypeVar("T")


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


class PagePosition(msgspec.Struct, frozen=True, array_like=True):
    """Where a page of a list from visibility begins: Temporal's own token, and the query that it belongs to."""

    query: str
    token: bytes


class SealedCursors:
    """Cursors of lists from visibility: Temporal gives no reason for refusing a page token that it did not make."""

    def __init__(self, vault: Vault) -> None:
        """Take the vault that seals them."""
        self._vault = vault

    def seal(self, token: bytes, query: str) -> str:
        """Return the cursor of a page of this very list."""
        return self._vault.seal(msgspec.msgpack.encode(PagePosition(query, token))).decode()

    def open(self, cursor: str | None, query: str) -> bytes | None:
        """Return the page token of a cursor.

        Raises:
            MalformedError: It was not given out for this list.
        """
        if cursor is None:
            return None
        with suppress(VaultError, UnicodeError):
            position = msgspec.msgpack.decode(self._vault.open(cursor.encode("ascii")), type=PagePosition)
            if position.query == query:
                return position.token
        raise MalformedError("cursor: it must be the `next` of a page of this very list")

"""Cursors: a place in a list, as a client is given it to ask for what comes after. Pure."""

import base64
import binascii
from typing import TypeVar

import msgspec

from timemachine.domain.errors import MalformedError

T = TypeVar("T")


def encode_cursor(place: object) -> str:
    """Return a place as text that stands unescaped in a query. Clients are not to read it: it may change its form."""
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(place)).decode().rstrip("=")


def decode_cursor(cursor: str, kind: type[T]) -> T:
    """Return the place that a cursor stands for.

    Raises:
        MalformedError: It is not one that this list gave out.
    """
    try:
        packed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        return msgspec.msgpack.decode(packed, type=kind)
    except (ValueError, binascii.Error, msgspec.DecodeError) as error:
        raise MalformedError("cursor: it must be a `next` of the page before") from error

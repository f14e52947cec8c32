"""Newline-delimited JSON: a body that is read line by line, of which no more than a line is kept."""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator

_LINE = re.compile(rb"\S[^\n]*\n?")
"""A line from its first byte that is not blank; those before it are passed over at once, however many they are."""

_REST = re.compile(rb"[^\n]*\n?")


async def read_lines(pieces: AsyncIterator[bytes], limit: int) -> AsyncGenerator[bytes | None, None]:
    """Yield the lines of a body that comes in pieces; None for one that is too long. Blank ones are left out.

    The last line needs no newline. Where the pieces end in an error, the line that it cuts is not yielded.

    Args:
        limit: Bytes that a line may have after the blanks that it begins with. No more than that is kept.
    """
    line = _Line(limit)
    async for piece in pieces:
        for part in _parts(piece, line.is_begun):
            line.add(part.removesuffix(b"\n"))
            if part.endswith(b"\n"):
                yield line.take()
    if line.is_begun:
        yield line.take()


def _parts(piece: bytes, is_begun: bool) -> Iterator[bytes]:
    """Return what a piece has of lines that are not blank: of the one that is begun, and of others."""
    rest = _REST.match(piece) if is_begun else None
    if rest:
        yield rest[0]
    for line in _LINE.finditer(piece, rest.end() if rest else 0):
        yield line[0]


class _Line:
    """A line as far as it was read, from its first byte that is not blank."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._read = bytearray()
        self._is_too_long = False

    @property
    def is_begun(self) -> bool:
        return self._is_too_long or bool(self._read)

    def add(self, part: bytes) -> None:
        """Add what comes next, up to the limit."""
        self._is_too_long = self._is_too_long or len(self._read) + len(part) > self._limit
        if self._is_too_long:
            self._read.clear()
        else:
            self._read += part

    def take(self) -> bytes | None:
        """Return the whole line, or None where it is too long, and begin the next one."""
        taken = None if self._is_too_long else bytes(self._read).strip()
        self._read.clear()
        self._is_too_long = False
        return taken

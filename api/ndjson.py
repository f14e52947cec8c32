"""Newline-delimited JSON: a body that is read line by line, of which no more than a line is kept."""

from collections.abc import AsyncGenerator, AsyncIterator


async def read_lines(pieces: AsyncIterator[bytes], limit: int) -> AsyncGenerator[bytes | None, None]:
    """Yield the lines of a body that comes in pieces; None for one that is too long. Blank ones are left out.

    The last line needs no newline. Where the pieces end in an error, the line that it cuts is not yielded.

    Args:
        limit: Bytes that a line may have. No more than that is kept.
    """
    line = _Line(limit)
    async for piece in pieces:
        *ends, begin = piece.split(b"\n")
        for end in ends:
            line.add(end)
            if line.is_there:
                yield line.take()
        line.add(begin)
    if line.is_there:
        yield line.take()


class _Line:
    """A line as far as it was read."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._read = bytearray()
        self._is_too_long = False

    @property
    def is_there(self) -> bool:
        """Whether it is not blank. A blank one is as good as none."""
        return self._is_too_long or bool(self._read.strip())

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

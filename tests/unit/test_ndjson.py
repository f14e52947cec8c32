"""Lines of a body that comes in pieces."""

import tracemalloc
from collections.abc import AsyncIterator

import pytest

from api.ndjson import read_lines
from timemachine.domain.errors import MalformedError


async def in_pieces(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def lines(*pieces: bytes, limit: int = 10) -> list[bytes | None]:
    return [line async for line in read_lines(in_pieces(*pieces), limit)]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", []),
        (b"\n\n \r\n\t\n", []),
        (b"one", [b"one"]),
        (b"one\n", [b"one"]),
        (b"one\ntwo", [b"one", b"two"]),
        (b"\r\none\r\n\n two \n\n", [b"one", b"two"]),
        (b"1234567890\n12345678901\nx\n", [b"1234567890", None, b"x"]),
        (b"x" * 50, [None]),
        (b"x" * 50 + b"\n\ny", [None, b"y"]),
        (b'{"a":"\xc3\xa9\xe2\x80\xa8"}', [b'{"a":"\xc3\xa9\xe2\x80\xa8"}']),
    ],
)
async def test_lines_do_not_depend_on_how_the_body_comes(body: bytes, expected: list[bytes | None], size: int) -> None:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]

    assert await lines(*pieces, limit=13 if b"\xc3" in body else 10) == expected


async def test_a_line_that_is_cut_is_not_there() -> None:
    async def cut() -> AsyncIterator[bytes]:
        yield b"one\ntwo"
        raise MalformedError("the body is cut short")

    reading = read_lines(cut(), 10)

    assert await anext(reading) == b"one"
    with pytest.raises(MalformedError):
        await anext(reading)


async def test_of_a_line_that_is_too_long_nothing_is_kept() -> None:
    async def long() -> AsyncIterator[bytes]:
        for _ in range(10_000):
            yield b"x" * 1000

    tracemalloc.start()
    try:
        assert [line async for line in read_lines(long(), 5000)] == [None]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200_000

"""Lines of a body that comes in pieces."""

import sys
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
        (b" \n" * 50 + b"one", [b"one"]),
        (b"\r\n\t\n" * 50 + b"1234567890\n" + b" \n" * 50 + b"12345678901" + b" \n" * 50, [b"1234567890", None]),
        (b" " * 50 + b"\n" + b" " * 50 + b"one\n" + b" " * 50, [b"one"]),
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


@pytest.mark.own_process
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


@pytest.mark.parametrize("blank", [b"\n", b" \n", b"\r\n", b"\t\n", b" "])
async def test_any_number_of_blank_lines_costs_no_more_than_a_few(blank: bytes) -> None:
    async def calls_for(count: int) -> int:
        made = 0

        def count_call(*_: object) -> None:
            nonlocal made
            made += 1

        before = sys.getprofile()
        sys.setprofile(count_call)
        try:
            assert await lines(blank * count + b"one\n" + blank * count, limit=100_000) == [b"one"]
        finally:
            sys.setprofile(before)
        return made

    # Not the same: the garbage collector may call something meanwhile.
    assert await calls_for(10_000) < await calls_for(10) + 1000


@pytest.mark.own_process
async def test_of_blank_lines_nothing_is_kept() -> None:
    async def blanks() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b" " * 1000 + b"\r\n"

    tracemalloc.start()
    try:
        assert [line async for line in read_lines(blanks(), 500_000)] == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50_000

"""What h11 reads a head and a chunk by takes time in proportion to what is read."""

import re
import time

import pytest
from h11 import _readers

from timemachine import h11_patterns

FEW, MANY = 1_000, 16_000


def cpu_time(pattern: "re.Pattern[bytes]", line: bytes) -> float:
    """Return the seconds of CPU that it takes to find that a line is none, at best."""
    taken = []
    for _ in range(3):
        began = time.process_time()
        assert pattern.fullmatch(line) is None
        taken.append(time.process_time() - began)
    return min(taken)


@pytest.mark.parametrize(
    ("name", "begin", "blank", "end"),
    [
        ("header_field_re", b"x:", b" ", b"\x00"),
        ("header_field_re", b"x:", b"\t", b"\x00"),
        ("header_field_re", b"x:a", b" ", b"\x00"),
        ("chunk_header_re", b"1;", b" ", b"\n\r\n"),
        ("chunk_header_re", b"1", b" ", b"\n\r\n"),
    ],
)
def test_many_blanks_hold_nobody_up(name: str, begin: bytes, blank: bytes, end: bytes) -> None:
    """Tried in two places each, sixteen times as many take 256 times as long."""
    assert name in h11_patterns._PATTERNS
    few, many = (cpu_time(getattr(_readers, name), begin + blank * count + end) for count in (FEW, MANY))

    assert many < max(few, 1e-5) * 100

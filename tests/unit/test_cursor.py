from datetime import UTC, datetime
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.pagination import decode_cursor, encode_cursor
from timemachine.domain.errors import MalformedError
from timemachine.postgres.attempt_log import PagePosition

AT = 1_762_000_000_123_456


@given(st.builds(PagePosition, st.integers(0, AT * 2), st.integers(0, 2**63 - 1)))
def test_a_position_comes_back_exactly(position: PagePosition) -> None:
    assert decode_cursor(encode_cursor(position), PagePosition) == position


@given(st.binary(max_size=200))
def test_a_token_comes_back_and_stands_in_a_query_as_it_is(token: bytes) -> None:
    cursor = encode_cursor(token)

    assert decode_cursor(cursor, bytes) == token
    assert quote(cursor, safe="") == cursor


@given(st.text(max_size=60))
def test_what_was_not_given_out_is_refused_and_nothing_worse(cursor: str) -> None:
    try:
        decode_cursor(cursor, PagePosition)
    except MalformedError as error:
        assert str(error).startswith("cursor: ")  # noqa: PT017 - which of the two comes is not told before


@pytest.mark.parametrize(
    "position",
    [
        b"token",
        7,
        [],
        [AT],
        [AT, -1],
        [AT, 2**63],
        [AT, "1"],
        [-1, 1],
        [10**18, 1],
        [float(AT), 1],
    ],
    ids=str,
)
def test_a_cursor_of_another_list_is_refused(position: object) -> None:
    with pytest.raises(MalformedError):
        decode_cursor(encode_cursor(position), PagePosition)


@pytest.mark.parametrize("cursor", ["", "x", "====", "kg", "A" * 5000, "ä", "k g", "kg\n"])
def test_a_malformed_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(MalformedError):
        decode_cursor(cursor, PagePosition)


def test_a_place_is_exact_to_the_microsecond() -> None:
    assert PagePosition(AT, 1).started_at == datetime(2025, 11, 1, 12, 26, 40, 123456, UTC)

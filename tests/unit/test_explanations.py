from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.explanations import MAX_EXPLANATION, TIMES, explain, explain_body, explain_parameter
from api.schemas import MAX_TIME
from timemachine.domain.jobs import from_ms

EXPECTED = "it must be an integer, in milliseconds since the epoch"


ODD = ["4102444800000", "20260101", "tomorrow", "", "9" * 300_000]


@pytest.mark.parametrize("field", sorted(TIMES))
@pytest.mark.parametrize(
    ("given", "as_number"),
    [
        ("2100-01-01T00:00:00Z", "; 2100-01-01T00:00:00+00:00 is 4102444800000"),
        ("2100-01-01T01:00:00.5+01:00", "; 2100-01-01T01:00:00.500000+01:00 is 4102444800500"),
        ("2100-01-01", "; 2100-01-01T00:00:00+00:00 is 4102444800000"),
        ("2100-01-01 00:00", "; 2100-01-01T00:00:00+00:00 is 4102444800000"),
        *((odd, "") for odd in ODD),
    ],
)
def test_a_text_in_place_of_a_time_is_told_what_it_must_be(field: str, given: object, as_number: str) -> None:
    assert explain(field, given) == f"{field}: {EXPECTED}{as_number}"


@given(st.datetimes(timezones=st.timezones() | st.none()))
def test_any_date_is_told_its_number(at: datetime) -> None:
    sentence = explain("since", at.isoformat()) or ""

    number = int(sentence.rpartition(" ")[2])
    assert abs((from_ms(number) - datetime.fromisoformat(sentence.split()[-3])).total_seconds()) < 0.001


@pytest.mark.parametrize("since", [b"1.5", b"1.5e12", b"null", b"true", b"[1]", b"{}"])
def test_what_is_no_integer_in_place_of_a_time_is_told_what_it_must_be(since: bytes) -> None:
    error = ValueError("Expected `int`, got `float` - at `$.since`")

    assert explain_body(error, b'{"since": ' + since + b"}") == f"since: {EXPECTED}"


@pytest.mark.parametrize("microseconds", ["-1", "1735689600000000", "1735689600000000000"])
def test_a_time_out_of_bounds_is_told_its_unit(microseconds: str) -> None:
    expected = f"since: it must be between 0 and {MAX_TIME}, in milliseconds since the epoch"

    assert explain_body(ValueError("x - at `$.since`"), f'{{"since": {microseconds}}}'.encode()) == expected
    assert explain_parameter("since", "x", microseconds) == expected


@pytest.mark.parametrize("digits", ["9" * 4301, "9" * 300 + "x", "-" + "0" * 100_000])
def test_a_number_of_any_length_is_told(digits: str) -> None:
    assert explain_parameter("limit", "Expected `int`, got `str`", digits) == "limit: Expected `int`, got `str`"


def test_choices_and_limits_are_told_in_words() -> None:
    assert explain_parameter("force", "Expected `bool`, got `str`", "yes") == "force: it must be `true` or `false`"
    reason = explain_body(ValueError("Expected `str` matching regex - at `$.reason`"), b'{"reason": "\\u0000"}')
    assert reason == "reason: it must be a string of at most 200 characters, without the null character"


@pytest.mark.parametrize("place", ["$.on", "$.on[...]", "$.on[0]"])
def test_which_events_there_are_is_told(place: str) -> None:
    reason = explain_body(ValueError(f"Invalid enum value 'x' - at `{place}`"), b'{"on": ["x"]}')

    assert reason.startswith("on: it must be a list of one or more of `job.failed`, ")


def test_a_cancel_is_told_the_states_that_it_takes() -> None:
    """It takes those of jobs that have not ended; a list takes all."""
    open_states = "state: it must be one of `scheduled`, `due`, `held`"
    assert explain_body(ValueError("Invalid enum value 'failed' - at `$.state`"), b'{"state": "failed"}') == open_states
    assert explain_parameter("state", "x", "x") == f"{open_states}, `delivered`, `failed`, `cancelled`"


def test_what_is_no_json_is_told_by_the_decoder() -> None:
    assert explain_body(ValueError("Invalid"), b"[") == "the body is malformed: Invalid"
    assert explain_parameter("limit", "Expected `int`", "x") == "limit: Expected `int`"


def test_what_is_sent_is_not_repeated_at_length() -> None:
    assert len(explain_body(ValueError("x" * 300_000), b"{}")) == MAX_EXPLANATION + 1
    assert len(explain_parameter("limit", "x" * 300_000, None)) == MAX_EXPLANATION + 1

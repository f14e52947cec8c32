"""When to try again, and when not."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.delivery import (
    SLOWDOWN,
    RequestResult,
    expired,
    longest_retry_after,
    plain_retry_after,
    route_news,
    wait_after,
    without,
)
from timemachine.domain.jobs import Job, to_ms
from timemachine.domain.retry import MAX_ATTEMPTS, MAX_WAIT, Retry
from timemachine.domain.routes import RouteNews

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DEFAULT = Retry()
PLAIN = RequestResult(kind=AttemptKind.REFUSED, status=500)

waits = st.floats(0.1, MAX_WAIT)
policies = st.builds(
    Retry,
    initial_interval=waits,
    backoff_coefficient=st.floats(1, 10),
    maximum_interval=waits,
    maximum_attempts=st.integers(1, MAX_ATTEMPTS),
    waits=st.one_of(st.just(msgspec.UNSET), st.lists(waits, min_size=1, max_size=20).map(tuple)),
)
jitters = st.floats(0, 1)


def seconds(result: RequestResult, retry: Retry = DEFAULT, attempt: int = 1, *, jitter: float = 0) -> float:
    wait = wait_after(result, retry, attempt, now=NOW, jitter=jitter)
    assert wait is not None
    return wait.total_seconds()


def answered(status: int, retry_after: str | None = None) -> RequestResult:
    return RequestResult(kind=AttemptKind.REFUSED, status=status, retry_after=retry_after)


def test_the_default_grows_threefold_to_half_a_day() -> None:
    planned = [DEFAULT.wait_after(attempt) for attempt in range(1, 14)]

    assert planned == [5, 15, 45, 135, 405, 1215, 3645, 10935, 32805, 43200, 43200, 43200, None]


def test_the_default_lasts_a_little_more_than_two_days() -> None:
    total = sum(DEFAULT.wait_after(attempt) or 0 for attempt in range(1, 13))

    assert timedelta(days=2) < timedelta(seconds=total) < timedelta(days=2.5)


def test_a_list_of_waits_stands_in_place_of_all_else() -> None:
    retry = Retry(waits=(1, 60, 5), maximum_attempts=2)

    assert [retry.wait_after(attempt) for attempt in range(1, 6)] == [1, 60, 5, None, None]


@given(policies, st.integers(1, 200), jitters)
def test_a_wait_is_bounded_and_ends_with_the_attempts(retry: Retry, attempt: int, jitter: float) -> None:
    wait = wait_after(PLAIN, retry, attempt, now=NOW, jitter=jitter)

    last = len(retry.waits) + 1 if retry.waits is not msgspec.UNSET else retry.maximum_attempts
    assert (wait is None) == (attempt >= last)
    if wait is not None:
        assert timedelta(0) < wait <= timedelta(seconds=retry.longest * 1.2, milliseconds=1)


@given(policies, st.integers(1, 99), jitters)
def test_jitter_only_lengthens(retry: Retry, attempt: int, jitter: float) -> None:
    plain = wait_after(PLAIN, retry, attempt, now=NOW, jitter=0)
    jittered = wait_after(PLAIN, retry, attempt, now=NOW, jitter=jitter)

    assert (plain is None) == (jittered is None)
    assert plain is None or (jittered and plain <= jittered <= plain * 1.2 + timedelta(milliseconds=1))


@pytest.mark.parametrize(
    "nonsense",
    ["Mon, 01 Jan 99999999999 00:00:00 GMT", "Mon, 01 Jan 2026 00:00:00 +99999999999999", "-1", "soon"],
)
def test_a_retry_after_that_means_nothing_is_ignored(nonsense: str) -> None:
    assert seconds(answered(503, nonsense)) == seconds(answered(503))


@pytest.mark.parametrize("result", [answered(410), RequestResult(kind=AttemptKind.BLOCKED)], ids=["gone", "blocked"])
def test_what_cannot_get_better_is_not_tried_again(result: RequestResult) -> None:
    assert wait_after(result, DEFAULT, 1, now=NOW, jitter=0) is None


@pytest.mark.parametrize(
    "result",
    [answered(429), answered(502), answered(504), RequestResult(kind=AttemptKind.TIMEOUT)],
    ids=["429", "502", "504", "timeout"],
)
def test_an_overloaded_receiver_is_given_a_longer_wait(result: RequestResult) -> None:
    assert seconds(result) == SLOWDOWN * seconds(PLAIN)


@pytest.mark.parametrize("status", [301, 400, 404, 500, 503])
def test_any_other_failure_is_given_the_planned_wait(status: int) -> None:
    assert seconds(answered(status)) == 5


@pytest.mark.parametrize("status", [301, 400, 413, 429, 503])
@pytest.mark.parametrize(
    ("asked", "wait"),
    [
        ("30", 30),
        (" 30 ", 30),
        ("1", 5),
        ("999999999999999999", 43_200),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90),
        (format_datetime(NOW + timedelta(seconds=3), usegmt=True), 5),
        (format_datetime(NOW + timedelta(days=9), usegmt=True), 43_200),
        ("Thu, 01 Jan 2026 00:01:00 -0000", 60),
        ("Thu, 01 Jan 2026 00:01:00 EST", 5 * 3600 + 60),
        ("Thursday, 01-Jan-26 00:01:00 GMT", 60),
        ("Thu Jan  1 00:01:00 2026", 60),
        ("0" * 20 + "30", 30),
    ],
)
def test_what_the_receiver_asks_for_counts(status: int, asked: str, wait: float) -> None:
    assert seconds(answered(status, asked)) == wait


@pytest.mark.parametrize(
    ("headers", "longest"),
    [
        (["1", "3600"], "3600"),
        (["3600", "1"], "3600"),
        (["soon", "7"], "7"),
        (["Thu, 01 Jan 2026 00:01:00 GMT", "30"], "Thu, 01 Jan 2026 00:01:00 +0000"),
        (["Thu, 01 Jan 2025 00:01:00 GMT", "30"], "30"),
        (["soon"], None),
        ([], None),
    ],
)
def test_the_longest_of_several_wishes_counts(headers: list[str], longest: str | None) -> None:
    assert longest_retry_after(headers, NOW) == longest


@pytest.mark.parametrize("status", [301, 429, 500, 503])
@pytest.mark.parametrize(
    "asked", ["0", "00", "0" * 400, format_datetime(NOW), format_datetime(NOW - timedelta(days=1))]
)
def test_a_time_that_has_passed_is_no_wish(status: int, asked: str) -> None:
    assert seconds(answered(status, asked)) == seconds(answered(status))


@given(
    policies,
    st.integers(1, 99),
    st.integers(100, 599),
    st.one_of(
        st.integers(-10, 10**13).map(str), st.datetimes().map(lambda at: format_datetime(at.replace(tzinfo=UTC)))
    ),
)
def test_no_receiver_makes_the_schedule_shorter(retry: Retry, attempt: int, status: int, asked: str) -> None:
    planned, wait = retry.wait_after(attempt), wait_after(answered(status, asked), retry, attempt, now=NOW, jitter=0)

    assert (wait is None) == (planned is None or status == 410)
    assert wait is None or planned is None or planned <= wait.total_seconds() + 1e-6 <= retry.longest + 2e-6


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        (" 30 ", "30"),
        ("99999999999999999", "604800"),
        ("Thu, 01 Jan 2026 00:01:00 GMT", "Thu, 01 Jan 2026 00:01:00 +0000"),
        ("Thu, 01 Jan 2026 00:01:00 GMT Bearer hidden", "Thu, 01 Jan 2026 00:01:00 +0000"),
        ("30 hidden", None),
        ("hidden", None),
        ("", None),
        (None, None),
    ],
)
def test_a_retry_after_is_kept_without_any_other_text(header: str | None, kept: str | None) -> None:
    plain = plain_retry_after(header)

    assert plain is None or "hidden" not in plain
    assert plain == kept
    assert plain_retry_after(plain) == plain


@pytest.mark.parametrize(
    "echoed",
    [b"Bearer hidden-value", b"hidden-value", b"HIDDEN-VALUE", b"hidden\\u002dvalue", b"hidden%2Dvalue", b"hid"],
)
def test_nothing_is_kept_of_an_answer_that_may_hold_a_header_of_the_route(echoed: bytes) -> None:
    assert without(echoed, ["Bearer hidden-value"]) == b""
    assert without(echoed, [""]) == without(echoed, []) == echoed


@pytest.mark.parametrize("asked", ["", "soon", "-5", "1.5", "٣", "Thu, 99 Foo 2026", "Thu, 01 Jan 99999 00:00:00 GMT"])
def test_what_is_no_wait_is_as_if_it_were_not_there(asked: str) -> None:
    assert seconds(answered(503, asked)) == 5


@given(st.text(max_size=60))
def test_no_header_breaks_anything(asked: str) -> None:
    assert 1 <= seconds(answered(503, asked)) <= 43_200


def a_job(deadline: int | None) -> Job:
    return Job(db="d", collection="c", id="i", trigger_time=0, route="r", meta=msgspec.Raw(b"1"), deadline=deadline)


def test_a_job_is_worth_delivering_up_to_its_deadline() -> None:
    assert not expired(a_job(None), NOW)
    assert not expired(a_job(to_ms(NOW)), NOW)
    assert expired(a_job(to_ms(NOW)), NOW + timedelta(milliseconds=1))


@pytest.mark.parametrize(
    ("result", "is_failing", "news"),
    [
        (RequestResult(kind=AttemptKind.TAKEN, status=200), False, None),
        (RequestResult(kind=AttemptKind.TAKEN, status=200), True, RouteNews.RECOVERED),
        (answered(500), False, None),
        (answered(500), True, None),
        (answered(410), False, RouteNews.GONE),
        (answered(410), True, RouteNews.GONE),
        (RequestResult(kind=AttemptKind.TIMEOUT), True, None),
    ],
)
def test_what_an_answer_means_for_its_route(result: RequestResult, is_failing: bool, news: RouteNews | None) -> None:
    assert route_news(result, is_failing=is_failing) == news

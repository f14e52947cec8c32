import json
import random
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, unquote

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from timemachine.domain.errors import ForbiddenNameError, MalformedError, TooLargeError, TriggerTimeError
from timemachine.domain.jobs import (
    FAR_LIMIT,
    MAX_JOB_ID,
    MAX_META_BYTES,
    MAX_META_DEPTH,
    MAX_NAME,
    NAME_PATTERN,
    PAST_GRACE,
    Job,
    _depth,
    check_deadline,
    check_job,
    check_meta,
    check_name,
    check_not_past,
    check_not_too_far,
    from_ms,
    to_ms,
    workflow_id,
)

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.:~@+"
MS = timedelta(milliseconds=1)

texts = st.text(max_size=130) | st.text(ALPHABET, max_size=130) | st.text(ALPHABET + "/%\n", max_size=5)
names = st.text(ALPHABET, min_size=1, max_size=MAX_NAME).filter(lambda name: name not in (".", ".."))
job_ids = st.text(ALPHABET, min_size=1, max_size=MAX_JOB_ID).filter(lambda name: name not in (".", ".."))
keys = st.tuples(names, names, job_ids)
moments = st.datetimes(datetime(1970, 1, 1), datetime(2500, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - hypothesis wants it so


def accepted(name: str, limit: int) -> bool:
    try:
        check_name("id", name, limit=limit)
    except ForbiddenNameError:
        return False
    return True


# --- names


@given(texts, st.sampled_from([MAX_NAME, MAX_JOB_ID]))
def test_a_name_is_accepted_exactly_when_the_rule_says_so(name: str, limit: int) -> None:
    allowed = 1 <= len(name) <= limit and set(name) <= set(ALPHABET) and name not in (".", "..")

    assert accepted(name, limit) is allowed


@given(texts)
def test_the_pattern_in_the_document_is_the_rule(name: str) -> None:
    """But for the newline, which Python's `$` lets pass at the end and other languages' does not."""
    assume(not name.endswith("\n"))

    assert bool(re.search(NAME_PATTERN, name)) is accepted(name, limit=len(name))


@given(st.characters().filter(lambda character: character not in ALPHABET))
def test_one_character_that_is_not_allowed_is_enough(character: str) -> None:
    for name in (character, f"a{character}", f"{character}a", f"a{character}a"):
        assert not accepted(name, MAX_NAME)


@given(job_ids)
def test_a_name_is_the_same_in_a_path_escaped_or_not(name: str) -> None:
    assert unquote(name) == name == unquote(quote(name, safe=""))
    assert f"/{name}".split("/") == ["", name]
    assert not {name, name.lower()} & {".", ".."}
    assert name.encode("ascii").isascii()


@given(job_ids)
def test_a_name_can_stand_in_a_quoted_string_of_a_query(name: str) -> None:
    assert not set(name) & set("'\"\\`")


@pytest.mark.parametrize("limit", [MAX_NAME, MAX_JOB_ID])
def test_the_longest_name(limit: int) -> None:
    assert accepted("a" * limit, limit)
    assert not accepted("a" * (limit + 1), limit)


@given(keys, keys)
def test_two_jobs_never_share_a_workflow(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    assert (workflow_id(*one) == workflow_id(*other)) is (one == other)


@given(keys)
def test_a_workflow_id_tells_whose_it_is_and_fits(key: tuple[str, str, str]) -> None:
    assert tuple(workflow_id(*key).split("/")) == key
    assert len(workflow_id(*key)) <= 250


# --- times


@given(st.integers(-(10**13), 10**14))
def test_milliseconds_survive_the_way_there_and_back(ms: int) -> None:
    assert to_ms(from_ms(ms)) == ms


@given(st.integers(-(10**13), 10**14))
def test_a_millisecond_is_a_millisecond(ms: int) -> None:
    assert from_ms(ms + 1) - from_ms(ms) == MS


@given(moments)
def test_a_moment_is_rounded_down(at: datetime) -> None:
    assert timedelta(0) <= at - from_ms(to_ms(at)) < MS


@given(moments)
def test_the_far_limit_is_exact(now: datetime) -> None:
    limit = to_ms(now + FAR_LIMIT)

    check_not_too_far(limit, now)
    with pytest.raises(TriggerTimeError):
        check_not_too_far(limit + 1, now)


@given(moments)
def test_the_past_limit_is_exact(now: datetime) -> None:
    limit = to_ms(now - PAST_GRACE)

    check_not_past(limit, now)
    with pytest.raises(TriggerTimeError):
        check_not_past(limit - 1, now)


@given(st.integers() | st.integers(10**12, 6 * 10**12))
def test_any_integer_is_judged(trigger_time: int) -> None:
    """However large: what is neither too far nor past is a time that Python and Temporal can hold."""
    now = datetime.now(UTC)
    try:
        check_not_too_far(trigger_time, now)
        check_not_past(trigger_time, now)
    except TriggerTimeError:
        return
    assert abs(from_ms(trigger_time) - now) <= FAR_LIMIT


@given(st.integers(10**9, 10**10))
def test_a_time_in_seconds_is_recognised(seconds: int) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)

    with pytest.raises(TriggerTimeError, match="seconds; it must be in milliseconds"):
        check_not_past(seconds, now)


@pytest.mark.parametrize("trigger_time", [-1, 0, 999_999_999, 10_000_000_001, 1_600_000_000_000])
def test_a_time_that_is_only_past_is_not_taken_for_seconds(trigger_time: int) -> None:
    with pytest.raises(TriggerTimeError, match="more than 60 seconds in the past"):
        check_not_past(trigger_time, datetime(2026, 1, 1, tzinfo=UTC))


@given(moments, st.integers(0, 10**13))
def test_a_deadline_is_after_the_trigger_time_and_not_past(now: datetime, after: int) -> None:
    trigger_time = to_ms(now)

    for deadline in (trigger_time, trigger_time - 1, trigger_time - after):
        with pytest.raises(TriggerTimeError, match="deadline: "):
            check_deadline(deadline, trigger_time, now)
    check_deadline(trigger_time + 1, trigger_time, now)
    with pytest.raises(TriggerTimeError, match="deadline: more than 100 years"):
        check_deadline(to_ms(now + FAR_LIMIT) + 1, trigger_time, now)


@given(moments, st.integers(0, 59_000), st.integers(0, 60_000))
def test_a_deadline_that_is_past_is_refused_though_the_trigger_time_would_not_be(
    now: datetime, late: int, ago: int
) -> None:
    check_not_past(to_ms(now) - late, now, deadline=to_ms(now) + 1)
    with pytest.raises(TriggerTimeError, match="deadline: it is past already"):
        check_not_past(to_ms(now) - late, now, deadline=to_ms(now) - ago)


@given(st.integers(10**9, 10**10))
def test_a_deadline_in_seconds_is_recognised(seconds: int) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    job = Job(
        db="d", collection="c", id="i", trigger_time=to_ms(now), route="r", meta=msgspec.Raw(b"1"), deadline=seconds
    )

    with pytest.raises(TriggerTimeError, match="deadline: this looks like seconds"):
        check_job(job, now)


# --- meta

documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('ab"\\[]{}', max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('a"\\[]{}', max_size=3), inner, max_size=3),
)


def depth(value: Any) -> int:
    if isinstance(value, dict | list):
        return 1 + max(map(depth, value.values() if isinstance(value, dict) else value), default=0)
    return 0


@given(documents, st.integers(MAX_META_DEPTH - 6, MAX_META_DEPTH + 2), st.booleans(), st.booleans())
def test_the_depth_of_a_meta_is_that_of_its_arrays_and_objects(
    document: Any, levels: int, as_object: bool, ascii_only: bool
) -> None:
    for _ in range(levels):
        document = {'a"]': document} if as_object else [document]
    meta = json.dumps(document, ensure_ascii=ascii_only).encode()

    if depth(document) <= MAX_META_DEPTH:
        check_meta(meta)
    else:
        with pytest.raises(MalformedError, match="meta: nested more than 128 levels deep"):
            check_meta(meta)


@given(documents, st.booleans())
def test_the_depth_of_any_document_is_counted(document: Any, ascii_only: bool) -> None:
    assert _depth(json.dumps(document, ensure_ascii=ascii_only, indent=1).encode()) == depth(document)


@given(st.randoms(use_true_random=False), st.integers(0, 300))
def test_the_depth_of_a_hill_land_is_that_of_its_highest_top(dice: random.Random, length: int) -> None:
    """Documents whose depth goes up and down at random."""
    open_brackets, highest, text = 0, 0, ""
    for _ in range(length):
        if open_brackets and dice.random() < 0.5:
            open_brackets, text = open_brackets - 1, f"{text}0],"
        else:
            open_brackets, text = open_brackets + 1, f'{text}"[]",['
        highest = max(highest, open_brackets)

    assert _depth(f"[{text}{'0]' * open_brackets},0]".encode()) == highest + 1


SIZE = MAX_META_BYTES - 300
LONG = [
    *(b"[" + unit * (SIZE // len(unit)) + b"0]" for unit in (b"[],", b"{},", b'{"":[]},', b"[[[[[[[[]]]]]]]],")),
    *(b"[" + unit * (SIZE // len(unit)) + b"0]" for unit in (b'"",', b'"[",', b'["["],', b'"\\\\",', b'"\\"]",', b" ")),
    *(b'"' + unit * (SIZE // len(unit)) + b'"' for unit in (b"[]", b"[", b"\\\\", b'\\"', b"\\u005b")),
    (b"[" * 100 + b"0" + b"]" * 100 + b",").join([b"[", *[b""] * (SIZE // 202), b"0]"]),
    b"[" * 127 + b"[]," * (SIZE // 3) + b"0" + b"]" * 127,
]


@pytest.mark.parametrize("meta", LONG, ids=lambda meta: repr(meta[:24]))
def test_a_long_meta_is_judged_in_a_few_steps(meta: bytes) -> None:
    """However many brackets, strings and escapes are in it: each step goes over all of it without Python in between."""
    assert calls(lambda: check_meta(meta)) < 50


def calls(work: Callable[[], object]) -> int:
    """Return how many functions were called, Python's own among them."""
    count = 0

    def note(*_: object) -> None:
        nonlocal count
        count += 1

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_many_brackets_next_to_each_other_are_not_deep() -> None:
    check_meta(b"[" + b"[],{}," * 40_000 + b"[]]")


def test_brackets_in_strings_are_not_deep() -> None:
    check_meta(json.dumps(["[{" * 1000, '"[' * 1000, "\\" * 999, {"[" * 500: "{" * 500}]).encode())


def test_the_largest_meta() -> None:
    check_meta(b"1" * MAX_META_BYTES)
    with pytest.raises(TooLargeError):
        check_meta(b"1" * (MAX_META_BYTES + 1))


# --- jobs


@given(documents, keys, names, st.integers(0, 10**14))
def test_a_job_keeps_its_meta_byte_for_byte_when_it_is_stored(
    document: Any, key: tuple[str, str, str], route: str, trigger_time: int
) -> None:
    meta = json.dumps(document, indent=1).encode()
    db, collection, job_id = key
    job = Job(db=db, collection=collection, id=job_id, trigger_time=trigger_time, route=route, meta=msgspec.Raw(meta))

    stored = msgspec.json.decode(msgspec.json.encode(job), type=Job)

    assert bytes(stored.meta) == meta
    assert stored == job
    assert (job.workflow_id, job.route_key) == (f"{db}/{collection}/{job_id}", f"{db}/{route}")
    assert job.trigger_at == from_ms(trigger_time)

"""Links to traces: which are valid, how many a job keeps, and that they make no job another one."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.spans import SPAN_ID, TRACE_ID, TRACEPARENT
from timemachine.domain.jobs import Job
from timemachine.domain.traces import MAX_LINKS, read_traceparent, trace_id_of, with_links

JOB = Job(db="d", collection="c", id="x", trigger_time=7_200_000, route="r", meta=msgspec.Raw(b"1"), ledger=True)

links = st.lists(st.text("abc", min_size=1, max_size=2), unique=True, max_size=9).map(tuple)


@pytest.mark.parametrize(
    ("header", "read"),
    [
        (TRACEPARENT, TRACEPARENT),
        (f"00-{TRACE_ID}-{SPAN_ID}-00", f"00-{TRACE_ID}-{SPAN_ID}-00"),
        (f"00-{TRACE_ID}-{SPAN_ID}-ff", f"00-{TRACE_ID}-{SPAN_ID}-03"),
        (f"00-{TRACE_ID}-{SPAN_ID}-08", f"00-{TRACE_ID}-{SPAN_ID}-00"),
        (f"cc-{TRACE_ID}-{SPAN_ID}-01", TRACEPARENT),
        (f"cc-{TRACE_ID}-{SPAN_ID}-01-what.the.future.adds", TRACEPARENT),
    ],
)
def test_a_traceparent_is_read_as_one_of_version_00(header: str, read: str) -> None:
    assert read_traceparent(header) == read
    assert trace_id_of(read) == TRACE_ID


@pytest.mark.parametrize(
    "header",
    [
        "",
        "-",
        TRACEPARENT.upper(),
        f"{TRACEPARENT}\n",
        f" {TRACEPARENT}",
        f"{TRACEPARENT},{TRACEPARENT}",
        f"{TRACEPARENT}-more",
        f"cc-{TRACE_ID}-{SPAN_ID}-01.more",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID[1:]}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}",
        f"00-{TRACE_ID}-{SPAN_ID}-1",
        f"00-{TRACE_ID}-{SPAN_ID}-\u0660\u0661",
    ],
)
def test_any_other_is_none(header: str) -> None:
    assert read_traceparent(header) is None


@given(links, links)
def test_a_job_keeps_few_links_the_first_and_the_newest(known: tuple[str, ...], newer: tuple[str, ...]) -> None:
    kept = with_links(with_links((), known), newer)

    assert len(kept) <= MAX_LINKS
    assert len(set(kept)) == len(kept)
    assert kept[:1] == (known or newer)[:1]
    assert set(newer[1 - MAX_LINKS :]) <= set(kept)


def test_one_link_after_the_other() -> None:
    kept: tuple[str, ...] = ()
    for number in range(9):
        kept = with_links(kept, (str(number),))

    assert kept == ("0", "6", "7", "8")


def test_a_job_from_before_links_has_none() -> None:
    stored = {"db": "d", "collection": "c", "id": "x", "trigger_time": 1, "route": "r", "meta": 1}

    assert msgspec.json.decode(msgspec.json.encode(stored), type=Job).trace_links == ()


def test_links_are_stored_by_this_name() -> None:
    linked = msgspec.structs.replace(JOB, trace_links=(TRACEPARENT,))

    assert msgspec.json.decode(msgspec.json.encode(linked))["trace_links"] == [TRACEPARENT]


def test_links_make_no_job_another_one() -> None:
    linked = msgspec.structs.replace(JOB, trace_links=(TRACEPARENT,))

    assert linked.as_asked == JOB.as_asked
    assert linked.as_planned == JOB.as_planned

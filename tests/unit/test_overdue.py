"""Which of the jobs that visibility finds count as overdue."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from temporalio.api.common.v1 import Memo
from temporalio.api.workflow.v1 import WorkflowExecutionInfo
from temporalio.common import SearchAttributePair, TypedSearchAttributes
from temporalio.service import RPCError, RPCStatusCode

from activities import overdue
from activities.overdue import OverdueJobs
from tests.support.cases import each_case
from timemachine.domain import stored_names
from timemachine.domain.jobs import to_ms
from timemachine.domain.outcomes import Held
from timemachine.settings import Settings
from timemachine.temporal.payloads import DATA_CONVERTER
from timemachine.temporal.search_attributes import IS_HELD, TRIGGER_TIME

HOUR = timedelta(hours=1)


def found(*, is_held: bool = False, was_held: bool = False, released_in: timedelta | None = None) -> Any:
    """Return a run that is late by an hour, as visibility has it."""
    now = datetime.now(UTC)
    run = SimpleNamespace(run_id="r", raw_info=WorkflowExecutionInfo(), data_converter=DATA_CONVERTER)
    run.typed_search_attributes = TypedSearchAttributes(
        [SearchAttributePair(TRIGGER_TIME, now - HOUR), SearchAttributePair(IS_HELD, is_held)]
    )
    if is_held or was_held:
        released = None if released_in is None else to_ms(now + released_in)
        held = Held(reason="", since=now, attempts_made=0, release_at=released)
        payload = DATA_CONVERTER.payload_converter.to_payload(held)
        run.raw_info.memo.CopyFrom(Memo(fields={stored_names.HELD_SINCE: payload}))
    return run


class Visibility:
    """A client that finds these runs, on one page or on pages without end."""

    def __init__(self, *runs: Any, has_end: bool = True) -> None:
        self.current_page = runs
        self.next_page_token = None if has_end else b"more"

    def list_workflows(self, query: str, **how: Any) -> "Visibility":
        return self

    async def fetch_next_page(self) -> None:
        """Have the same page again."""
        await asyncio.sleep(0)


class Ledger:
    """A ledger in which some runs are at work."""

    def __init__(self, *at_work: str) -> None:
        self._at_work = set(at_work)

    async def at_work(self, run_ids: Sequence[str], *, since: timedelta) -> set[str]:
        return self._at_work


def overdue_jobs(run: Any, *at_work: str, has_end: bool = True) -> OverdueJobs:
    client: Any = Visibility(run, has_end=has_end)
    ledger: Any = Ledger(*at_work)
    return OverdueJobs(client, ledger, Settings())


@each_case(
    ("run", "count"),
    [
        ({}, 1),
        ({"is_held": True}, 0),
        ({"was_held": True, "released_in": HOUR}, 0),
        ({"was_held": True, "released_in": timedelta()}, 0),
        ({"was_held": True, "released_in": -HOUR}, 1),
        ({"was_held": True}, 1),
    ],
)
async def test_jobs_that_are_held_or_wait_within_the_spread_of_a_resume_are_not_overdue(run: Any, count: int) -> None:
    assert await overdue_jobs(found(**run)).count() == count


async def test_jobs_that_are_at_work_are_not_overdue() -> None:
    assert await overdue_jobs(found(), "r").count() == 0


async def test_a_count_that_is_cut_tells_of_those_it_has_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overdue, "COUNT_TIME", 0.05)

    assert await overdue_jobs(found(), has_end=False).count()
    assert await overdue_jobs(found(), "r", has_end=False).count() is None  # 0 is what it says of a healthy service


async def test_a_temporal_that_refuses_tells_of_no_overdue_jobs(caplog: pytest.LogCaptureFixture) -> None:
    class Refusing(Visibility):
        async def fetch_next_page(self) -> None:
            raise RPCError("too many requests", RPCStatusCode.RESOURCE_EXHAUSTED, b"")

    client: Any = Refusing(found(), has_end=True)
    ledger: Any = Ledger()

    assert await OverdueJobs(client, ledger, Settings()).count() is None
    assert [record.__dict__["reason"] for record in caplog.records] == ["too many requests"]

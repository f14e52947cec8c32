"""Pages of ended jobs, from a store that has a job's runs one after the other."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import cast

import pytest
from temporalio.client import Client

from timemachine.domain.due_order import Found
from timemachine.domain.job_filter import JobFilter, ListedJob, ListedState
from timemachine.domain.outcomes import RowState
from timemachine.temporal import job_lists

NOW = datetime(2026, 11, 26, 8, tzinfo=UTC)


async def no_rows(_: object) -> dict[str, RowState]:
    return {}


def a_run(run_id: str) -> ListedJob:
    return ListedJob(
        db="arena",
        collection="c",
        id="again",
        run_id=run_id,
        trigger_time=1,
        route="hook",
        state=ListedState.CANCELLED,
        created_at=1,
        ended_at=2,
    )


async def test_a_job_is_on_a_page_once_although_a_later_query_does_not_know_of_its_latest_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: Iterator[Found] = iter([Found([a_run("latest")], b"more"), Found([a_run("before")])])

    async def ended(*_: object, **__: object) -> Found:
        return next(found)

    monkeypatch.setattr(job_lists, "_ended", ended)
    wanted = JobFilter(db="arena", state=ListedState.CANCELLED)
    page = await job_lists.list_jobs(cast("Client", None), no_rows, wanted, None, limit=2, now=NOW)

    assert [job.run_id for job in page.jobs] == ["latest"]

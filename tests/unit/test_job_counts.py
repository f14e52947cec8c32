"""Counts of jobs by several queries at a time, without a server."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from temporalio.service import RPCError, RPCStatusCode

from timemachine.domain.job_filter import JobFilter
from timemachine.temporal.job_lists import count_jobs


class Busy:
    """A Temporal that refuses the first of the queries, once all have been asked, and does not answer the others."""

    def __init__(self) -> None:
        self.asked = self.under_way = 0

    async def count_workflows(self, _: str) -> Any:
        self.asked += 1
        if self.asked == 1:
            await asyncio.sleep(0)
            raise RPCError("busy", RPCStatusCode.RESOURCE_EXHAUSTED, b"")
        self.under_way += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.under_way -= 1


async def test_a_count_of_which_one_query_fails_goes_on_with_none_of_the_others() -> None:
    temporal: Any = Busy()

    with pytest.raises(RPCError, match="busy"):
        await count_jobs(temporal, JobFilter(db="arena"), datetime.now(UTC))

    assert (temporal.asked, temporal.under_way) == (6, 0)


async def test_a_count_that_is_given_up_goes_on_with_none_of_its_queries() -> None:
    temporal: Any = Busy()
    temporal.asked = 1

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await count_jobs(temporal, JobFilter(db="arena"), datetime.now(UTC))

    assert (temporal.asked, temporal.under_way) == (7, 0)

"""What is asked about a job's latest run."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import cast

import pytest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from timemachine.domain.errors import NoSuchJobError
from timemachine.temporal.job_runs import latest_run


class Workflow:
    """A workflow that is no job. One of the two questions about it is answered later than the other, which may fail."""

    def __init__(self, *, slow: str, status: RPCStatusCode | None = None) -> None:
        self._slow, self._status = slow, status
        self.answered = set[str]()

    def get_workflow_handle(self, _: str) -> "Workflow":
        return self

    async def describe(self) -> object:
        await self._answer("description")
        return SimpleNamespace(workflow_type="Another")

    async def fetch_history_events(self, *, page_size: int) -> AsyncIterator[object]:
        await self._answer("history")
        attributes = SimpleNamespace(workflow_type=SimpleNamespace(name="Another"))
        yield SimpleNamespace(workflow_execution_started_event_attributes=attributes)

    async def _answer(self, question: str) -> None:
        if question == self._slow:
            for _ in range(20):
                await asyncio.sleep(0)
        elif self._status:
            raise RPCError(self._status.name, self._status, b"")
        self.answered.add(question)


SLOW = pytest.mark.parametrize("slow", ["description", "history"])


@SLOW
@pytest.mark.parametrize("status", [None, RPCStatusCode.NOT_FOUND])
async def test_no_question_is_given_up_as_another_one_tells_that_there_is_no_job(
    slow: str, status: RPCStatusCode | None
) -> None:
    workflow = Workflow(slow=slow, status=status)
    with pytest.raises(NoSuchJobError):
        await latest_run(cast(Client, workflow), "db/c/job")
    assert slow in workflow.answered


@SLOW
async def test_an_outage_is_told_at_once(slow: str) -> None:
    workflow = Workflow(slow=slow, status=RPCStatusCode.UNAVAILABLE)
    with pytest.raises(RPCError, match="UNAVAILABLE"):
        await latest_run(cast(Client, workflow), "db/c/job")
    assert slow not in workflow.answered

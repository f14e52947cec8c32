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
    """A workflow that is no job, which is described later than its first event is read."""

    def __init__(self, failure: RPCError | None = None) -> None:
        self.was_described = False
        self._failure = failure

    def get_workflow_handle(self, _: str) -> "Workflow":
        return self

    async def describe(self) -> object:
        for _ in range(20):
            await asyncio.sleep(0)
        self.was_described = True
        return SimpleNamespace(workflow_type="Another")

    async def fetch_history_events(self, *, page_size: int) -> AsyncIterator[object]:
        if self._failure:
            raise self._failure
        attributes = SimpleNamespace(workflow_type=SimpleNamespace(name="Another"))
        yield SimpleNamespace(workflow_execution_started_event_attributes=attributes)


@pytest.mark.parametrize("failure", [None, RPCError("gone", RPCStatusCode.NOT_FOUND, b"")])
async def test_no_question_is_given_up_as_another_one_tells_that_there_is_no_job(failure: RPCError | None) -> None:
    workflow = Workflow(failure)
    with pytest.raises(NoSuchJobError):
        await latest_run(cast(Client, workflow), "db/c/job")
    assert workflow.was_described


async def test_an_outage_is_told_at_once() -> None:
    workflow = Workflow(RPCError("away", RPCStatusCode.UNAVAILABLE, b""))
    with pytest.raises(RPCError, match="away"):
        await latest_run(cast(Client, workflow), "db/c/job")
    assert not workflow.was_described

"""Jobs that go on as another run, because their history has become long."""

from typing import Any

from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowHandle

from tests.support.job_histories import workflow_of
from tests.support.service import Service
from tests.support.waiting import eventually

CUT_BEGINS = EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED


async def until_continued(cut: Service, client: Client, job_id: str, *, due_in: float) -> WorkflowHandle[Any, Any]:
    """Change a job to some seconds from now, until it goes on as another run. Return the one of before."""
    job = workflow_of(client, cut, job_id)
    first = client.get_workflow_handle(job.id, run_id=(await job.describe()).run_id)
    while not await _is_cut(job, first):
        assert (await cut.change(job_id, due_in)).status_code == 200
    await eventually(job.describe, lambda run: run.run_id != first.run_id)
    return first


async def _is_cut(job: WorkflowHandle[Any, Any], first: WorkflowHandle[Any, Any]) -> bool:
    """Return whether the next change would reach another run than the first one."""
    begun = [event async for event in first.fetch_history_events() if event.event_type == CUT_BEGINS]
    return bool(begun) or (await job.describe()).run_id != first.run_id

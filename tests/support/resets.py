"""What an operator can do to a job's workflow by Temporal's `reset`."""

import uuid
from typing import Any

from temporalio.api.common.v1 import WorkflowExecution as Execution
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import Client, WorkflowHandle


async def reset(client: Client, job: WorkflowHandle[Any, Any], task: int = 0) -> None:
    """Have a job go on as another run from one of its workflow tasks on, the first one if not told otherwise."""
    run = await job.describe()
    tasks = [
        event.event_id
        async for event in job.fetch_history_events()
        if event.HasField("workflow_task_completed_event_attributes")
    ]
    await client.workflow_service.reset_workflow_execution(
        ResetWorkflowExecutionRequest(
            namespace=client.namespace,
            workflow_execution=Execution(workflow_id=run.id, run_id=run.run_id),
            workflow_task_finish_event_id=tasks[task],
            request_id=uuid.uuid4().hex,
        )
    )

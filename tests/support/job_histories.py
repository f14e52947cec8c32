"""A job's workflow, as Temporal knows it."""

from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle

from tests.support.service import Service
from tests.support.waiting import eventually

Events = list[EventType.ValueType]


def workflow_of(client: Client, service: Service, job_id: str) -> WorkflowHandle[object, object]:
    return client.get_workflow_handle(f"{service.db}/c/{job_id}")


async def events(client: Client, service: Service, job_id: str) -> Events:
    return [event.event_type async for event in workflow_of(client, service, job_id).fetch_history_events()]


async def wait_for_event(client: Client, service: Service, job_id: str, event: EventType.ValueType) -> None:
    await eventually(lambda: events(client, service, job_id), lambda seen: event in seen)


async def wait_for_status(client: Client, service: Service, job_id: str, status: WorkflowExecutionStatus) -> None:
    await eventually(workflow_of(client, service, job_id).describe, lambda run: run.status is status)

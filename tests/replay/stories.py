"""What jobs and other workflows have lived through whose histories are recorded."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import msgspec
from temporalio.api.enums.v1 import EventType, TaskQueueKind
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import PollWorkflowTaskQueueRequest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle

from tests.support.receiver import Received, Receiver, response
from tests.support.resets import reset
from tests.support.service import ROUTE, Service, now_ms
from timemachine.domain.operations import parse_operation_id
from timemachine.domain.redelivery import redelivery_key
from timemachine.domain.releases import ReleaseHeld

Handle = WorkflowHandle[Any, Any]


class Stage(msgspec.Struct, frozen=True):
    """Where a story is played."""

    service: Service
    receiver: Receiver
    client: Client

    def job(self, job_id: str) -> Handle:
        return self.client.get_workflow_handle(f"{self.service.db}/c/{job_id}")


Story = Callable[[Stage], Awaitable[Handle]]
"""Returns the workflow whose history tells the story."""


async def refuse(_: Received) -> bytes:
    return response(500)


async def closed(workflow: Handle, *, limit: float = 30) -> Handle:
    """Return a workflow once it is closed."""
    async with asyncio.timeout(limit):
        while (await workflow.describe()).status is WorkflowExecutionStatus.RUNNING:
            await asyncio.sleep(0.05)
    return workflow


async def until_held(stage: Stage, job_id: str) -> None:
    async with asyncio.timeout(20):
        while "held" not in await stage.service.find(job_id):
            await asyncio.sleep(0.05)


async def delivered(stage: Stage) -> Handle:
    return await closed(stage.job(await stage.service.create(1, meta={"n": 1})))


async def changed_then_delivered(stage: Stage) -> Handle:
    job_id = await stage.service.create(3600)
    await stage.service.change(job_id, 7200, meta="second")
    await stage.service.change(job_id, 1, meta="third")
    return await closed(stage.job(job_id))


async def changed_then_reset(stage: Stage) -> Handle:
    """The change comes again, when the time that it changed is past."""
    job_id = await stage.service.create(1, meta="old")
    await stage.service.change(job_id, 3, meta="new")
    await asyncio.sleep(1.5)
    await reset(stage.client, stage.job(job_id), task=-1)
    return await closed(stage.job(job_id))


async def cancelled_while_waiting(stage: Stage) -> Handle:
    job_id = await stage.service.create(3600)
    await stage.service.change(job_id, 7200)
    await stage.service.cancel(job_id)
    return await closed(stage.job(job_id))


async def cancelled_between_attempts(stage: Stage) -> Handle:
    stage.receiver.answer = refuse
    job_id = await stage.service.create(0)
    while (await stage.service.find(job_id)).get("attempts") != 1:
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)  # until the workflow knows it as well
    await stage.service.cancel(job_id)
    return await closed(stage.job(job_id))


async def cancelled_in_flight_but_taken(stage: Stage) -> Handle:
    answered = asyncio.Event()

    async def slow(_: Received) -> bytes:
        await answered.wait()
        return response(200)

    stage.receiver.answer = slow
    job_id = await stage.service.create(0)
    await stage.receiver.wait_for(job_id)
    await asyncio.sleep(1.5)  # until the activity has joined it
    delete = asyncio.create_task(stage.service.cancel(job_id))
    await asyncio.sleep(0.3)
    answered.set()
    await delete
    return await closed(stage.job(job_id))


async def cancelled_while_the_task_is_held(stage: Stage) -> Handle:
    """The server refuses the end of the workflow task in which the receiver took the job."""
    answered = asyncio.Event()

    async def slow(_: Received) -> bytes:
        await answered.wait()
        return response(200)

    stage.receiver.answer = slow
    job_id = await stage.service.create(0)
    await stage.receiver.wait_for(job_id)
    delete = asyncio.create_task(stage.service.cancel(job_id))
    asyncio.get_running_loop().call_later(0.3, answered.set)
    await delete
    return await closed(stage.job(job_id))


async def delivered_at_the_second_attempt(stage: Stage) -> Handle:
    async def second_time(received: Received) -> bytes:
        return response(500 if len(stage.receiver.of(received.job_id)) < 2 else 200)

    stage.receiver.answer = second_time
    return await closed(stage.job(await stage.service.create(0, retry={"waits": [0.5]})))


async def failed_at_once(stage: Stage) -> Handle:
    stage.receiver.answer = refuse
    return await closed(stage.job(await stage.service.create(0, retry={"maximum_attempts": 1})))


async def failed_at_the_third_attempt(stage: Stage) -> Handle:
    stage.receiver.answer = refuse
    return await closed(stage.job(await stage.service.create(0, retry={"waits": [0.2, 0.2]})))


async def held_then_released(stage: Stage) -> Handle:
    route = f"/route/{stage.service.db}/{ROUTE}"
    await stage.service.api.post(f"{route}/pause")
    job_id = await stage.service.create(0)
    await until_held(stage, job_id)
    await stage.service.api.post(f"{route}/resume", json={"spread": 1})
    return await closed(stage.job(job_id))


async def held_then_released_before_its_deadline(stage: Stage) -> Handle:
    route = f"/route/{stage.service.db}/{ROUTE}"
    await stage.service.api.post(f"{route}/pause")
    job_id = await stage.service.create(0, deadline=now_ms(20))
    await until_held(stage, job_id)
    await stage.service.api.post(f"{route}/resume", json={"spread": 86_400})
    return await closed(stage.job(job_id))


async def held_then_changed(stage: Stage) -> Handle:
    await stage.service.api.post(f"/route/{stage.service.db}/{ROUTE}/pause")
    await stage.service.add_route(stage.receiver.url, "other")
    job_id = await stage.service.create(0)
    await until_held(stage, job_id)
    await stage.service.change(job_id, 1, route="other")
    return await closed(stage.job(job_id))


async def triggered_then_delivered(stage: Stage) -> Handle:
    job_id = await stage.service.create(3600)
    await stage.service.trigger(job_id)
    return await closed(stage.job(job_id))


async def changed_then_triggered(stage: Stage) -> Handle:
    job_id = await stage.service.create(3600)
    await stage.service.change(job_id, 7200, meta="second")
    await stage.service.trigger(job_id)
    return await closed(stage.job(job_id))


async def held_then_triggered(stage: Stage) -> Handle:
    """The route is still paused, so that the job is held once more."""
    await stage.service.api.post(f"/route/{stage.service.db}/{ROUTE}/pause")
    job_id = await stage.service.create(0)
    await until_held(stage, job_id)
    await stage.service.trigger(job_id)
    await until_held(stage, job_id)
    await stage.service.cancel(job_id)
    return await closed(stage.job(job_id))


async def released_then_triggered(stage: Stage) -> Handle:
    """The job has been released to a moment that is far away."""
    await stage.service.api.post(f"/route/{stage.service.db}/{ROUTE}/pause")
    job_id = await stage.service.create(0)
    await until_held(stage, job_id)
    await stage.service.api.post(f"/route/{stage.service.db}/{ROUTE}/resume", json={"spread": 86_400})
    async with asyncio.timeout(30):
        while "next_attempt_time" not in await stage.service.find(job_id):
            await stage.job(job_id).signal("release", 86_400.0)
            await asyncio.sleep(0.2)
    await stage.service.trigger(job_id)
    return await closed(stage.job(job_id))


async def held_then_cancelled(stage: Stage) -> Handle:
    await stage.service.api.post(f"/route/{stage.service.db}/{ROUTE}/pause")
    job_id = await stage.service.create(0)
    await until_held(stage, job_id)
    await stage.service.cancel(job_id)
    return await closed(stage.job(job_id))


STORIES: list[Story] = [
    delivered,
    changed_then_delivered,
    cancelled_while_waiting,
    cancelled_between_attempts,
    cancelled_in_flight_but_taken,
    cancelled_while_the_task_is_held,
    delivered_at_the_second_attempt,
    failed_at_once,
    failed_at_the_third_attempt,
    held_then_released,
    held_then_released_before_its_deadline,
    held_then_changed,
    held_then_cancelled,
    triggered_then_delivered,
    changed_then_triggered,
    changed_then_reset,
    held_then_triggered,
    released_then_triggered,
]
"""Of jobs, on a whole service."""


async def _changed_until_cut(stage: Stage) -> tuple[Handle, Handle]:
    """Return the first run of a job that goes on as a second one, and that: it is delivered."""
    job_id = await stage.service.create(3600)
    job = stage.job(job_id)
    first = (await job.describe()).run_id
    async with asyncio.timeout(30):
        while (await job.describe()).run_id == first:
            await stage.service.change(job_id, 3600)
    await stage.service.change(job_id, 1)
    second = (await job.describe()).run_id
    await closed(job)
    runs = [stage.client.get_workflow_handle(job.id, run_id=run) for run in (first, second)]
    return runs[0], runs[1]


async def changed_until_cut(stage: Stage) -> Handle:
    first, _ = await _changed_until_cut(stage)
    return first


async def cut_with_a_waker_of_no_jobs_id(stage: Stage) -> Handle:
    first, _ = await _changed_until_cut(stage)
    return first


async def changed_until_its_limit(stage: Stage) -> Handle:
    first, _ = await _changed_until_cut(stage)
    return first


async def continued_then_delivered(stage: Stage) -> Handle:
    _, second = await _changed_until_cut(stage)
    return second


async def woken(stage: Stage) -> Handle:
    first, _ = await _changed_until_cut(stage)
    (waker,) = [
        event.child_workflow_execution_started_event_attributes.workflow_execution
        async for event in first.fetch_history_events()
        if event.HasField("child_workflow_execution_started_event_attributes")
    ]
    return await closed(stage.client.get_workflow_handle(waker.workflow_id))


CUT_STORIES: list[Story] = [
    changed_until_cut,
    cut_with_a_waker_of_no_jobs_id,
    changed_until_its_limit,
    continued_then_delivered,
    woken,
]
"""Of jobs whose histories are cut soon. The first two were recorded when only Temporal's suggestion had them cut."""


async def task_lost(stage: Stage, task_queue: str) -> Handle:
    """A worker is given the first task, and is never heard of again."""
    job_id = await stage.service.create(0)
    queue = TaskQueue(name=task_queue, kind=TaskQueueKind.TASK_QUEUE_KIND_NORMAL)
    request = PollWorkflowTaskQueueRequest(namespace=stage.client.namespace, task_queue=queue, identity="lost")
    task = await stage.client.workflow_service.poll_workflow_task_queue(request, timeout=timedelta(seconds=20))
    assert task.task_token
    return stage.job(job_id)


async def redelivered_many(stage: Stage) -> Handle:
    stage.receiver.answer = refuse
    job_id = await stage.service.create(0, retry={"maximum_attempts": 1})
    await stage.service.wait_for_state(job_id, "failed")
    while not (await stage.service.api.get(f"/failed/{stage.service.db}")).json()["failed"]:
        await asyncio.sleep(0.05)
    answer = await stage.service.api.post(f"/route/{stage.service.db}/{ROUTE}/redeliver", json={"since": 0})
    workflow_id = redelivery_key(stage.service.db, ROUTE, answer.json()["id"]).workflow_id
    return await closed(stage.client.get_workflow_handle(workflow_id))


async def released(stage: Stage) -> Handle:
    await stage.service.api.post(f"/route/{stage.service.db}/{ROUTE}/pause")
    await stage.service.create(0)
    query = f"TimemachineRoute = '{stage.service.db}/{ROUTE}' AND TimemachineHeld = true"
    while (await stage.client.count_workflows(query)).count == 0:
        await asyncio.sleep(0.05)
    await stage.service.api.post(f"/route/{stage.service.db}/{ROUTE}/resume", json={"spread": 0.5})
    workflow_id = ReleaseHeld(db=stage.service.db, route_id=ROUTE).key.workflow_id
    return await closed(stage.client.get_workflow_handle(workflow_id))


async def _cancel_many(stage: Stage, job_id: str) -> Handle:
    """Start a cancel of jobs by their label, once visibility shows the one there is."""
    path, wanted = f"/cancel/{stage.service.db}", {"label": job_id}
    while (await stage.service.api.post(f"{path}?dry_run=true", json=wanted)).json()["matched"] == 0:
        await asyncio.sleep(0.05)
    operation_id = (await stage.service.api.post(path, json=wanted)).json()["id"]
    key, run_id = parse_operation_id(stage.service.db, operation_id)
    return stage.client.get_workflow_handle(key.workflow_id, run_id=run_id)


async def cancelled_many(stage: Stage) -> Handle:
    label = f"label-{stage.service.db}"
    await stage.service.create(3600, labels=[label])
    return await closed(await _cancel_many(stage, label))


async def cancelled_many_until_stopped(stage: Stage) -> Handle:
    """An attempt in flight keeps it going until then."""
    answered = asyncio.Event()

    async def slow(_: Received) -> bytes:
        await answered.wait()
        return response(200)

    stage.receiver.answer = slow
    label = f"label-{stage.service.db}"
    job_id = await stage.service.create(0, labels=[label])
    await stage.receiver.wait_for(job_id)
    workflow = await _cancel_many(stage, label)
    async with asyncio.timeout(20):
        while not (await workflow.describe()).raw_description.pending_activities:
            await asyncio.sleep(0.05)
    await workflow.cancel()
    await closed(workflow)
    answered.set()
    return workflow


async def released_until_stopped(stage: Stage) -> Handle:
    """Between two looks."""
    wanted = ReleaseHeld(db=stage.service.db, route_id=ROUTE)
    workflow = await stage.client.start_workflow("Release", wanted, id=wanted.key.workflow_id, task_queue="tests")
    async with asyncio.timeout(20):
        while not await _has_ended_activity(workflow):
            await asyncio.sleep(0.02)
    await workflow.cancel()
    return await closed(workflow)


async def _has_ended_activity(workflow: Handle) -> bool:
    events = [event.event_type async for event in workflow.fetch_history_events()]
    return EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED in events


async def cleaned(stage: Stage) -> Handle:
    workflow_id = f"clean-{stage.service.db}"
    return await closed(await stage.client.start_workflow("CleanAttempts", id=workflow_id, task_queue="tests"))


OTHER_STORIES: list[Story] = [
    redelivered_many,
    released,
    released_until_stopped,
    cancelled_many,
    cancelled_many_until_stopped,
    cleaned,
]
"""Of other workflows than jobs, which run as they did before the ledger."""

LEDGER = "ledger_"
"""Begins the names of the histories of jobs that go by the ledger. Those of before begin with `at_once_`, and those of
before that, whose first attempt was made by an activity, with nothing."""


def names() -> set[str]:
    """Return the names of all histories that today's code has to have recorded."""
    of_jobs = {story.__name__ for story in STORIES + CUT_STORIES} | {task_lost.__name__}
    return {f"{LEDGER}{name}" for name in of_jobs} | {story.__name__ for story in OTHER_STORIES}

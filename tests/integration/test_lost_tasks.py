"""Jobs whose workflow tasks are lost: an update waits until Temporal takes it, as one that it refuses does harm."""

import asyncio
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from msgspec.structs import replace
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import PollWorkflowTaskQueueRequest
from temporalio.client import Client, WorkflowHandle
from temporalio.exceptions import ApplicationError

from activities.wake import Wakes
from api.app import create_app
from tests.conftest import delivering, serving
from tests.support.job_histories import workflow_of
from tests.support.ledger import first_run
from tests.support.refusals import AWAY
from tests.support.service import Service, refused
from tests.support.waiting import eventually
from timemachine.domain.wake import ContinuedRun
from timemachine.settings import Settings
from timemachine.temporal.job_runs import refuses_updates

TASK_TIME = timedelta(seconds=1)


@pytest.fixture
async def losing(
    alone: tuple[Service, Settings], client: Client, monkeypatch: pytest.MonkeyPatch
) -> tuple[Service, Settings, str]:
    """A service without a worker, and a job of it whose workflow task was lost until updates of it are refused."""
    service, own = alone
    start = Client.start_workflow

    async def start_with_short_tasks(self: Client, *args: Any, **options: Any) -> Any:
        return await start(self, *args, **options, task_timeout=TASK_TIME)

    monkeypatch.setattr(Client, "start_workflow", start_with_short_tasks)
    job_id = await service.create(3600)
    job = workflow_of(client, service, job_id)
    changing = asyncio.create_task(service.change(job_id, 3600))
    taking = asyncio.create_task(lose_tasks(client, own.task_queue))
    await eventually(job.describe, refuses_updates)
    taking.cancel()
    assert refused(await changing) == AWAY
    return service, own, job_id


async def lose_tasks(client: Client, task_queue: str) -> None:
    """Take every workflow task, as a worker that is killed in that moment does."""
    poll = PollWorkflowTaskQueueRequest(
        namespace=client.namespace, task_queue=TaskQueue(name=task_queue), identity="about to be killed"
    )
    while True:
        await client.workflow_service.poll_workflow_task_queue(poll)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The workflows that updates are sent to."""
    sent: list[str] = []
    execute = WorkflowHandle.execute_update

    async def noted(self: WorkflowHandle[Any, Any], *args: Any, **options: Any) -> Any:
        sent.append(self.id)
        return await execute(self, *args, **options)

    monkeypatch.setattr(WorkflowHandle, "execute_update", noted)
    return sent


async def test_no_update_is_sent_while_it_would_be_refused(
    losing: tuple[Service, Settings, str], client: Client, sent: list[str]
) -> None:
    service, own, job_id = losing

    assert refused(await service.change(job_id, 7200, meta="new")) == AWAY
    assert refused(await service.trigger(job_id)) == AWAY
    assert sent == []

    async with delivering(client, own):
        await eventually(lambda: service.change(job_id, 7200, meta="newer"), lambda answer: answer.status_code == 200)
    assert (await service.find(job_id))["meta"] == "newer"


async def test_a_run_is_not_woken_while_it_would_refuse(
    losing: tuple[Service, Settings, str], client: Client, sent: list[str]
) -> None:
    service, own, job_id = losing
    first = await first_run(client, service, job_id)
    continued = ContinuedRun(workflow_id=f"{service.db}/c/{job_id}", first_run_id=first, run_id="before")

    with pytest.raises(ApplicationError, match="its workflow task was lost"):
        await Wakes(client).wake(continued)
    assert sent == []

    async with delivering(client, own):
        await eventually(partial(woken, client, continued))


async def woken(client: Client, continued: ContinuedRun) -> bool:
    try:
        await Wakes(client).wake(continued)
    except ApplicationError:
        return False
    return True


async def test_an_update_that_was_refused_is_sent_again_once_it_would_be_taken(
    losing: tuple[Service, Settings, str], client: Client, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, own, job_id = losing
    looks = iter([False])
    monkeypatch.setattr("api.jobs.refuses_updates", lambda run: next(looks, refuses_updates(run)))
    async with serving(create_app(replace(own, request_timeout=30))) as patient:
        changing = asyncio.create_task(Service(patient, service.db).change(job_id, 7200, meta="new"))
        await eventually(lambda: asyncio.sleep(0, sent))
        async with delivering(client, own):
            assert (await changing).status_code == 200

    assert len(sent) == 2
    assert (await service.find(job_id))["meta"] == "new"

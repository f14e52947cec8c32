"""Jobs whose workflow tasks are lost: an update waits until Temporal takes it, as one that it refuses does harm."""

import asyncio
import uuid
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from msgspec.structs import replace
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import PollWorkflowTaskQueueRequest
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from activities.wake import Wakes
from api.app import create_app
from api.jobs import Jobs
from tests.conftest import delivering, serving
from tests.support.job_histories import workflow_of
from tests.support.ledger import AnotherWorker, first_run
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


async def test_an_update_that_was_refused_is_not_sent_again(
    losing: tuple[Service, Settings, str], sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker may have taken it from an earlier call: as another update it could be refused for its own effect."""
    service, _, job_id = losing
    monkeypatch.setattr("api.jobs.refuses_updates", lambda _: False)

    assert refused(await service.change(job_id, 7200, meta="new")) == AWAY

    assert len(sent) == 1


async def test_those_that_wait_for_their_turn_look_anew(
    losing: tuple[Service, Settings, str], client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, own, job_id = losing
    waiting = set()

    def noted(run: WorkflowExecutionDescription) -> bool:
        refuses = refuses_updates(run)
        if refuses:
            waiting.add(asyncio.current_task())
        return refuses

    monkeypatch.setattr("api.jobs.refuses_updates", noted)
    asking = in_turn(monkeypatch)
    async with serving(create_app(replace(own, request_timeout=30))) as patient:
        changes = [asyncio.create_task(Service(patient, service.db).change(job_id, 7200)) for _ in range(5)]
        await eventually(lambda: asyncio.sleep(0, len(asking) == len(changes) and waiting))
        async with delivering(client, own):
            answers = await asyncio.gather(*changes)

    assert [answer.status_code for answer in answers] == [200] * len(changes)
    assert len(waiting) == 1


def in_turn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the jobs that are changed, one for each request that has come to wait for its turn."""
    jobs: list[str] = []
    turn = Jobs._turn

    def noted(self: Jobs, job_workflow_id: str) -> asyncio.Lock:
        jobs.append(job_workflow_id)
        return turn(self, job_workflow_id)

    monkeypatch.setattr(Jobs, "_turn", noted)
    return jobs


async def test_the_ledger_is_not_changed_for_an_update_that_is_not_sent(
    losing: tuple[Service, Settings, str], client: Client, another: AnotherWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each look at a run that was reset would outdate its attempts once more."""
    service, _, job_id = losing
    monkeypatch.setattr("api.jobs.was_reset", lambda _: True)

    assert refused(await service.change(job_id, 7200, meta="new")) == AWAY

    assert await another.ledger.find(await first_run(client, service, job_id)) is None


async def test_a_job_that_has_ended_is_not_woken_by_way_of_another_with_its_id(
    losing: tuple[Service, Settings, str], client: Client, sent: list[str]
) -> None:
    service, _, job_id = losing

    await Wakes(client).wake(
        ContinuedRun(workflow_id=f"{service.db}/c/{job_id}", first_run_id=str(uuid.uuid4()), run_id="before")
    )

    assert sent == []


async def test_an_update_that_temporal_has_no_room_for_may_have_taken_effect(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Temporal sends one that it forgot again by itself, and only the answer to that is seen: so this is no 429."""
    job_id = await service.create(3600)

    async def no_room(*_: Any, **__: Any) -> None:
        raise RPCError("workflow history size exceeds limit", RPCStatusCode.RESOURCE_EXHAUSTED, b"")

    monkeypatch.setattr(WorkflowHandle, "execute_update", no_room)

    assert refused(await service.change(job_id, 7200)) == AWAY
    assert refused(await service.trigger(job_id)) == AWAY

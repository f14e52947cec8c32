"""Jobs whose workflow task Temporal has lost: without a look at what is overdue, they would never be delivered."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace
from temporalio.client import Client, WorkflowHistoryEventAsyncIterator
from temporalio.service import RPCError, RPCStatusCode

from activities import overdue
from activities.overdue import OverdueJobs
from api.app import create_app
from devstack.temporal import Temporal
from tests.conftest import serving
from tests.support.holds import held_count, pause, resume, wait_until_held, wait_until_listed
from tests.support.ledger import AnotherWorker, first_run
from tests.support.receiver import Received, Receiver, response
from tests.support.refusals import AWAY
from tests.support.service import Service, refused
from tests.support.waiting import eventually
from timemachine.domain.errors import UnavailableError
from timemachine.settings import Settings
from timemachine.temporal.visibility import all_due_jobs_query
from worker import run

MISSED = timedelta(0)
WOKEN = "an overdue job had no workflow task, and is woken"


async def refuse(_: Received) -> bytes:
    return response(503, headers="retry-after: 600\r\n")


async def never(_: Received) -> bytes:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.fixture
def own(settings: Settings, temporal: Temporal, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with a task queue that no other worker serves, and an API that does not wait long for one."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal.address)
    monkeypatch.setattr(overdue, "OVERDUE", MISSED)
    return replace(settings, task_queue=f"overdue-{uuid.uuid4().hex}", request_timeout=1.5)


@pytest.fixture
async def own_service(own: Settings, receiver: Receiver, db: str) -> AsyncIterator[Service]:
    """A service without a worker."""
    async with serving(create_app(own)) as api:
        service = Service(api, db)
        await service.add_route(receiver.url)
        yield service


@asynccontextmanager
async def running_worker(own: Settings) -> AsyncIterator[None]:
    """The worker's program, in the tests' own loop."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run(own, stop))
        yield
        stop.set()


async def lose_task(service: Service, client: Client, job_id: str) -> None:
    """Have a job come due while a change of it waits for a worker, and have Temporal lose the task of the change."""
    assert refused(await service.change(job_id, 60)) == AWAY
    # Whatever request it fails under the workflow's lock, the history service forgets what was only in its memory.
    elsewhere = client.get_workflow_handle(f"{service.db}/c/{job_id}", first_execution_run_id=str(uuid.uuid4()))
    with pytest.raises(RPCError) as error:
        await elsewhere.execute_update("wake", rpc_timeout=timedelta(seconds=5))
    assert error.value.status is RPCStatusCode.NOT_FOUND


def told_of(service: Service, caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Return what was logged of the service's jobs by looks for overdue ones: the workflow's id, and the message."""
    told = [record for record in caplog.records if record.name == "activities.overdue"]
    jobs = [(vars(record)["workflow_id"], record.message) for record in told]
    return [(workflow_id, message) for workflow_id, message in jobs if workflow_id.startswith(f"{service.db}/")]


async def wait_for_visibility(client: Client, service: Service, job_id: str) -> None:
    query = f"WorkflowId = '{service.db}/c/{job_id}'"
    async with asyncio.timeout(20):
        while not (await client.count_workflows(query)).count:
            await asyncio.sleep(0.05)


async def test_a_job_whose_task_was_lost_is_delivered(
    own_service: Service, own: Settings, client: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overdue, "LOOK_EVERY", 0.3)
    job_id = await own_service.create(0.7)
    await lose_task(own_service, client, job_id)

    async with running_worker(own):
        await receiver.wait_for(job_id)
        await own_service.wait_for_state(job_id, "delivered")

    assert len(receiver.of(job_id)) == 1


@pytest.fixture
def in_db_only(db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no job of another test found, of which some are left, and become overdue at any time."""

    def of_db(due_before: datetime) -> str:
        return f"{all_due_jobs_query(due_before)} AND WorkflowId STARTS_WITH '{db}/'"

    monkeypatch.setattr(overdue, "all_due_jobs_query", of_db)


@pytest.mark.usefixtures("in_db_only")
async def test_jobs_that_nobody_attends_to_are_counted(
    own_service: Service, own: Settings, client: Client, another: AnotherWorker
) -> None:
    """As long as no attempt of them is under way; also those of a task queue that has no worker."""
    overdue_jobs = OverdueJobs(client, another.ledger, replace(own, task_queue="another"))
    job_id = await own_service.create(0)
    await eventually(overdue_jobs.count, lambda found: found == 1)

    await another.begin(own_service.db, await first_run(client, own_service, job_id))

    assert await overdue_jobs.count() == 0


@pytest.mark.usefixtures("in_db_only")
async def test_a_job_that_waits_within_the_spread_of_a_resume_is_not_counted(
    service: Service, client: Client, settings: Settings, another: AnotherWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overdue, "OVERDUE", MISSED)
    overdue_jobs = OverdueJobs(client, another.ledger, settings)
    await pause(service)
    job_id = await service.create(0)
    await wait_until_held(service, job_id)
    await wait_until_listed(client, service, 1)
    assert await overdue_jobs.count() == 0

    await resume(service, spread=3600)
    await eventually(lambda: held_count(client, service), lambda held: held == 0)

    assert await overdue_jobs.count() == 0


async def test_a_job_that_cannot_be_read_keeps_no_other_from_being_woken(
    own_service: Service, own: Settings, client: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overdue, "LOOK_EVERY", 0.3)
    job_id = await own_service.create(0.7)
    await lose_task(own_service, client, job_id)
    unreadable = await own_service.create(0.7)
    await lose_task(own_service, client, unreadable)
    await wait_for_visibility(client, own_service, unreadable)
    read = WorkflowHistoryEventAsyncIterator.fetch_next_page

    async def read_others(events: WorkflowHistoryEventAsyncIterator, **more: Any) -> None:
        if events._input.id.endswith(unreadable):
            raise RPCError("history corrupted", RPCStatusCode.DATA_LOSS, b"")
        await read(events, **more)

    monkeypatch.setattr(WorkflowHistoryEventAsyncIterator, "fetch_next_page", read_others)
    async with running_worker(own):
        await receiver.wait_for(job_id)
        assert receiver.of(unreadable) == []
        monkeypatch.undo()


async def test_a_lost_job_is_woken_while_others_are_read(
    own_service: Service,
    own: Settings,
    client: Client,
    another: AnotherWorker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A busy Temporal takes its time for each job that is late: those that are overdue for longer, and many more."""
    late = [await own_service.create(0) for _ in range(3)]
    lost = await own_service.create(0.7)
    await lose_task(own_service, client, lost)
    late += [await own_service.create(0) for _ in range(overdue.LOOKS_AT_A_TIME)]
    for job_id in [lost, *late]:
        await wait_for_visibility(client, own_service, job_id)
    is_read, in_vain = asyncio.Event(), []
    read = WorkflowHistoryEventAsyncIterator.fetch_next_page

    async def read_lost_first(events: WorkflowHistoryEventAsyncIterator, **more: Any) -> None:
        if events._input.id.endswith(lost):
            is_read.set()
        try:
            await asyncio.wait_for(is_read.wait(), 10)
        except TimeoutError:
            in_vain.append(events._input.id)
        await read(events, **more)

    monkeypatch.setattr(WorkflowHistoryEventAsyncIterator, "fetch_next_page", read_lost_first)
    monkeypatch.setattr(overdue, "ANSWER_TIME", timedelta(seconds=0.1))
    await OverdueJobs(client, another.ledger, own).look()

    woken = [workflow_id for workflow_id, message in told_of(own_service, caplog) if message == WOKEN]
    assert woken == [f"{own_service.db}/c/{lost}"]
    assert in_vain == []


async def test_jobs_of_another_task_queue_are_left_to_its_workers(
    own_service: Service, own: Settings, client: Client, another: AnotherWorker, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = await own_service.create(0.7)
    await lose_task(own_service, client, job_id)
    await wait_for_visibility(client, own_service, job_id)

    await OverdueJobs(client, another.ledger, replace(own, task_queue="others")).look()

    assert told_of(own_service, caplog) == []


@pytest.mark.parametrize("work", ["held", "between attempts", "attempted just now"])
async def test_a_job_that_is_at_work_is_left_alone(
    service: Service,
    client: Client,
    settings: Settings,
    another: AnotherWorker,
    receiver: Receiver,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    work: str,
) -> None:
    monkeypatch.setattr(overdue, "OVERDUE", MISSED)
    if work == "held":
        await pause(service)
    elif work == "between attempts":
        receiver.answer = refuse
    else:
        receiver.answer = never
    job_id = await service.create(0)
    if work == "held":
        await wait_until_held(service, job_id)
        await wait_until_listed(client, service, 1)
    else:
        await receiver.wait_for(job_id)
        await wait_for_visibility(client, service, job_id)

    await OverdueJobs(client, another.ledger, settings).look()

    assert told_of(service, caplog) == []


async def test_what_cannot_be_looked_for_is_looked_for_again(
    client: Client, settings: Settings, another: AnotherWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overdue, "LOOK_EVERY", 0.01)
    looked = asyncio.Semaphore(0)
    jobs = OverdueJobs(client, another.ledger, settings)

    async def look() -> None:
        looked.release()
        raise UnavailableError

    monkeypatch.setattr(jobs, "look", look)
    watching = asyncio.create_task(jobs.watch())
    async with asyncio.timeout(10):
        for _ in range(3):
            await looked.acquire()
    watching.cancel()

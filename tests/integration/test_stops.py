"""Stops of operations at awkward moments: what was begun is done, and the figures are exact."""

import asyncio
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import Client, WorkflowExecution, WorkflowExecutionStatus

from activities import cancel_many
from activities.bulk import BulkRun
from activities.cancel import Cancels
from activities.redelivery import Redeliveries
from activities.release import Releases
from tests.integration.test_bulk import redeliver_all
from tests.integration.test_cancel_many import cancel, until_ended
from tests.integration.test_operations import (
    AWAY,
    failed_jobs,
    script,
    stop,
    the_only,
    wait_for_the_stop,
    waiting_for,
)
from tests.support.holds import hold, resume
from tests.support.receiver import Receiver, take
from tests.support.service import Service
from tests.support.waiting import eventually
from timemachine.domain.cancels import CancelJobs
from timemachine.domain.job_filter import JobFilter
from timemachine.settings import Settings
from timemachine.temporal import operations
from timemachine.temporal.operations import find_operation, start_operation

OK = {"status": "ok"}


async def until_cancelled() -> None:
    while not activity.is_cancelled():
        activity.heartbeat(*activity.info().heartbeat_details)
        await asyncio.sleep(0.05)


async def test_a_cancel_that_is_stopped_tells_each_workflow_whose_job_the_ledger_has_cancelled(
    service: Service, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [await service.create(3600, labels=["a"]) for _ in range(3)]
    await eventually(lambda: client.count_workflows(f"TimemachineDb = '{service.db}'"), lambda found: found.count == 3)
    request, begun, all_begun = Cancels._request_cancel, count(1), asyncio.Event()

    async def slowly(cancels: Cancels, run: Any) -> None:
        if next(begun) == 3:
            all_begun.set()
        await until_cancelled()
        await request(cancels, run)

    monkeypatch.setattr(Cancels, "_request_cancel", slowly)
    operation = await cancel(service, label="a")
    await all_begun.wait()
    await asyncio.sleep(0.2)  # until `_cancel_all` waits for its last steps
    assert (await stop(service, operation["id"])).json() == OK

    stopped = await until_ended(service, operation["id"])
    states = [(await service.find(job_id))["state"] for job_id in ids]
    for job_id in ids:
        described = await client.get_workflow_handle(f"{service.db}/c/{job_id}").describe()
        told = described.raw_description.workflow_extended_info.cancel_requested
        assert told or described.status is not WorkflowExecutionStatus.RUNNING
    assert stopped["done"] == states.count("cancelled")


@pytest.mark.usefixtures("worker")
async def test_a_cancel_that_is_stopped_counts_jobs_whose_workflows_have_not_closed_yet(
    alone: tuple[Service, Settings], client: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody serves the jobs' queue, as for the seconds after their worker's death."""
    service, _ = alone
    ids = [await service.create(3600, labels=["a"]) for _ in range(5)]
    await eventually(lambda: client.count_workflows(f"TimemachineDb = '{service.db}'"), lambda found: found.count == 5)
    monkeypatch.setattr(cancel_many, "AT_ONCE", 1)
    until_third = wait_for_the_stop(monkeypatch, cancel_many._Cancel, "_cancel")
    asked = CancelJobs(filter=JobFilter(db=service.db, label="a"))
    operation_id = await start_operation(
        client, asked.key, asked, task_queue=settings.task_queue, summary="x", wanted=asked.filter
    )
    await until_third()
    await eventually(lambda: find_operation(client, service.db, operation_id), lambda seen: seen.counts)
    assert (await stop(service, operation_id)).json() == OK

    stopped = await until_ended(service, operation_id)
    states = [(await service.find(job_id))["state"] for job_id in ids]
    assert stopped["done"] == states.count("cancelled") > 0


async def test_a_redelivery_that_is_stopped_counts_a_start_that_was_answered_by_an_error(
    service: Service, client: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the answer of Temporal is lost."""
    await failed_jobs(service, client, receiver, 5)
    receiver.answer = take
    started, steps, third = Redeliveries._started, count(1), asyncio.Event()

    async def in_doubt(redeliveries: Redeliveries, failure: WorkflowExecution) -> bool:
        step, is_started = next(steps), await started(redeliveries, failure)
        if step == 3:
            third.set()
            await until_cancelled()
            raise AWAY
        return is_started

    monkeypatch.setattr(Redeliveries, "_started", in_doubt)
    await redeliver_all(service)
    operation = await the_only(service, "redelivery")
    await third.wait()
    assert (await stop(service, operation["id"])).json() == OK

    assert (await until_ended(service, operation["id"]))["done"] == 3


async def test_a_redelivery_that_is_stopped_after_a_kill_counts_what_was_not_told(
    service: Service, client: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heartbeats go out every 2 s: of four jobs the killed worker had told none."""
    await failed_jobs(service, client, receiver, 5)
    receiver.answer = take
    heartbeat, started, steps, again = BulkRun.heartbeat, Redeliveries._started, count(1), asyncio.Event()

    def not_sent_yet(run: BulkRun, *progress: Any) -> None:
        if activity.info().attempt > 1 or progress[0].started == 0:
            heartbeat(run, *progress)

    async def killed_at_the_fifth(redeliveries: Redeliveries, failure: WorkflowExecution) -> bool:
        step = next(steps)
        if step == 5:
            raise AWAY
        if step == 6:
            again.set()
            await until_cancelled()
        return await started(redeliveries, failure)

    monkeypatch.setattr(BulkRun, "heartbeat", not_sent_yet)
    monkeypatch.setattr(Redeliveries, "_started", killed_at_the_fifth)
    await redeliver_all(service)
    operation = await the_only(service, "redelivery")
    await again.wait()
    assert (await stop(service, operation["id"])).json() == OK

    assert (await until_ended(service, operation["id"]))["done"] == 4


async def test_a_release_is_stopped_in_the_moment_in_which_it_continues_as_new(
    service: Service, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Temporal takes the cancel of a run that has ended for a success."""
    monkeypatch.setattr("workflows.job.HOLD_CHECKS", (timedelta(hours=1),))
    suggested = "temporalio.workflow.Info.is_continue_as_new_suggested"
    monkeypatch.setattr(suggested, lambda _: True)
    await hold(service, client, 1)
    gate = asyncio.Event()
    script(monkeypatch, Releases, "_signal", 1, partial(waiting_for, gate))
    await resume(service)
    operation = await the_only(service, "release")
    last_run, looks = operations._last_run, count(1)

    async def then_it_continues(client: Client, workflow_id: str, run_id: str) -> Any:
        run = await last_run(client, workflow_id, run_id)
        if next(looks) == 2:  # that of `stop_operation`
            gate.set()
            await eventually(
                client.get_workflow_handle(workflow_id, run_id=run.run_id).describe,
                lambda seen: seen.status is WorkflowExecutionStatus.CONTINUED_AS_NEW,
            )
            monkeypatch.setattr(suggested, lambda _: False)
        return run

    monkeypatch.setattr(operations, "_last_run", then_it_continues)
    assert (await stop(service, operation["id"])).json() == OK

    assert (await until_ended(service, operation["id"]))["state"] == "stopped"

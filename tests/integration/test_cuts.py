"""Jobs whose history is cut: what is asked of a job in that moment is not lost with its old run."""

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import httpx
import pytest
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowExecutionStatus, WorkflowHandle

from tests.conftest import delivering
from tests.support.cuts import until_continued
from tests.support.holds import pause, resume, wait_until_held
from tests.support.job_histories import wait_for_status, workflow_of
from tests.support.ledger import AnotherWorker, first_run
from tests.support.receiver import Receiver
from tests.support.refusals import AWAY, TOO_LATE
from tests.support.service import ROUTE, Service, refused
from tests.support.waiting import eventually
from timemachine.domain.jobs import HISTORY_LIMIT
from timemachine.domain.outcomes import RowState
from timemachine.settings import Settings
from timemachine.temporal.job_runs import describe_job

A_CHANGE_AND_THE_CUT = 30
"""Events that come on top of the limit at the most."""

FEW_CHANGES = 5
"""Changes of a job after which its next one is beyond the limit."""

LARGE = "x" * 250_000
LARGE_CHANGES = 12
"""Changes of a large job that are more than 4 MB of history, of which Temporal suggests to begin a new one."""

JOBS = 12
HELD_JOBS = 8
"""Fewer, for each looks at its route, and is cut, again and again while the others are being cancelled."""


async def changed_and_cancelled(service: Service, job_id: str, due_in: float) -> list[tuple[int, str | None]]:
    """Send a DELETE and a PUT at once, and return both answers."""
    both = await asyncio.gather(service.cancel(job_id), service.change(job_id, due_in, meta="new"))
    return [answer_of(answer) for answer in both]


def answer_of(answer: httpx.Response) -> tuple[int, str | None]:
    return answer.status_code, answer.json().get("code")


@pytest.mark.parametrize("changes", [1, 2, 3])
async def test_a_waiting_job_that_is_cut_is_cancelled(cut: Service, receiver: Receiver, changes: int) -> None:
    job_ids = [await cut.create(3600) for _ in range(JOBS)]

    async def play(job_id: str) -> None:
        for n in range(changes):
            await cut.change(job_id, 3600 + n)
        answers = await changed_and_cancelled(cut, job_id, 7200)
        assert answers[0] == (200, None), answers
        assert answers[1] in [(200, None), TOO_LATE, AWAY], answers
        assert (await cut.find(job_id))["state"] == "cancelled"

    await asyncio.gather(*map(play, job_ids))


async def test_a_held_job_that_is_cut_is_cancelled(
    cut: Service, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.job.HOLD_CHECKS", (timedelta(seconds=0.3),))
    await cut.api.post(f"/route/{cut.db}/{ROUTE}/pause")
    job_ids = [await cut.create(0, meta="old") for _ in range(HELD_JOBS)]
    for job_id in job_ids:
        await wait_until_held(cut, job_id)
    ends: Counter[str] = Counter()

    async def play(n: int, job_id: str) -> None:
        await asyncio.sleep(n * 0.07)  # each at another moment between two looks
        answer, _ = await changed_and_cancelled(cut, job_id, 0)
        while answer == AWAY:
            answer = answer_of(await cut.cancel(job_id))
        assert answer == (200, None)
        ends[(await cut.wait_for_end(job_id))["state"]] += 1

    await asyncio.gather(*(play(n, job_id) for n, job_id in enumerate(job_ids)))
    await cut.api.post(f"/route/{cut.db}/{ROUTE}/resume", json={"spread": 0})
    assert ends == {"cancelled": HELD_JOBS}
    assert receiver.received == []


async def test_an_operators_cancel_that_comes_with_the_cut_is_in_the_ledger(
    alone: tuple[Service, Settings], client: Client, another: AnotherWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a job whose attempt may have been taken would end as cancelled."""
    service, own = alone
    job_id = await service.create(3600)
    job, run = workflow_of(client, service, job_id), await first_run(client, service, job_id)
    async with delivering(client, own):
        assert (await service.change(job_id, 3600)).status_code == 200
    monkeypatch.setattr("timemachine.domain.jobs.HISTORY_LIMIT", 1)
    changing = asyncio.create_task(service.change(job_id, 7200))
    await eventually(lambda: has_task(job))
    await job.cancel()

    async with delivering(client, own):
        await wait_for_status(client, service, job_id, WorkflowExecutionStatus.CANCELED)
        await changing

    assert (await another.row(run)).state is RowState.CANCELLED


async def has_task(job: WorkflowHandle[Any, Any]) -> bool:
    """Return whether a job that has a start delay has got a workflow task: what asks for it has been sent."""
    return (await job.describe()).raw_description.HasField("pending_workflow_task")


@pytest.mark.parametrize("held", [False, True], ids=["waiting", "held"])
async def test_a_job_that_was_moved_until_it_was_cut_is_delivered_at_the_last_time(
    cut: Service, client: Client, receiver: Receiver, held: bool
) -> None:
    """The run that goes on begins with what is left of the first delay, which nothing ends that is asked of it."""
    job_id = await cut.create(3600, meta="old")
    if held:
        await pause(cut)
        assert (await cut.trigger(job_id)).status_code == 200
        await wait_until_held(cut, job_id)

    await until_continued(cut, client, job_id, due_in=5)
    if held:
        await resume(cut)

    (received,) = await receiver.wait_for(job_id)
    assert received.body == b"null"
    assert received.late_ms >= 0
    assert received.headers["timemachine-trigger-time"] == str((await cut.find(job_id))["trigger_time"])


async def test_a_job_that_is_moved_on_and_on_has_only_short_histories(service: Service, client: Client) -> None:
    job_id = await service.create(3600)
    job = workflow_of(client, service, job_id)
    lengths = {(first := await job.describe()).run_id: first.history_length}

    for turn in range(100):
        assert (await service.change(job_id, 3600 + turn)).status_code == 200
        run = await job.describe()
        lengths[run.run_id] = run.history_length

    assert len(lengths) > 1
    assert max(lengths.values()) < HISTORY_LIMIT + A_CHANGE_AND_THE_CUT


async def test_a_large_job_goes_on_as_a_new_run_before_temporal_ends_it(service: Service, client: Client) -> None:
    """Its history is of few events, and of many bytes."""
    job_id = await service.create(3600, meta=LARGE)
    job = workflow_of(client, service, job_id)
    first = (await job.describe()).run_id

    for turn in range(LARGE_CHANGES):
        assert (await service.change(job_id, 3600 + turn, meta=LARGE)).status_code == 200

    await eventually(job.describe, lambda run: run.run_id != first)
    assert (await service.cancel(job_id)).status_code == 200


async def test_a_job_from_before_there_was_a_limit_has_one_from_its_next_change_on(
    cut: Service, client: Client
) -> None:
    with pytest.MonkeyPatch.context() as before:
        before.setattr("timemachine.domain.jobs.HISTORY_LIMIT", 0)
        job_id = await cut.create(3600)
        for turn in range(FEW_CHANGES):
            assert (await cut.change(job_id, 3600 + turn)).status_code == 200
        first = (await workflow_of(client, cut, job_id).describe()).run_id

    assert (await cut.change(job_id, 1800)).status_code == 200

    await eventually(workflow_of(client, cut, job_id).describe, lambda run: run.run_id != first)


async def test_a_held_job_that_is_cut_goes_on_to_check_its_route_as_seldom_as_before(
    cut: Service, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "temporalio.workflow")
    monkeypatch.setattr("workflows.job.HOLD_CHECKS", (*[timedelta(seconds=0.1)] * 4, timedelta(hours=1)))
    await pause(cut)
    job_id = await cut.create(0)
    job = workflow_of(client, cut, job_id)
    first = (await job.describe()).run_id

    await eventually(lambda: timers(job), lambda found: found[-1:] == [3600])

    assert (await job.describe()).run_id != first
    assert sum(record.getMessage().startswith("job held") for record in caplog.records) == 1
    assert (await cut.cancel(job_id)).status_code == 200


async def test_a_held_job_that_is_delivered_once_more_begins_its_checks_anew(
    service: Service, client: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timemachine.domain.jobs.HISTORY_LIMIT", 50)
    monkeypatch.setattr("workflows.job.HOLD_CHECKS", (*[timedelta(seconds=0.1)] * 4, timedelta(hours=1)))
    await pause(service)
    job_id = await service.create(0)
    job = workflow_of(client, service, job_id)
    await eventually(lambda: timers(job), lambda found: found[-1:] == [3600])
    await resume(service)
    await service.wait_for_state(job_id, "delivered")

    await pause(service)
    assert (await service.api.post(f"{service.jobs}/{job_id}/redeliver")).status_code == 200

    assert (await eventually(lambda: timers(job)))[0] == 0
    assert (await service.cancel(job_id)).status_code == 200


async def timers(job: WorkflowHandle[Any, Any]) -> list[int]:
    """Return for how many seconds the latest run of a job has set timers, in their order."""
    started = [
        event.timer_started_event_attributes.start_to_fire_timeout.ToTimedelta()
        async for event in job.fetch_history_events()
        if event.HasField("timer_started_event_attributes")
    ]
    return [round(wait.total_seconds()) for wait in started]


async def test_a_job_that_is_cut_after_its_cancel_looked_at_it_is_cancelled(
    cut: Service, client: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await cut.create(3600)
    describe, job = describe_job, client.get_workflow_handle(f"{cut.db}/c/{job_id}")

    async def describe_and_cut(client: Client, workflow_id: str) -> WorkflowExecutionDescription:
        found = await describe(client, workflow_id)
        with pytest.MonkeyPatch.context() as undo:
            undo.setattr("api.jobs.describe_job", describe)
            while (await job.describe()).run_id == found.run_id:
                await cut.change(job_id, 1800)
        return found

    monkeypatch.setattr("api.jobs.describe_job", describe_and_cut)

    assert answer_of(await cut.cancel(job_id)) == (200, None)
    assert (await cut.find(job_id))["state"] == "cancelled"


async def test_a_held_job_that_is_delivered_once_more_cannot_be_changed(service: Service, receiver: Receiver) -> None:
    """It would come with other content under a `webhook-id` that the receiver may have taken already."""
    job_id = await service.create(0)
    await service.wait_for_state(job_id, "delivered")
    await service.api.post(f"/route/{service.db}/{ROUTE}/pause")
    again: httpx.Response = await service.api.post(f"{service.jobs}/{job_id}/redeliver")
    assert again.status_code == 200
    await wait_until_held(service, job_id)

    assert refused(await service.change(job_id, 0, meta="other")) == TOO_LATE

    await service.api.post(f"/route/{service.db}/{ROUTE}/resume", json={"spread": 0})
    first, second = await receiver.wait_for(job_id, 2)
    assert (first.body, first.headers["webhook-id"]) == (second.body, second.headers["webhook-id"])

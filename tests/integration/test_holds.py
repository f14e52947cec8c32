"""Routes that are paused or disabled hold their jobs, without using up attempts, and release them again."""

import logging
from datetime import datetime, timedelta

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowHistory
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner

from tests.support.holds import pause, resume, wait_until_held, wait_until_listed
from tests.support.job_histories import events, workflow_of
from tests.support.ledger import AnotherWorker, first_run
from tests.support.receiver import Received, Receiver, response, take
from tests.support.refusals import NO_SUCH_ROUTE, TOO_LATE
from tests.support.service import ROUTE, Service, a_job, refused
from tests.support.waiting import eventually
from timemachine.domain.jobs import Job
from timemachine.postgres.delivery_ledger import AttemptReport
from timemachine.temporal.payloads import DATA_CONVERTER
from workflows.job import JobWorkflow

TIMER_FIRED = EventType.EVENT_TYPE_TIMER_FIRED
SHORTLY = timedelta(milliseconds=10)


async def test_a_paused_route_holds_its_jobs_and_resume_lets_them_go(
    service: Service, receiver: Receiver, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "temporalio.workflow")
    await pause(service)
    job_ids = [await service.create(0) for _ in range(5)]
    held = [await wait_until_held(service, job_id) for job_id in job_ids]
    assert {(job["state"], job["held"]) for job in held} == {("scheduled", "the route is paused: maintenance")}
    assert receiver.received == []
    await wait_until_listed(client, service, 5)

    await resume(service)

    for job_id in job_ids:
        (received,) = await receiver.wait_for(job_id)
        assert received.headers["timemachine-attempt"] == "1"
        assert "held" not in await service.wait_for_state(job_id, "delivered")
    for event in ("job held", "job released"):
        logged = [vars(record)["job_id"] for record in caplog.records if record.getMessage().startswith(event)]
        assert sorted(logged) == sorted(job_ids)


async def test_the_release_is_spread(service: Service, receiver: Receiver, client: Client) -> None:
    await pause(service)
    job_ids = [await service.create(0) for _ in range(12)]
    for job_id in job_ids:
        await wait_until_held(service, job_id)
    await wait_until_listed(client, service, 12)

    await resume(service, spread=4)

    arrivals = [(await receiver.wait_for(job_id))[0].at_ms for job_id in job_ids]
    assert max(arrivals) - min(arrivals) > 1000


async def test_a_held_job_that_was_not_attempted_can_be_changed_and_cancelled(
    service: Service, receiver: Receiver
) -> None:
    await pause(service)
    changed, cancelled = await service.create(0, meta="old"), await service.create(0)
    await wait_until_held(service, changed)
    await wait_until_held(service, cancelled)

    assert (await service.change(changed, 1, meta="new")).json() == {"status": "ok"}
    assert (await service.cancel(cancelled)).json() == {"status": "ok"}
    await resume(service)

    (received,) = await receiver.wait_for(changed)
    assert received.body == b'"new"'
    assert receiver.of(cancelled) == []


async def test_a_held_job_between_attempts_keeps_count(service: Service, receiver: Receiver, client: Client) -> None:
    async def third_time(received: Received) -> bytes:
        return response(500 if len(receiver.of(received.job_id)) < 3 else 200)

    receiver.answer = third_time
    job_id = await service.create(0, retry={"waits": [0.5, 0.5]})
    await receiver.wait_for(job_id)
    await pause(service)
    job = await wait_until_held(service, job_id)
    made = job["attempts"]
    assert job["state"] == "delivering"
    assert refused(await service.change(job_id, 60)) == TOO_LATE
    await wait_until_listed(client, service, 1)

    await resume(service)

    received = await receiver.wait_for(job_id, 3)
    assert [request.headers["timemachine-attempt"] for request in received] == ["1", "2", "3"]
    assert len({request.headers["webhook-id"] for request in received}) == 1
    assert 1 <= made <= 2
    assert (await service.wait_for_state(job_id, "delivered"))["attempts"] == 3


async def test_a_route_is_paused_once_and_says_why_and_since_when(service: Service) -> None:
    await pause(service, "first")
    first = (await service.api.get(f"/route/{service.db}/{ROUTE}")).json()
    await pause(service, "second")

    assert (await service.api.get(f"/route/{service.db}/{ROUTE}")).json() == first
    assert (first["state"], first["reason"]) == ("paused", "first")


async def test_a_resumed_route_is_active_again(service: Service) -> None:
    await pause(service)
    await resume(service)

    route = (await service.api.get(f"/route/{service.db}/{ROUTE}")).json()

    assert route["state"] == "active"
    assert "reason" not in route


@pytest.mark.parametrize("action", ["pause", "resume"])
async def test_neither_needs_a_body_but_both_need_a_route(service: Service, action: str) -> None:
    assert (await service.api.post(f"/route/{service.db}/{ROUTE}/{action}")).json() == {"status": "ok"}
    assert refused(await service.api.post(f"/route/{service.db}/nowhere/{action}")) == NO_SUCH_ROUTE


async def test_a_disabled_route_holds_what_comes_after(service: Service, receiver: Receiver, client: Client) -> None:
    async def gone(_: Received) -> bytes:
        return response(410)

    receiver.answer = gone
    await service.wait_for_state(await service.create(0), "failed")
    job_id = await service.create(0)
    job = await wait_until_held(service, job_id)
    assert job["held"] == "the route is disabled: the receiver answered 410 Gone"
    await wait_until_listed(client, service, 1)

    async def take(_: Received) -> bytes:
        return response(200)

    receiver.answer = take
    await resume(service)

    assert await receiver.wait_for(job_id)


async def test_a_held_job_survives_very_many_changes(service: Service, receiver: Receiver, client: Client) -> None:
    """Its history is cut before Temporal would end it."""
    await pause(service)
    job_id = await service.create(0)
    workflow = client.get_workflow_handle(f"{service.db}/c/{job_id}")
    first = (await workflow.describe()).run_id

    for n in range(10):
        await wait_until_held(service, job_id)
        answer = await service.change(job_id, 0, meta=[n, "x" * 250_000])
        assert answer.status_code == 200, answer.text
    await wait_until_held(service, job_id)
    assert (await workflow.describe()).run_id != first
    await resume(service)
    (received,) = await receiver.wait_for(job_id)

    assert received.body.startswith(b"[9,")
    assert received.headers["webhook-id"] == f"msg_{first.replace('-', '')}"


async def test_a_job_that_is_held_for_very_long_keeps_count_of_its_attempts(
    cut: Service, receiver: Receiver, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.job.HOLD_CHECKS", (timedelta(seconds=0.05),))

    async def refuse(_: Received) -> bytes:
        await pause(cut)
        return response(500)

    receiver.answer = refuse
    job = a_job(0)
    await cut.api.post(cut.jobs, json=job)
    workflow = client.get_workflow_handle(f"{cut.db}/c/{job['id']}")
    first = (await workflow.describe()).run_id
    await eventually(workflow.describe, lambda run: run.run_id != first)
    assert (await wait_until_held(cut, job["id"]))["attempts"] == 1
    # A repeated create still finds the same job.
    assert (await cut.api.post(cut.jobs, json=job)).status_code == 200

    receiver.answer = take
    await resume(cut)
    _, received = await receiver.wait_for(job["id"], 2)

    assert received.headers["timemachine-attempt"] == "2"
    assert (await cut.wait_for_state(job["id"], "delivered"))["attempts"] == 2


async def test_a_lost_attempt_is_held_and_made_again_when_the_route_is_resumed(
    service: Service, receiver: Receiver, client: Client, another: AnotherWorker
) -> None:
    job_id = await service.create(2)
    run = await first_run(client, service, job_id)
    await another.begin(service.db, run)
    await another.die(run)
    await pause(service)

    assert (await wait_until_held(service, job_id))["held"] == "the route is paused: maintenance"
    assert receiver.received == []
    await wait_until_listed(client, service, 1)
    await resume(service)

    assert (await service.wait_for_state(job_id, "delivered"))["attempts"] == 1
    assert (await another.row(run)).has_lost_attempt
    assert len(receiver.of(job_id)) == 1


async def test_a_held_job_whose_attempt_was_given_back_can_be_changed(
    service: Service, receiver: Receiver, client: Client, another: AnotherWorker
) -> None:
    await service.add_route(receiver.url, "other")
    job_id = await service.create(2, meta="old")
    run = await first_run(client, service, job_id)
    await another.end(run, await another.begin(service.db, run), AttemptReport(counts=False))
    await pause(service)
    assert (await wait_until_held(service, job_id))["state"] == "scheduled"

    assert (await service.change(job_id, 1, route="other", meta="new")).json() == {"status": "ok"}
    assert (await service.find(job_id))["state"] == "scheduled"

    assert (await service.wait_for_state(job_id, "delivered"))["attempts"] == 1
    assert [received.body for received in receiver.of(job_id)] == [b'"new"']


@pytest.mark.parametrize("since", [timedelta(seconds=0.05), timedelta(days=1)], ids=["shorter", "longer"])
async def test_a_held_job_replays_after_the_times_of_its_checks_were_changed(
    service: Service, receiver: Receiver, client: Client, monkeypatch: pytest.MonkeyPatch, since: timedelta
) -> None:
    """Also where a worker that counts them otherwise had the job in between."""
    monkeypatch.setattr("workflows.job.HOLD_CHECKS", (timedelta(seconds=0.2),))
    await pause(service)
    job_id = await service.create(0)
    await eventually(lambda: events(client, service, job_id), lambda seen: seen.count(TIMER_FIRED) >= 3)
    await resume(service)
    await service.wait_for_state(job_id, "delivered")
    history = await workflow_of(client, service, job_id).fetch_history()

    monkeypatch.setattr("workflows.job.HOLD_CHECKS", (since,))

    await replay(history)


async def test_a_held_job_whose_timer_fired_before_its_time_replays(
    service: Service, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Temporal's clock, which was set back. The timer was set once more, for the rest."""
    wait_for = JobWorkflow._wait_for_change_or_release

    async def early(run: JobWorkflow, job: Job, release_at: datetime | None, wait: timedelta, summary: str) -> bool:
        return await wait_for(run, job, release_at, max(wait - timedelta(seconds=1), SHORTLY), summary)

    monkeypatch.setattr(JobWorkflow, "_wait_for_change_or_release", early)
    monkeypatch.setattr("workflows.job.HOLD_CHECKS", (timedelta(seconds=1.5),))
    await pause(service)
    job_id = await service.create(0)
    await eventually(lambda: events(client, service, job_id), lambda seen: seen.count(TIMER_FIRED) >= 3)
    assert (await service.cancel(job_id)).status_code == 200
    job = workflow_of(client, service, job_id)
    timers = [event.timer_started_event_attributes async for event in job.fetch_history_events()]
    waits = [timer.start_to_fire_timeout.ToTimedelta() for timer in timers if timer.timer_id]
    assert timedelta(seconds=0.5) >= waits[0] > waits[1]

    monkeypatch.setattr(JobWorkflow, "_wait_for_change_or_release", wait_for)

    await replay(await job.fetch_history())


async def replay(history: WorkflowHistory) -> None:
    replayer = Replayer(
        workflows=[JobWorkflow], workflow_runner=UnsandboxedWorkflowRunner(), data_converter=DATA_CONVERTER
    )
    await replayer.replay_workflow(history)

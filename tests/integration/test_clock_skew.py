"""A worker whose clock is wrong: what it makes late or early is what docs/operations.md says, and nothing else."""

import pytest
from temporalio.client import Client

from tests.support.clocks import set_worker_clock
from tests.support.job_histories import workflow_of
from tests.support.receiver import Received, Receiver, response
from tests.support.service import Service, now_ms
from tests.support.waiting import eventually


async def first_timer(client: Client, service: Service, job_id: str) -> float:
    """Return the seconds of a job's first timer, once it is there."""

    async def timers() -> list[float]:
        return [
            event.timer_started_event_attributes.start_to_fire_timeout.ToTimedelta().total_seconds()
            async for event in workflow_of(client, service, job_id).fetch_history_events()
            if event.HasField("timer_started_event_attributes")
        ]

    return (await eventually(timers, bool))[0]


@pytest.mark.parametrize("ahead", [60, -3])
async def test_the_wait_after_the_first_attempt_is_the_one_that_was_planned(
    service: Service, receiver: Receiver, client: Client, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    async def refuse(_: Received) -> bytes:
        return response(500)

    receiver.answer = refuse
    set_worker_clock(monkeypatch, ahead)
    monkeypatch.setattr("activities.attempt_report.random.random", lambda: 0.0)  # no jitter
    job_id = await service.create(-4, retry={"waits": [60]})

    assert 59.5 < await first_timer(client, service, job_id) <= 60

    assert now_ms(10) < (await service.find(job_id))["next_attempt_time"] < now_ms(61)


@pytest.mark.parametrize("ahead", [60, -3])
async def test_a_first_attempt_that_is_put_off_is_made_when_it_was_planned(
    service: Service, receiver: Receiver, client: Client, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    set_worker_clock(monkeypatch, ahead)
    monkeypatch.setattr("activities.attempt.BEGIN_TIME", -1.0)
    job_id = await service.create(-4)

    assert 0.9 < await first_timer(client, service, job_id) < 1.3


async def test_a_deadline_that_only_the_worker_takes_for_passed_does_not_end_the_job(
    service: Service, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_worker_clock(monkeypatch, 200)
    job_id = await service.create(0, deadline=now_ms(100))

    assert (await service.wait_for_end(job_id))["state"] == "delivered"

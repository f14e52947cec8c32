"""What is answered, and kept, while it is not known what has become of an attempt."""

import asyncio
from contextlib import nullcontext
from dataclasses import replace

import asyncpg
import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.deliver import _check_time
from tests.receiver import Received, Receiver, response
from tests.service import Service, a_job, refused
from timemachine.delivery import FirstAttempt
from timemachine.settings import Settings


@pytest.mark.parametrize(("run", "ends"), [(1, True), (2, False)])
def test_no_attempt_is_made_in_a_run_that_tells_temporal_something(run: int, ends: bool) -> None:
    """Temporal's answer to a heartbeat may bring a cancel, which would cut the attempt short after it was sent."""
    due = FirstAttempt(reason="500 from the receiver", type="AttemptFailed", next_at=0)
    environment = ActivityEnvironment()
    environment.info = replace(environment.info, attempt=run)

    with pytest.raises(ApplicationError, match="500") if ends else nullcontext():
        environment.run(_check_time, due, 1)


async def test_a_create_is_not_confirmed_while_the_job_is_being_cancelled(service: Service, receiver: Receiver) -> None:
    """The attempt in flight decides; a create that was answered with 200 meanwhile might never be delivered."""
    ending = asyncio.Event()

    async def refuse(_: Received) -> bytes:
        await ending.wait()
        return response(500)

    receiver.answer = refuse
    job = a_job(0)
    await service.api.post(service.jobs, json=job)
    await receiver.wait_for(job["id"])

    assert refused(await service.cancel(job["id"])) == (503, "E015")
    assert refused(await service.api.post(service.jobs, json=job)) == (503, "E015")

    ending.set()
    assert (await service.wait_for_end(job["id"]))["state"] == "cancelled"
    assert (await service.api.post(service.jobs, json=job)).status_code == 200


async def test_what_was_taken_counts_though_it_cannot_be_logged(
    service: Service, receiver: Receiver, settings: Settings
) -> None:
    """Postgres turns read-only, as managed ones do when the disk is full."""
    asked, ending = asyncio.Event(), asyncio.Event()

    async def slow(_: Received) -> bytes:
        asked.set()
        await ending.wait()
        return response(200)

    receiver.answer = slow
    postgres = await asyncpg.connect(settings.postgres_dsn)
    job_id = await service.create(0)
    await asked.wait()
    try:
        await postgres.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        await postgres.execute("SELECT pg_reload_conf()")
        while await postgres.fetchval("SHOW default_transaction_read_only") != "on":
            await asyncio.sleep(0.05)
        ending.set()
        assert refused(await service.cancel(job_id)) == (400, "E006")
    finally:
        await postgres.execute("SET default_transaction_read_only = off")
        await postgres.execute("ALTER SYSTEM RESET default_transaction_read_only")
        await postgres.execute("SELECT pg_reload_conf()")
        await postgres.close()
    assert (await service.wait_for_end(job_id))["state"] == "delivered"
    assert len(receiver.of(job_id)) == 1


async def test_a_worker_that_was_stopped_for_too_long_makes_no_attempt(
    service: Service, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker may have taken the attempt for lost by then, and made it."""
    monkeypatch.setattr("activities.deliver.STALE_AFTER", -1.0)
    job_id = await service.create(0)
    while (await service.find(job_id)).get("last_error") != "the worker was stopped meanwhile":
        await asyncio.sleep(0.05)
    assert receiver.received == []

    monkeypatch.undo()

    assert (await service.wait_for_state(job_id, "delivered"))["attempts"] == 1
    assert len(receiver.of(job_id)) == 1

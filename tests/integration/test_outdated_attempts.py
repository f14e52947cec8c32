"""Attempts that were asked for before their job was held: it may have been changed since, so that they send nothing.

A worker that was stopped does not know that its task was given to another one, which has found the route closed.
"""

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial

import psutil
import pytest
from temporalio.client import Client

from activities.attempt import Attempts
from activities.deliver import Deliveries
from devstack.temporal import Temporal
from tests.conftest import delivering
from tests.support.holds import pause, resume, wait_until_held, wait_until_listed
from tests.support.job_histories import workflow_of
from tests.support.kills import stop
from tests.support.ledger import AnotherWorker, first_run
from tests.support.receiver import Receiver
from tests.support.resets import reset
from tests.support.service import ROUTE, Service
from tests.support.waiting import eventually
from tests.support.worker_process import worker_process
from timemachine.domain.delivery import Delivery
from timemachine.domain.jobs import message_id
from timemachine.domain.outcomes import Held, LedgerRow, Outcome
from timemachine.postgres.delivery_ledger import DeliveryLedger, RouteClosed
from timemachine.postgres.pool import open_pool
from timemachine.postgres.route_store import RouteStore
from timemachine.settings import Settings
from timemachine.temporal.job_runs import latest_run
from timemachine.vault import Vault
from timemachine.webhooks.client import WebhookClient

JOBS = 12
DUE_IN = 4.0
"""Seconds until they are due: another worker is started meanwhile."""


@asynccontextmanager
async def deliveries(client: Client, settings: Settings) -> AsyncIterator[Deliveries]:
    """The activities of another worker."""
    async with (
        open_pool(settings) as pool,
        WebhookClient(timeout=5, max_connections=9, address_guard=settings.address_guard) as webhooks,
    ):
        routes = RouteStore(pool, Vault(settings))
        ledger = DeliveryLedger(pool, routes, attempt_time=settings.delivery_timeout)
        yield Deliveries(client, Attempts(ledger, routes, webhooks, settings), ledger)


async def delivery_now(client: Client, service: Service, job_id: str, *, holds: int) -> Delivery:
    """Return what a worker is asked to deliver now."""
    run = await latest_run(client, f"{service.db}/c/{job_id}")
    return Delivery(job=run.job, message_id=message_id(run.first_run_id), run_id=run.first_run_id, holds=holds)


@pytest.mark.parametrize("is_resumed", [True, False], ids=["resumed", "still paused"])
async def test_what_was_asked_for_before_a_hold_is_not_sent_after_a_change(
    service: Service, receiver: Receiver, client: Client, settings: Settings, is_resumed: bool
) -> None:
    await pause(service)
    job_id = await service.create(0, meta="old")
    asked = await delivery_now(client, service, job_id, holds=0)
    await wait_until_held(service, job_id)
    assert (await service.change(job_id, 3600, meta="new")).status_code == 200
    if is_resumed:
        await resume(service)

    async with deliveries(client, settings) as late:
        outcome: Outcome = await late.first_attempt(asked)

    assert isinstance(outcome, Held)
    assert (outcome.is_over, outcome.holds) == ((True, 1) if is_resumed else (False, 2))
    assert receiver.received == []
    assert (await service.find(job_id))["state"] == "scheduled"
    if not is_resumed:
        await resume(service)
    assert (await service.trigger(job_id)).status_code == 200
    (received,) = await receiver.wait_for(job_id)
    assert received.body == b'"new"'


async def test_each_hold_makes_what_was_asked_for_before_it_outdated(
    service: Service, receiver: Receiver, client: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of attempts that are asked for by a check of a job that is held already."""
    monkeypatch.setattr("workflows.job.HOLD_CHECKS", (timedelta(seconds=0.2),))
    await pause(service)
    job_id = await service.create(0, meta="old")
    await wait_until_held(service, job_id)
    asked = await delivery_now(client, service, job_id, holds=1)

    async with deliveries(client, settings) as late:
        await eventually(lambda: holds_noted(settings, asked.run_id), lambda holds: holds > 1)
        assert (await service.change(job_id, 3600, meta="new")).status_code == 200
        await resume(service)

        assert isinstance(await late.first_attempt(asked), Held)

    assert receiver.received == []


async def test_what_was_asked_for_before_a_reset_is_not_sent_after_a_change(
    service: Service, receiver: Receiver, client: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run after a reset goes back to a hold that the row knows of, and notes none."""
    monkeypatch.setattr("workflows.job.HOLD_CHECKS", (timedelta(hours=1),))
    await pause(service)
    job_id = await service.create(0, meta="old")
    await wait_until_held(service, job_id)
    await wait_until_listed(client, service, 1)
    asked = await delivery_now(client, service, job_id, holds=1)
    await resume(service, spread=3600)
    await eventually(partial(service.find, job_id), lambda job: "next_attempt_time" in job)
    await reset(client, workflow_of(client, service, job_id), task=-1)
    assert (await service.change(job_id, 3600, meta="new")).status_code == 200

    async with deliveries(client, settings) as late:
        assert isinstance(await late.first_attempt(asked), Held)

    assert receiver.received == []
    assert (await service.trigger(job_id)).status_code == 200
    (received,) = await receiver.wait_for(job_id)
    assert received.body == b'"new"'


async def due_and_asked_for(
    service: Service, own: Settings, client: Client, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Delivery]:
    """Return a job that is due, and an attempt that was asked for and has not begun. No worker is left."""
    outcome, asked = Attempts.outcome, list[Delivery]()

    async def never_begun(attempts: Attempts, delivery: Delivery, *, patience: float) -> Outcome | None:
        if delivery.job.db != service.db:
            return await outcome(attempts, delivery, patience=patience)
        asked.append(delivery)
        if len(asked) > 1:
            await asyncio.Event().wait()
        return None

    with monkeypatch.context() as frozen:
        frozen.setattr(Attempts, "outcome", never_begun)
        job_id = await service.create(0, meta="old")
        async with delivering(client, own):
            await eventually(lambda: asyncio.sleep(0, len(asked)), lambda count: count > 1)
    return job_id, asked[-1]


async def test_what_a_run_has_asked_for_is_not_sent_when_its_reset_begins_with_a_change(
    alone: tuple[Service, Settings], receiver: Receiver, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, own = alone
    job_id, asked = await due_and_asked_for(service, own, client, monkeypatch)
    await reset(client, workflow_of(client, service, job_id))
    changing = asyncio.create_task(service.change(job_id, 3600, meta="new"))
    await eventually(partial(holds_noted, own, asked.run_id), lambda holds: holds > 0)
    # The worker's first task has to have the change with it, which no history tells of before.
    await asyncio.sleep(0.5)

    async with delivering(client, own), deliveries(client, own) as late:
        assert (await changing).status_code == 200
        assert isinstance(await late.first_attempt(asked), Held)

    assert receiver.received == []
    assert (await service.find(job_id))["state"] == "scheduled"


async def test_what_a_run_has_asked_for_is_not_sent_when_it_is_reset_while_a_change_looks_at_it(
    alone: tuple[Service, Settings], receiver: Receiver, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, own = alone
    job_id, asked = await due_and_asked_for(service, own, client, monkeypatch)
    find, looked = DeliveryLedger.find, asyncio.Event()

    async def find_and_be_reset(ledger: DeliveryLedger, run_id: str) -> LedgerRow | None:
        row = await find(ledger, run_id)
        if run_id == asked.run_id and not looked.is_set():
            looked.set()
            await reset(client, workflow_of(client, service, job_id))
        return row

    monkeypatch.setattr(DeliveryLedger, "find", find_and_be_reset)
    changing = asyncio.create_task(service.change(job_id, 3600, meta="new"))
    await looked.wait()
    # The worker's first task has to have the change with it, which no history tells of before.
    await asyncio.sleep(1)

    async with delivering(client, own), deliveries(client, own) as late:
        assert (await changing).status_code == 200
        assert isinstance(await late.first_attempt(asked), Held)

    assert receiver.received == []
    assert (await service.find(job_id))["state"] == "scheduled"


async def holds_noted(settings: Settings, run_id: str) -> int:
    async with open_pool(settings) as pool:
        row = await AnotherWorker(pool, settings).ledger.find(run_id)
        return row.holds if row else 0


@pytest.mark.parametrize("in_task", [True, False], ids=["within the task", "by the activity"])
async def test_a_hold_whose_answer_was_lost_does_not_keep_a_job_that_is_released(
    service: Service,
    receiver: Receiver,
    client: Client,
    another: AnotherWorker,
    monkeypatch: pytest.MonkeyPatch,
    in_task: bool,
) -> None:
    """The worker was killed that had found the route closed, and nobody is left to release the job."""
    monkeypatch.setattr("workflows.job.HOLD_CHECKS", (timedelta(hours=1),))
    job_id = await service.create(2 if in_task else 3600)
    run = await first_run(client, service, job_id)
    await pause(service)
    lost = await another.ledger.begin(run, service.db, ROUTE, uuid.uuid4(), holds=0)
    assert isinstance(lost, RouteClosed)
    await resume(service)
    if not in_task:
        assert (await service.trigger(job_id)).status_code == 200

    (received,) = await receiver.wait_for(job_id)

    assert received.headers["timemachine-attempt"] == "1"
    assert (await service.wait_for_state(job_id, "delivered"))["attempts"] == 1


async def test_a_worker_that_was_frozen_sends_nothing_of_what_was_before_a_change(
    alone: tuple[Service, Settings], temporal: Temporal, receiver: Receiver
) -> None:
    """Temporal hands it tasks that lie in its socket; another one has them after ten seconds."""
    service, own = alone
    await pause(service)
    async with worker_process(own, temporal.address) as frozen:
        job_ids = [await service.create(DUE_IN, meta="old") for _ in range(JOBS)]
        async with worker_process(own, temporal.address):
            stop([psutil.Process(frozen.pid)])
            for job_id in job_ids:
                # Each poll of the frozen worker may be given a task, and each is lost after ten seconds.
                await eventually(partial(service.find, job_id), lambda job: "held" in job, limit=120)
            for job_id in job_ids:
                # While a held job checks its route it is too late, and a check may be given to the frozen worker.
                changing = partial(service.change, job_id, 3600, meta="new")
                await eventually(changing, lambda changed: changed.status_code == 200, limit=60)
            await resume(service)

        os.kill(frozen.pid, signal.SIGCONT)
        last = await service.create(0)
        await receiver.wait_for(last)

        assert [received.job_id for received in receiver.received] == [last]
        assert {(await service.find(job_id))["state"] for job_id in job_ids} == {"scheduled"}

"""A list says of a job that has ended what a GET of it says, also where Temporal has closed it otherwise."""

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from temporalio.client import Client, WorkflowExecutionStatus

from tests.support.cuts import until_continued
from tests.support.job_histories import wait_for_status, workflow_of
from tests.support.ledger import AnotherWorker, first_run, refused_by_receiver, taken
from tests.support.receiver import Receiver
from tests.support.refusals import AWAY, TOO_LATE
from tests.support.resets import reset
from tests.support.service import Service, refused
from tests.support.waiting import eventually
from timemachine.domain.errors import UnavailableError
from timemachine.postgres.delivery_ledger import AttemptReport, DeliveryLedger

ENDED = ("delivered", "failed", "cancelled")


async def listed(service: Service, state: str | None = None) -> dict[str, str]:
    answer = await service.api.get(f"/job/{service.db}", params={"state": state} if state else {})
    assert answer.status_code == 200, answer.text
    return {job["id"]: job["state"] for job in answer.json()["jobs"]}


async def failed(service: Service) -> list[str]:
    answer = await service.api.get(f"/failed/{service.db}")
    assert answer.status_code == 200, answer.text
    return [job["id"] for job in answer.json()["failed"]]


async def assert_listed_as_found(service: Service, job_id: str, state: str, *, has: str | None = None) -> None:
    """Check one job's state by every way to read it.

    Args:
        has: What Temporal's visibility has it for, in the words of the lists, so that it is found by that state alone.
    """
    assert (await service.find(job_id))["state"] == state
    await eventually(lambda: listed(service), lambda jobs: jobs == {job_id: state})
    has = has or state
    assert await listed(service, has) == ({job_id: state} if state == has else {})
    for other in set(ENDED) - {has}:
        assert await listed(service, other) == {}
    assert await failed(service) == ([job_id] if state == has == "failed" else [])


async def cancelled_in_doubt(service: Service, client: Client, another: AnotherWorker, job_id: str, run: str) -> UUID:
    """Cancel a job whose attempt was lost, wait until Temporal has it as failed, and return the attempt's claim."""
    claim = await another.begin(service.db, run)
    await another.die(run)
    assert refused(await service.cancel(job_id)) == TOO_LATE
    await wait_for_status(client, service, job_id, WorkflowExecutionStatus.FAILED)
    return claim


async def assert_follows_the_frozen_worker(
    service: Service, client: Client, another: AnotherWorker, job_id: str, run: str
) -> None:
    """Let a worker that was frozen tell that a job was taken which has failed meanwhile, and look at the lists."""
    claim = await cancelled_in_doubt(service, client, another, job_id, run)
    await assert_listed_as_found(service, job_id, "failed")

    await another.end(run, claim, taken())

    await assert_listed_as_found(service, job_id, "delivered", has="failed")


async def test_a_job_that_a_frozen_worker_delivered_after_all_is_listed_as_delivered(
    service: Service, client: Client, another: AnotherWorker
) -> None:
    job_id = await service.create(3600)

    await assert_follows_the_frozen_worker(service, client, another, job_id, await first_run(client, service, job_id))


async def test_so_is_one_that_went_on_as_another_run_before(
    cut: Service, client: Client, another: AnotherWorker
) -> None:
    """Lists do not know its first run, by which the ledger knows it."""
    job_id = await cut.create(3600)
    run = await first_run(client, cut, job_id)
    await until_continued(cut, client, job_id, due_in=3600)

    await assert_follows_the_frozen_worker(cut, client, another, job_id, run)


async def test_so_is_one_that_an_operator_reset_meanwhile(
    service: Service, client: Client, another: AnotherWorker
) -> None:
    """The attempt was made in a run, and the cancel in another one."""
    job_id = await service.create(3600)
    assert (await service.change(job_id, 7200)).status_code == 200
    run = await first_run(client, service, job_id)
    await reset(client, workflow_of(client, service, job_id))
    assert (await workflow_of(client, service, job_id).describe()).run_id != run

    await assert_follows_the_frozen_worker(service, client, another, job_id, run)


@pytest.mark.parametrize(
    ("end", "state"), [(taken(), "delivered"), (refused_by_receiver(None), "failed")], ids=["taken", "refused"]
)
async def test_a_job_that_an_operator_terminated_after_its_end_is_listed_as_it_ended(
    service: Service, client: Client, another: AnotherWorker, end: AttemptReport, state: str
) -> None:
    job_id = await service.create(3600)
    run = await first_run(client, service, job_id)
    await another.end(run, await another.begin(service.db, run), end)

    await workflow_of(client, service, job_id).terminate()

    await assert_listed_as_found(service, job_id, state, has="cancelled")


async def test_a_job_that_an_operator_terminated_between_two_attempts_is_listed_as_cancelled(
    service: Service, client: Client, another: AnotherWorker
) -> None:
    job_id = await service.create(3600)
    run = await first_run(client, service, job_id)
    await another.end(run, await another.begin(service.db, run), refused_by_receiver(timedelta(hours=1)))

    await workflow_of(client, service, job_id).terminate()

    await assert_listed_as_found(service, job_id, "cancelled")


async def test_a_job_that_an_operator_terminated_within_an_attempt_is_listed_by_how_that_ended(
    service: Service, client: Client, another: AnotherWorker
) -> None:
    job_id = await service.create(3600)
    run = await first_run(client, service, job_id)
    claim = await another.begin(service.db, run)
    await workflow_of(client, service, job_id).terminate()
    await assert_listed_as_found(service, job_id, "cancelled")

    await another.end(run, claim, taken())

    await assert_listed_as_found(service, job_id, "delivered", has="cancelled")


async def test_a_job_that_failed_and_was_terminated_then_is_redelivered(
    service: Service, receiver: Receiver, client: Client, another: AnotherWorker
) -> None:
    """It has failed, whatever became of its workflow."""
    job_id = await service.create(2)
    run = await first_run(client, service, job_id)
    await another.end(run, await another.begin(service.db, run), refused_by_receiver(None))
    await workflow_of(client, service, job_id).terminate()

    assert (await service.api.post(f"{service.jobs}/{job_id}/redeliver")).status_code == 200

    await service.wait_for_state(job_id, "delivered")
    assert len(receiver.of(job_id)) == 1


async def test_a_job_that_was_terminated_before_it_was_due_is_not_redelivered(service: Service, client: Client) -> None:
    job_id = await service.create(3600)
    await workflow_of(client, service, job_id).terminate()

    assert refused(await service.api.post(f"{service.jobs}/{job_id}/redeliver")) == TOO_LATE


async def test_a_cancelled_job_is_listed_as_cancelled_whatever_an_attempt_tells_later(
    service: Service, client: Client, another: AnotherWorker
) -> None:
    job_id = await service.create(3600)
    run = await first_run(client, service, job_id)
    assert (await service.cancel(job_id)).status_code == 200
    await wait_for_status(client, service, job_id, WorkflowExecutionStatus.CANCELED)

    await another.end(run, uuid4(), taken())

    await assert_listed_as_found(service, job_id, "cancelled")


async def test_a_page_of_which_jobs_are_left_out_has_the_rest_and_goes_on(
    service: Service, client: Client, another: AnotherWorker
) -> None:
    job_ids = [await service.create(3600) for _ in range(4)]
    runs = [await first_run(client, service, job_id) for job_id in job_ids]
    for job_id, run in zip(job_ids, runs, strict=True):
        await cancelled_in_doubt(service, client, another, job_id, run)
    await eventually(lambda: listed(service, "failed"), lambda jobs: set(jobs) == set(job_ids))
    for run in runs[::2]:
        await another.end(run, uuid4(), taken())

    found, cursor = list[str](), None
    while True:
        query = {"state": "failed", "limit": "1"} | ({"cursor": cursor} if cursor else {})
        page = (await service.api.get(f"/job/{service.db}", params=query)).json()
        found += [job["id"] for job in page["jobs"]]
        if not (cursor := page.get("next")):
            break

    assert found == job_ids[3::-2]


async def test_lists_of_jobs_that_wait_were_delivered_or_cancelled_need_no_ledger(
    service: Service, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any) -> None:
        raise UnavailableError("Postgres does not answer")

    waiting, done, cancelled = await service.create(3600), await service.create(0), await service.create(3600)
    await service.cancel(cancelled)
    await wait_for_status(client, service, done, WorkflowExecutionStatus.COMPLETED)
    await wait_for_status(client, service, cancelled, WorkflowExecutionStatus.CANCELED)
    states = {waiting: "scheduled", done: "delivered", cancelled: "cancelled"}
    await eventually(lambda: listed(service), lambda jobs: jobs == states)
    monkeypatch.setattr(DeliveryLedger, "states", away)
    assert await listed(service) == states

    await workflow_of(client, service, waiting).terminate()

    answer = await eventually(lambda: service.api.get(f"/job/{service.db}"), lambda answer: answer.status_code != 200)
    assert refused(answer) == AWAY

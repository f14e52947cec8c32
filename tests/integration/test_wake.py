"""Waking a job that goes on as a new run ends, whatever has become of the job meanwhile."""

import asyncio
import uuid

import httpx
import pytest
from temporalio.client import Client
from temporalio.testing import ActivityEnvironment

from activities.wake import Wakes
from tests.support.job_histories import workflow_of
from tests.support.ledger import first_run
from tests.support.receiver import Receiver
from tests.support.refusals import JOB_EXISTS, NO_SUCH_JOB
from tests.support.service import Service, a_job, new_id, refused
from timemachine.domain import stored_names
from timemachine.domain.jobs import split_workflow_id
from timemachine.domain.wake import ContinuedRun


async def wake(client: Client, workflow_id: str, run: str) -> None:
    """Wake the job whose only known run is the one that is to be continued."""
    continued = ContinuedRun(workflow_id=workflow_id, first_run_id=run, run_id=run)
    async with asyncio.timeout(10):
        await ActivityEnvironment(client).run(Wakes(client).wake, continued)


async def test_a_job_that_was_created_again_is_left_alone(service: Service, client: Client) -> None:
    job_id = await service.create(3600, meta="old")
    before = await first_run(client, service, job_id)
    await service.cancel(job_id)
    await service.create(3600, job_id=job_id, meta="new")

    await wake(client, f"{service.db}/c/{job_id}", before)

    assert (await service.find(job_id))["state"] == "scheduled"


async def test_a_job_that_has_ended_is_left_alone(service: Service, client: Client) -> None:
    job_id = await service.create(0)
    await workflow_of(client, service, job_id).result()

    await wake(client, f"{service.db}/c/{job_id}", await first_run(client, service, job_id))


async def test_what_is_no_job_is_not_reached_as_one(api: httpx.AsyncClient, client: Client, receiver: Receiver) -> None:
    """Wakers that an earlier version started have ids that jobs may have as well."""
    run = str(uuid.uuid4())
    continued = ContinuedRun(workflow_id="another-db/c/job", first_run_id=run, run_id=run)
    waker = await client.start_workflow(
        stored_names.WAKE_JOB, continued, id=continued.former_waker_id, task_queue=f"nobodys-{run}"
    )
    service = Service(api, "timemachine")
    service.jobs = "/job/timemachine/wake"
    job = a_job(60, id=run, route=run)
    await service.add_route(receiver.url, run)

    assert refused(await api.get(f"{service.jobs}/{run}")) == NO_SUCH_JOB
    assert refused(await api.get(f"{service.jobs}/{run}/attempts")) == NO_SUCH_JOB
    assert refused(await service.change(run, 60, route=run)) == NO_SUCH_JOB
    assert refused(await service.trigger(run)) == NO_SUCH_JOB
    assert refused(await service.cancel(run)) == NO_SUCH_JOB
    assert refused(await api.post(service.jobs, json=job)) == JOB_EXISTS
    assert refused(await service.put(run, job)) == JOB_EXISTS

    await api.delete(f"/route/timemachine/{run}")
    description = await waker.describe()
    assert not description.raw_description.workflow_extended_info.cancel_requested
    await waker.terminate()


def test_a_waker_has_no_jobs_id() -> None:
    with pytest.raises(ValueError, match="unpack"):
        split_workflow_id(f"{stored_names.WAKE_ID_PREFIX}{uuid.uuid4()}")


async def test_a_job_that_is_gone_is_left_alone(client: Client, db: str) -> None:
    await wake(client, f"{db}/c/{new_id()}", "00000000-0000-4000-8000-000000000000")

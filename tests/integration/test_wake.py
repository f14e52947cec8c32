"""Waking a job that goes on as a new run ends, whatever has become of the job meanwhile."""

import asyncio

from temporalio.client import Client
from temporalio.testing import ActivityEnvironment

from activities.wake import Wakes
from tests.support.job_histories import workflow_of
from tests.support.ledger import first_run
from tests.support.service import Service, new_id
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


async def test_a_job_that_is_gone_is_left_alone(client: Client, db: str) -> None:
    await wake(client, f"{db}/c/{new_id()}", "00000000-0000-4000-8000-000000000000")

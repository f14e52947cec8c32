"""The longest names that the settings let through, against Temporal's own limits."""

import pytest
from msgspec.structs import replace
from temporalio.client import Client
from temporalio.service import RPCError

from devstack.temporal import Temporal
from tests.support.receiver import Receiver
from tests.support.service_of_its_own import a_service
from timemachine.domain.errors import SetupError
from timemachine.domain.task_queues import bulk_task_queue
from timemachine.settings import Settings
from timemachine.temporal.client import MAX_NAMESPACE, check_namespace, connect

LONGEST = "\U0001f570" * 240
"""Of four bytes each."""


async def test_jobs_are_delivered_from_the_longest_task_queue(
    settings: Settings, client: Client, temporal: Temporal, receiver: Receiver, db: str
) -> None:
    own = Settings.from_env({"TIMEMACHINE_TASK_QUEUE": LONGEST})
    async with a_service(replace(settings, task_queue=own.task_queue), client, temporal, receiver, db) as service:
        job_id = await service.create(0)
        await service.wait_for_state(job_id, "delivered")
    assert len(bulk_task_queue(LONGEST)) <= 255
    assert len(bulk_task_queue(LONGEST).encode()) <= 1000


async def test_a_namespace_of_the_most_bytes_is_looked_for_and_a_longer_one_is_malformed(
    temporal: Temporal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal.address)
    monkeypatch.setenv("TEMPORAL_NAMESPACE", "n" * MAX_NAMESPACE)
    with pytest.raises(SetupError, match="Temporal has no namespace n"):
        await check_namespace(await connect())

    monkeypatch.setenv("TEMPORAL_NAMESPACE", "here")
    longer = await connect()
    config = longer.config()
    config["namespace"] = "n" * (MAX_NAMESPACE + 1)
    with pytest.raises(RPCError, match="length exceeds limit"):
        await check_namespace(Client(**config))

"""The embedded Temporal: workflows stay through a kill -9, and ended ones for a month."""

import os
import signal
from pathlib import Path
from uuid import uuid4

import pytest
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client

from devstack.temporal import NAMESPACE, RETENTION, embedded_temporal
from devstack.temporal_cli import find_temporal_cli


@pytest.fixture
async def cli() -> Path:
    return await find_temporal_cli(os.environ.get("TIMEMACHINE_TEMPORAL_CLI"), os.environ)


async def test_a_kill_loses_no_workflow(tmp_path: Path, cli: Path) -> None:
    async with embedded_temporal(cli, tmp_path) as temporal:
        client = await Client.connect(temporal.address)
        ids = [uuid4().hex for _ in range(20)]
        for id_ in ids:
            await client.start_workflow("Waiting", id=id_, task_queue="none")
        os.kill(temporal.part.pid, signal.SIGKILL)
        await temporal.part.restart()
        for id_ in ids:
            assert (await client.get_workflow_handle(id_).describe()).id == id_


async def test_ended_jobs_stay_for_a_month(tmp_path: Path, cli: Path) -> None:
    async with embedded_temporal(cli, tmp_path) as temporal:
        client = await Client.connect(temporal.address)
        described = await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=NAMESPACE))
        assert described.config.workflow_execution_retention_ttl.ToTimedelta() == RETENTION


async def test_a_database_whose_first_start_was_cut_short_is_made_anew(tmp_path: Path, cli: Path) -> None:
    (tmp_path / "temporal.db").touch()
    async with embedded_temporal(cli, tmp_path) as temporal:
        assert temporal.part.pid

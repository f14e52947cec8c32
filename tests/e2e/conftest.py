"""The stack as `make run` starts it: real processes, on free ports, in a folder of the tests' own."""

import os
from collections.abc import AsyncIterator

import httpx
import pytest

from devstack.cluster import local_cluster
from devstack.parts import Part
from devstack.stack import Stack, local_stack
from tests.support.receiver import Receiver
from tests.support.service import Service
from timemachine.settings import Settings


@pytest.fixture(scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> AsyncIterator[Stack]:
    """What `make run` or `make cluster` starts, with `temporal`, `api` and `worker` for the first of each."""
    settings = Settings(
        http_port=0,
        temporal_port=0,
        temporal_ui_port=0,
        data_dir=str(tmp_path_factory.mktemp("stack")),
        temporal_cli=os.environ.get("TIMEMACHINE_TEMPORAL_CLI"),
    )
    # Bulk work that is slow, so that few jobs are enough for something to happen in the middle of it.
    ours = {
        "TIMEMACHINE_DEFAULT_SCHEME": "http",
        "TIMEMACHINE_REQUEST_TIMEOUT": "10",
        "TIMEMACHINE_BULK_PER_SECOND": "10",
    }
    env = {name: value for name, value in os.environ.items() if not name.startswith(("TIMEMACHINE_", "TEMPORAL_"))}
    if not pytestconfig.getoption("--cluster"):
        async with local_stack(settings, env | ours) as stack:
            yield stack
        return
    async with local_cluster(settings, env | ours) as cluster:
        one_of = {"temporal": "temporal-history-1", "api": "api-1", "worker": "worker-1"}
        cluster.parts |= {name: cluster.parts[part] for name, part in one_of.items()}
        yield cluster


@pytest.fixture
def workers(stack: Stack) -> list[Part]:
    """All workers: nobody knows which of them makes an attempt."""
    return list({part.pid: part for name, part in stack.parts.items() if name.startswith("worker")}.values())


@pytest.fixture
async def service(stack: Stack, receiver: Receiver, db: str) -> AsyncIterator[Service]:
    async with httpx.AsyncClient(base_url=stack.api_url, timeout=30) as api:
        service = Service(api, db)
        await service.add_route(receiver.url)
        yield service
        service.verify_all(receiver)

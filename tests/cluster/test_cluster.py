"""What `make cluster` runs: Temporal's services as processes of their own, two APIs and two workers."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import httpx
import psutil
import pytest
from temporalio.api.operatorservice.v1 import RemoveSearchAttributesRequest
from temporalio.client import Client

from devstack.children import ROOT, Commands
from devstack.cluster import Cluster, local_cluster
from tests.support.receiver import Receiver
from tests.support.service import Service
from tests.support.waiting import eventually
from timemachine.settings import Settings
from timemachine.temporal.registered_attributes import ensure_search_attributes
from timemachine.temporal.search_attributes import LABELS

PARTS = {
    *("postgres", "temporal-ui"),
    *("temporal-frontend", "temporal-history-1", "temporal-history-2", "temporal-matching", "temporal-worker"),
    *("api-1", "api-2", "worker-1", "worker-2"),
}

WAITING = """
    SELECT pid, client_port FROM pg_stat_activity
    WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT INTO timer_tasks%'
"""
"""Sessions that wait for a table, and hold the lock of a shard."""
STATE = "SELECT state FROM pg_stat_activity WHERE pid = $1"


def settings_in(folder: Path) -> Settings:
    cli = os.environ.get("TIMEMACHINE_TEMPORAL_CLI")
    return Settings(http_port=0, temporal_port=0, temporal_ui_port=0, data_dir=str(folder), temporal_cli=cli)


@pytest.fixture(scope="session")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    env = os.environ | {"TIMEMACHINE_DEFAULT_SCHEME": "http", "TIMEMACHINE_REQUEST_TIMEOUT": "10"}
    async with local_cluster(settings_in(folder), env, commands=Commands(logs=folder / "ours")) as cluster:
        yield cluster


@pytest.fixture
async def services(cluster: Cluster, receiver: Receiver, db: str) -> AsyncIterator[list[Service]]:
    """The same db at each API."""
    apis = [httpx.AsyncClient(base_url=url, timeout=30) for url in cluster.api_urls]
    found = [Service(api, db) for api in apis]
    await found[0].add_route(receiver.url)
    yield found
    for api in apis:
        await api.aclose()


@asynccontextmanager
async def at_temporals_database(cluster: Cluster) -> AsyncIterator[asyncpg.Connection]:
    dsn = urlsplit(cluster.env["TIMEMACHINE_POSTGRES_DSN"])
    connection = await asyncpg.connect(dsn._replace(path="/temporal").geturl(), port=dsn.port)
    try:
        yield connection
    finally:
        await connection.close()


def histories(cluster: Cluster) -> list[psutil.Process]:
    return [psutil.Process(cluster.parts[f"temporal-history-{number}"].pid) for number in (1, 2)]


def local_ports(process: psutil.Process) -> set[int]:
    return {connection.laddr.port for connection in process.net_connections("tcp")}


def test_each_part_is_a_process(cluster: Cluster) -> None:
    assert cluster.parts.keys() == PARTS
    assert len({part.pid for part in cluster.parts.values()}) == len(PARTS)


async def test_the_web_ui_shows_its_page_and_the_jobs(cluster: Cluster, services: list[Service]) -> None:
    service = services[0]
    job_id = await service.create(3600)
    assert cluster.ui_url
    async with httpx.AsyncClient(base_url=cluster.ui_url, timeout=30) as ui:
        page = await ui.get("/", follow_redirects=True)
        assert (page.status_code, page.headers["content-type"].partition(";")[0]) == (200, "text/html")
        assert 'id="svelte"' in page.text
        assert (await ui.get("/api/v1/settings")).json()["DefaultNamespace"] == "timemachine"
        query = {"query": f"WorkflowId = '{service.db}/c/{job_id}'"}
        await eventually(
            lambda: ui.get("/api/v1/namespaces/timemachine/workflows", params=query),
            lambda found: len(found.json().get("executions", [])) == 1,
        )


async def test_a_job_of_one_api_is_seen_changed_and_delivered_by_the_others(
    services: list[Service], receiver: Receiver
) -> None:
    one, other = services
    job_id = await one.create(3600, meta="old", labels=["blue"])

    assert (await other.find(job_id))["state"] == "scheduled"
    path = f"/job/{one.db}"
    await eventually(
        lambda: other.api.get(path, params={"label": "blue"}), lambda found: len(found.json()["jobs"]) == 1
    )
    assert (await other.change(job_id, 0.5, meta="new")).status_code == 200
    (received,) = await receiver.wait_for(job_id)
    assert received.body == b'"new"'


@pytest.mark.parametrize("killed", ["temporal-frontend", "temporal-history-2", "temporal-matching", "worker-1"])
async def test_a_killed_part_is_started_again_and_jobs_arrive(
    cluster: Cluster, services: list[Service], receiver: Receiver, killed: str
) -> None:
    ids = [await services[0].create(3) for _ in range(10)]
    psutil.Process(cluster.parts[killed].pid).kill()
    await cluster.parts[killed].restart()

    for job_id in ids:
        assert len(await receiver.wait_for(job_id, limit=90)) == 1


async def test_a_history_that_is_frozen_within_a_transaction_loses_its_shard(
    cluster: Cluster, services: list[Service], receiver: Receiver
) -> None:
    """Its session holds the lock of the shard's row, and Postgres would let it for as long as the process is there."""
    async with (
        at_temporals_database(cluster) as postgres,
        at_temporals_database(cluster) as locking,
        asyncio.TaskGroup() as tasks,
    ):
        async with locking.transaction():
            await locking.execute("LOCK TABLE timer_tasks IN EXCLUSIVE MODE")
            created = [tasks.create_task(services[0].create(1)) for _ in range(20)]
            (pid, port), *_ = await eventually(lambda: postgres.fetch(WAITING), bool)
            frozen = next(process for process in histories(cluster) if port in local_ports(process))
            frozen.suspend()
        try:
            await eventually(lambda: postgres.fetchval(STATE, pid), lambda state: state == "idle in transaction")
            await eventually(lambda: postgres.fetchval(STATE, pid), lambda state: state is None)
            ids = await asyncio.gather(*created)
            for job_id in ids:
                assert await receiver.wait_for(job_id, limit=90)
            assert frozen.status() == psutil.STATUS_STOPPED
        finally:
            frozen.resume()


async def test_the_setup_ends_when_new_search_attributes_are_used(client: Client) -> None:
    """Temporal's frontend looks for them every 10 s, and refuses until then what has them."""
    await client.operator_service.remove_search_attributes(
        RemoveSearchAttributesRequest(namespace=client.namespace, search_attributes=[LABELS.name])
    )

    await ensure_search_attributes(client)

    assert (await client.count_workflows(f"{LABELS.name} = 'none'")).count == 0


async def test_the_program_runs_until_it_is_told_to_stop(tmp_path: Path) -> None:
    env = os.environ | {
        "TIMEMACHINE_DATA_DIR": str(tmp_path),
        "TIMEMACHINE_HTTP_PORT": "0",
        "TIMEMACHINE_TEMPORAL_PORT": "0",
        "TIMEMACHINE_TEMPORAL_UI_PORT": "0",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "devstack", "cluster"),
        cwd=ROOT,
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout
    said = [(await process.stdout.readline()).decode()]
    while not said[-1].startswith("timemachine's cluster ready: "):
        assert said[-1], "".join(said)
        said.append((await process.stdout.readline()).decode())
    children = psutil.Process(process.pid).children(recursive=True)

    process.send_signal(signal.SIGTERM)
    await process.communicate()

    assert process.returncode == 0
    assert len(children) >= len(PARTS)
    assert not [child for child in children if child.is_running()]
    assert all(any(line.strip().startswith(f"{part} ") for line in said) for part in PARTS)
    assert any(line.strip().startswith("Temporal UI    http://127.0.0.1:") for line in said)

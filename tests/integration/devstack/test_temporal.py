"""The embedded Temporal: workflows stay through a kill -9, and ended ones for a month."""

import asyncio
import os
import random
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.common import SearchAttributePair, TypedSearchAttributes
from temporalio.service import RPCError

from devstack import temporal as local_temporal
from devstack.temporal import NAMESPACE, RETENTION, embedded_temporal
from devstack.temporal_cli import find_temporal_cli
from devstack.visibility_indexes import drop_unasked_indexes
from tests.support.waiting import eventually
from timemachine.domain.errors import SetupError
from timemachine.temporal.registered_attributes import ensure_search_attributes
from timemachine.temporal.search_attributes import DB, KINDS, LABELS


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


async def test_a_server_whose_connection_to_sqlite_is_stuck_is_started_anew(
    tmp_path: Path, cli: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "Server 1.29." not in await version_of(cli):
        pytest.skip("another version than is tested may not get stuck")
    async with embedded_temporal(cli, tmp_path) as temporal:
        client = await Client.connect(temporal.address)
        await client.start_workflow("Waiting", id="there", task_queue="none")
        stuck, ended = temporal.part.pid, asyncio.create_task(temporal.part.wait())

        await asyncio.gather(*(give_up_calls(client, lambda: temporal.part.pid != stuck) for _ in range(32)))

        said = list[str]()
        await eventually(partial(all_said, capsys, said), lambda text: "it was started anew" in text)
        assert "Temporal answered nothing but 'interrupted (9)'" in "".join(said)
        assert (await client.get_workflow_handle("there").describe()).id == "there"
        assert not ended.done()  # which `make run` would end for
        ended.cancel()


async def all_said(capsys: pytest.CaptureFixture[str], said: list[str]) -> str:
    said.append(capsys.readouterr().out)
    return "".join(said)


async def version_of(cli: Path) -> str:
    process = await asyncio.create_subprocess_exec(cli, "--version", stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return output.decode()


async def give_up_calls(client: Client, enough: Callable[[], bool]) -> None:
    """Make calls, and give each up about when it is answered."""
    async with asyncio.timeout(120):
        while not enough():
            patience = timedelta(milliseconds=random.uniform(1, 25))
            with suppress(RPCError):
                request = DescribeNamespaceRequest(namespace=NAMESPACE)
                await client.workflow_service.describe_namespace(request, timeout=patience)
            await asyncio.sleep(0)


async def test_ended_jobs_stay_for_a_month(tmp_path: Path, cli: Path) -> None:
    async with embedded_temporal(cli, tmp_path) as temporal:
        client = await Client.connect(temporal.address)
        described = await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=NAMESPACE))
        assert described.config.workflow_execution_retention_ttl.ToTimedelta() == RETENTION


async def test_a_database_whose_first_start_was_cut_short_is_made_anew(tmp_path: Path, cli: Path) -> None:
    (tmp_path / "temporal.db").touch()
    async with embedded_temporal(cli, tmp_path) as temporal:
        assert temporal.part.pid


async def test_a_new_server_knows_the_search_attributes_from_the_start(tmp_path: Path, cli: Path) -> None:
    async with embedded_temporal(cli, tmp_path) as temporal:
        assert await kinds(await Client.connect(temporal.address)) == KINDS


async def test_a_file_of_an_earlier_version_gets_them_by_the_setup(
    tmp_path: Path, cli: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(local_temporal, "KINDS", {DB.name: KINDS[DB.name]})
        async with embedded_temporal(cli, tmp_path) as temporal:
            client = await Client.connect(temporal.address)
            in_db = TypedSearchAttributes([SearchAttributePair(DB, "shop")])
            await client.start_workflow("Waiting", id="there", task_queue="none", search_attributes=in_db)

    async with embedded_temporal(cli, tmp_path) as temporal:
        client = await Client.connect(temporal.address)
        await ensure_search_attributes(client)

        assert await kinds(client) == KINDS
        assert (await client.count_workflows(f"{DB.name} = 'shop' AND {LABELS.name} IS NULL")).count == 1


async def test_a_search_attribute_of_another_kind_is_told(
    tmp_path: Path, cli: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {DB.name: IndexedValueType.INDEXED_VALUE_TYPE_INT, LABELS.name: KINDS[LABELS.name]}
    monkeypatch.setattr(local_temporal, "KINDS", others)
    async with embedded_temporal(cli, tmp_path) as temporal:
        client = await Client.connect(temporal.address)

        with pytest.raises(SetupError, match=f"has {DB.name} as INT, and not as KEYWORD, with which jobs cannot be"):
            await ensure_search_attributes(client)

        assert await kinds(client) == others


async def kinds(client: Client) -> dict[str, IndexedValueType.ValueType]:
    """Return the search attributes that the namespace has, beside the server's own."""
    found = await client.operator_service.list_search_attributes(ListSearchAttributesRequest(namespace=NAMESPACE))
    return {name: kind for name, kind in found.custom_attributes.items() if name.startswith("Timemachine")}


def indexes(folder: Path) -> set[str]:
    with closing(sqlite3.connect(folder / "temporal.db")) as database:
        return {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}


async def test_indexes_that_nobody_asks_by_are_dropped(tmp_path: Path, cli: Path) -> None:
    dropped = {"by_task_queue", "by_temporal_namespace_division", "by_double_01", "by_int_03"}
    kept = {"default_idx", "by_status", "by_keyword_10", "by_bool_01", "by_datetime_03"}
    async with embedded_temporal(cli, tmp_path) as temporal:
        client = await Client.connect(temporal.address)
        await client.start_workflow("Waiting", id="there", task_queue="none", start_delay=timedelta(hours=1))

        assert indexes(tmp_path).isdisjoint(dropped)
        assert indexes(tmp_path) >= kept
        for query in ("TaskQueue = 'none'", "ExecutionStatus = 'Running'", "HistoryLength > 0 OR WorkflowId = 'there'"):
            found = await eventually(partial(client.count_workflows, query), lambda found: found.count)
            assert found.count == 1

    with closing(sqlite3.connect(tmp_path / "temporal.db")) as database:  # as one that an earlier version made
        database.execute("CREATE INDEX by_task_queue ON executions_visibility (namespace_id, task_queue)")
    async with embedded_temporal(cli, tmp_path):
        assert indexes(tmp_path).isdisjoint(dropped)


def test_a_database_that_cannot_be_changed_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = tmp_path / "temporal.db"
    database.write_bytes(b"not SQLite" * 100)

    drop_unasked_indexes(database)

    assert "Temporal keeps the indexes that nobody asks by" in capsys.readouterr().out
    assert database.read_bytes() == b"not SQLite" * 100


async def test_a_database_that_was_removed_is_made_anew(tmp_path: Path, cli: Path) -> None:
    async with embedded_temporal(cli, tmp_path):
        pass
    for file in tmp_path.glob("temporal.db*"):
        file.unlink()

    async with embedded_temporal(cli, tmp_path):
        assert "by_task_queue" not in indexes(tmp_path)
        assert "by_status" in indexes(tmp_path)

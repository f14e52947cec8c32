"""How Temporal's server is built, kept, and told what it is to run."""

import asyncio
from pathlib import Path

import pytest

from devstack.temporal_cluster import (
    CLUSTER,
    ONE_PROCESS,
    _dynamic_config,
    _read_env,
    _server_processes,
    one_service_each,
)
from devstack.temporal_server import SERVER, SQL_TOOL, VERSION, find_temporal_server
from timemachine.domain.errors import LocalStackError

ROOT = Path(__file__).parents[3]
GO = '#!/bin/sh\necho "$@" >> $0.log\nmkdir -p $GOBIN\necho server > $GOBIN/server\necho tool > $GOBIN/sql\n'


async def test_it_is_built_once_for_all(env: dict[str, str], tmp_path: Path) -> None:
    found = await asyncio.gather(*(find_temporal_server(env, cache=tmp_path / "cache") for _ in range(3)))

    (folder,) = set(found)
    assert ((folder / SERVER).read_text(), (folder / SQL_TOOL).read_text()) == ("server\n", "tool\n")
    assert {file.name for file in folder.iterdir()} == {SERVER, SQL_TOOL, "lock"}
    (build,) = (tmp_path / "bin" / "go.log").read_text().splitlines()
    assert build.split()[2:] == [f"go.temporal.io/server/cmd/{name}@v{VERSION}" for name in ("server", "tools/sql")]


async def test_half_of_it_is_built_again(env: dict[str, str], tmp_path: Path) -> None:
    folder = await find_temporal_server(env, cache=tmp_path / "cache")
    (folder / SQL_TOOL).unlink()

    await find_temporal_server(env, cache=tmp_path / "cache")

    assert (folder / SQL_TOOL).exists()


async def test_where_it_cannot_be_built_it_says_what_was_tried(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "bin" / "go").write_text("#!/bin/sh\necho no such module >&2\nexit 1\n")

    with pytest.raises(LocalStackError, match=f"{VERSION} cannot be built") as raised:
        await find_temporal_server(env, cache=tmp_path / "cache")

    assert "no such module" in str(raised.value)


def test_each_process_has_ports_of_its_own() -> None:
    servers = _server_processes(7233, CLUSTER)

    assert [server.name for server in servers] == [
        *("temporal-frontend", "temporal-history-1", "temporal-history-2", "temporal-matching", "temporal-worker"),
    ]
    assert servers[0].variables["TEMPORAL_SERVICES"] == "frontend"
    assert servers[0].variables["FRONTEND_GRPC_PORT"] == "7233"
    assert servers[1].variables.keys() == {"TEMPORAL_SERVICES", "HISTORY_GRPC_PORT", "HISTORY_MEMBERSHIP_PORT"}
    ports = [port for server in servers for pair in server.ports.values() for port in pair]
    assert len(set(ports)) == 10


def test_there_are_as_many_histories_as_are_asked_for() -> None:
    names = [server.name for server in _server_processes(7233, one_service_each(1))]

    assert names == ["temporal-frontend", "temporal-history", "temporal-matching", "temporal-worker"]


def test_one_process_runs_all_services() -> None:
    (server,) = _server_processes(7233, ONE_PROCESS)

    assert (server.name, server.variables["TEMPORAL_SERVICES"]) == ("temporal", "frontend,history,matching,worker")


def test_what_the_containers_are_told_is_read() -> None:
    assert _read_env(ROOT / "deploy/temporal-server.env")["DB"] == "postgres12_pgx"


def test_the_dynamic_configuration_is_that_of_the_containers(tmp_path: Path) -> None:
    deployed = ROOT / "deploy/temporal-dynamicconfig.yaml"

    assert _dynamic_config(tmp_path, "") == deployed
    assert _dynamic_config(tmp_path, "more:\n").read_text() == f"{deployed.read_text()}\nmore:\n"

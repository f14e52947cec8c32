"""Temporal's own cluster on this machine: each of its services a process, all on one PostgreSQL, as in production.

What they are told, their schema, their namespace and their dynamic configuration are what the containers have: the
files in `deploy`.
"""

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import msgspec

from devstack.children import ROOT
from devstack.folder import kept_secret
from devstack.parts import Part, Program, run_to_end, running
from devstack.ports import LOOPBACK, free_port
from devstack.postgres import Postgres
from devstack.running_processes import RunningProcesses
from devstack.temporal_server import SERVER

DEPLOY = ROOT / "deploy"

SHARDS = 512
"""Fixed for ever by the first start."""

NAMESPACE = "timemachine"

RETENTION = "168h"

DATABASES = ("temporal", "temporal_visibility")
"""Temporal's, beside ours in the same PostgreSQL."""

_ROLE = "temporal"

Layout = Sequence[Sequence[str]]
"""Processes, each with the services of Temporal's that it runs."""


def one_service_each(histories: int) -> Layout:
    """Return a layout with each service by itself, and so many histories that share the shards."""
    return (("frontend",), *[("history",)] * histories, ("matching",), ("worker",))


CLUSTER: Layout = one_service_each(2)
"""What `make cluster` runs."""

ONE_PROCESS: Layout = (("frontend", "history", "matching", "worker"),)
"""All services in one, as docker-compose.yml has them."""


class ServerProcess(msgspec.Struct, frozen=True, kw_only=True):
    """One process of the cluster's: its services, each with the ports that it and no other listens on."""

    name: str
    ports: dict[str, tuple[int, int]]
    """By service: for requests, and for finding each other."""

    @property
    def variables(self) -> dict[str, str]:
        """What tells the server which services it is to run, and where they listen."""
        found = {"TEMPORAL_SERVICES": ",".join(self.ports)}
        for service, (port, membership_port) in self.ports.items():
            found[f"{service.upper()}_GRPC_PORT"] = str(port)
            found[f"{service.upper()}_MEMBERSHIP_PORT"] = str(membership_port)
        return found


class TemporalCluster(msgspec.Struct, frozen=True, kw_only=True):
    """A running cluster."""

    address: str
    """Of its frontend."""
    parts: dict[str, Part]
    """By name, as `temporal-history-1`."""


@asynccontextmanager
async def temporal_cluster(
    programs: Path,
    cli: Path,
    postgres: Postgres,
    folder: Path,
    *,
    env: Mapping[str, str],
    layout: Layout = CLUSTER,
    namespace: str = NAMESPACE,
    port: int = 0,
    shards: int = SHARDS,
    more_config: str = "",
    processes: RunningProcesses | None = None,
) -> AsyncIterator[TemporalCluster]:
    """Run Temporal's services on loopback, and stop them in the end.

    Args:
        programs: The folder from `find_temporal_server`.
        cli: The `temporal` program, from `find_temporal_cli`.
        postgres: Gets two databases of Temporal's, and a role that owns them. It must take 30 connections for each
            process.
        folder: Where the password of that role and the logs are.
        env: The environment that PATH and HOME are taken from.
        namespace: Is made where it is not there.
        port: Of the frontend; 0 takes a free one.
        shards: Of history; fixed for ever by the first start.
        more_config: YAML that is added to the dynamic configuration.

    Raises:
        LocalStackError: A part does not start; the message has the last lines of its log.
    """
    await update_schema(programs, cli, postgres, folder, env=env, processes=processes)
    await _forget_members(postgres.dsn)
    password, tools = _password(folder), _with_tools(env, programs, cli, folder)
    servers = _server_processes(port or free_port(), layout)
    frontend_port = next(server.ports["frontend"][0] for server in servers if "frontend" in server.ports)
    address = f"{LOOPBACK}:{frontend_port}"
    shared = _shared(postgres, password, frontend_port, tools) | {
        "DYNAMIC_CONFIG_FILE_PATH": str(_dynamic_config(folder, more_config)),
        "NUM_HISTORY_SHARDS": str(shards),
    }
    async with AsyncExitStack() as opened:
        parts = {server.name: _part(programs, server, shared, folder, processes) for server in servers}
        for part in parts.values():
            await opened.enter_async_context(running(part))
        await run_to_end(_namespace(namespace, address, folder, tools), processes=processes)
        yield TemporalCluster(address=address, parts=parts)


async def update_schema(
    programs: Path,
    cli: Path,
    postgres: Postgres,
    folder: Path,
    *,
    env: Mapping[str, str],
    processes: RunningProcesses | None = None,
) -> None:
    """Create Temporal's databases, or bring them to the version of its programs, while older ones may run.

    Args:
        As `temporal_cluster` has them.

    Raises:
        LocalStackError: The tool failed; the message has the last lines of its log.
    """
    password, made = _password(folder), folder / "temporal.made"
    await _prepare_postgres(postgres.dsn, password, anew=not made.exists())
    tools = _with_tools(env, programs, cli, folder)
    await run_to_end(_schema(postgres, password, folder, tools), processes=processes)
    made.touch()


def _password(folder: Path) -> str:
    return kept_secret(folder / "temporal.password", lambda: secrets.token_urlsafe(24))


def _server_processes(port: int, layout: Layout) -> list[ServerProcess]:
    names = ["temporal-" + services[0] if len(services) == 1 else "temporal" for services in layout]
    return [
        ServerProcess(
            name=name if names.count(name) == 1 else f"{name}-{names[:number].count(name) + 1}",
            ports={service: (port if service == "frontend" else free_port(), free_port()) for service in services},
        )
        for number, (name, services) in enumerate(zip(names, layout, strict=True))
    ]


def _dynamic_config(folder: Path, more: str) -> Path:
    file = DEPLOY / "temporal-dynamicconfig.yaml"
    if not more:
        return file
    own = folder / file.name
    own.write_text(f"{file.read_text(encoding='utf-8')}\n{more}", encoding="utf-8")
    return own


def _shared(postgres: Postgres, password: str, frontend_port: int, tools: Mapping[str, str]) -> dict[str, str]:
    """Return what all services are told."""
    told = _read_env(DEPLOY / "temporal-server.env")
    where = {
        "BIND_ON_IP": LOOPBACK,
        "DB_PORT": str(_port(postgres)),
        "FRONTEND_GRPC_PORT": str(frontend_port),
        "FRONTEND_HTTP_PORT": str(free_port()),
        "POSTGRES_PWD": password,
        "POSTGRES_SEEDS": LOOPBACK,
    }
    return {**tools, **told, **where}


def _read_env(file: Path) -> dict[str, str]:
    """Return the variables of a file as Docker Compose reads it: a line for each, with `#` before what is none."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def _part(
    programs: Path, server: ServerProcess, shared: Mapping[str, str], folder: Path, processes: RunningProcesses | None
) -> Part:
    program = Program(
        name=server.name,
        argv=(str(programs / SERVER), "--allow-no-auth", "start"),
        env={**shared, **server.variables},
        cwd=folder,
        log=folder / "logs" / f"{server.name}.log",
        stop_signal=signal.SIGTERM,
        stop_limit=30,
        passing="",  # they end where others are not there yet, or slow; containers are started again, too
    )
    return Part(program, lambda: _listens([port for port, _ in server.ports.values()]), processes=processes)


async def _listens(ports: Sequence[int]) -> bool:
    with suppress(OSError, TimeoutError):
        for port in ports:
            _, writer = await asyncio.wait_for(asyncio.open_connection(LOOPBACK, port), 2)
            writer.close()
        return True
    return False


def _schema(postgres: Postgres, password: str, folder: Path, tools: Mapping[str, str]) -> Program:
    variables = {
        "SQL_PLUGIN": "postgres12",
        "SQL_HOST": LOOPBACK,
        "SQL_PORT": str(_port(postgres)),
        "SQL_USER": _ROLE,
        "SQL_PASSWORD": password,
    }
    return _script("temporal-schema.sh", {**tools, **variables}, folder)


def _namespace(namespace: str, address: str, folder: Path, tools: Mapping[str, str]) -> Program:
    variables = {"TEMPORAL_ADDRESS": address, "TEMPORAL_NAMESPACE": namespace, "RETENTION": RETENTION}
    return _script("temporal-namespace.sh", {**tools, **variables}, folder)


def _script(name: str, env: dict[str, str], folder: Path) -> Program:
    log = folder / "logs" / f"{Path(name).stem}.log"
    return Program(name=name, argv=("/bin/sh", str(DEPLOY / name)), env=env, log=log, start_limit=180)


def _with_tools(env: Mapping[str, str], programs: Path, cli: Path, folder: Path) -> dict[str, str]:
    """Return an environment in which the scripts find Temporal's tools, and no profile of the user's own clusters."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    found = tools / "temporal"  # whatever its file is called
    found.unlink(missing_ok=True)
    found.symlink_to(cli.resolve())
    path = ":".join([str(tools), str(programs), env.get("PATH", "/usr/bin:/bin")])
    return {"PATH": path, "HOME": str(tools), "TEMPORAL_CONFIG_FILE": os.devnull}


def _port(postgres: Postgres) -> int:
    port = urlsplit(postgres.dsn).port
    assert port is not None  # noqa: S101 - it is in every DSN of the embedded one's
    return port


async def _prepare_postgres(dsn: str, password: str, *, anew: bool) -> None:
    """Create Temporal's role, and remove databases whose first start was cut short: no job is in them yet."""
    connection = await asyncpg.connect(dsn, port=urlsplit(dsn).port, timeout=5)
    try:
        for database in DATABASES if anew else ():
            await connection.execute(f"DROP DATABASE IF EXISTS {database}")
        if not await connection.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", _ROLE):
            # Letters, digits, - and _ only; a statement of this kind takes no parameters.
            await connection.execute(f"CREATE ROLE {_ROLE} LOGIN CREATEDB PASSWORD '{password}'")
    finally:
        await connection.close()


async def _forget_members(dsn: str) -> None:
    """Forget the processes of the last run, on other ports, which each new one would look for, for half a minute."""
    dsn = urlsplit(dsn)._replace(path="/temporal").geturl()
    connection = await asyncpg.connect(dsn, port=urlsplit(dsn).port, timeout=5)
    try:
        await connection.execute("DELETE FROM cluster_membership")
    finally:
        await connection.close()

"""A whole cluster on this machine, as it runs in production: Temporal's services, its Web UI, two APIs, two workers."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec

from devstack import children
from devstack.admin_key import read_key
from devstack.children import Commands
from devstack.folder import held, kept_secret
from devstack.parts import Part, run_to_end, running
from devstack.ports import LOOPBACK, choose_port, url
from devstack.postgres import embedded_postgres
from devstack.running_processes import RunningProcesses
from devstack.stack import Stack, data_folder, without_leftovers
from devstack.temporal_cli import find_temporal_cli
from devstack.temporal_cluster import CLUSTER, NAMESPACE, Layout, temporal_cluster
from devstack.temporal_server import VERSION, find_temporal_server
from devstack.temporal_ui import find_temporal_ui, temporal_ui
from devstack.terminal import say
from timemachine.settings import Auth, Settings, is_loopback
from timemachine.vault import new_key

MAX_CONNECTIONS = 300
"""Of Postgres: each of Temporal's services opens up to 30, each API and worker a pool. As in docker-compose.yml."""


_OF_ONE_PROCESS = ("TIMEMACHINE_METRICS_ADDRESS", "TIMEMACHINE_HEALTH_ADDRESS")


class Cluster(Stack, kw_only=True):
    """A running cluster. Its parts: `postgres`, Temporal's services, `temporal-ui`, `api-1`, `worker-1` and so on."""

    api_urls: tuple[str, ...]
    """Of all APIs; `api_url` is the first of them."""


class _Programs(msgspec.Struct, frozen=True, kw_only=True):
    server: Path
    """The folder of Temporal's own."""
    ui: Path
    cli: Path


class _Ports(msgspec.Struct, frozen=True, kw_only=True):
    apis: list[int]
    temporal: int
    ui: int


@asynccontextmanager
async def local_cluster(
    settings: Settings,
    env: Mapping[str, str],
    *,
    commands: Commands | None = None,
    apis: int = 2,
    workers: int = 2,
    layout: Layout = CLUSTER,
    temporal_version: str = VERSION,
) -> AsyncIterator[Cluster]:
    """Run all parts, each ready before the next starts, with data and logs in the folder `cluster` of the data folder.

    No other Postgres or Temporal is used, whatever the environment names.

    Args:
        env: The environment that the programs get, with what they need to find each other put in.
        commands: Other programs in place of our own.
        layout: Temporal's processes.
        temporal_version: Of Temporal's server.

    Raises:
        LocalStackError: A part does not start, a port or the folder is in use, something is missing. What had been
            started is stopped.
    """
    folder = data_folder(settings) / "cluster"
    programs = await _find_programs(settings, env, temporal_version)
    async with AsyncExitStack() as opened:
        opened.enter_context(held(folder))
        processes = await without_leftovers(folder)
        ports = _choose_ports(settings, apis)
        urls = tuple(url(settings.http_host, port) for port in ports.apis)
        found = Cluster(folder=folder, env=dict(env), api_url=urls[0], api_urls=urls, ui_url=url(LOOPBACK, ports.ui))
        say("starting Postgres")
        postgres = await opened.enter_async_context(
            embedded_postgres(folder, max_connections=MAX_CONNECTIONS, processes=processes)
        )
        found.parts["postgres"] = postgres.part
        say("starting Temporal: its schema, frontend, history, matching and worker services, and the namespace")
        temporal = await opened.enter_async_context(
            temporal_cluster(
                programs.server,
                programs.cli,
                postgres,
                folder,
                env=env,
                layout=layout,
                port=ports.temporal,
                processes=processes,
            )
        )
        found.parts |= temporal.parts
        found.env = _environment(
            env, found, host=settings.http_host, postgres_dsn=postgres.dsn, temporal_address=temporal.address
        )
        say("starting Temporal's Web UI")
        ui = temporal_ui(
            programs.ui,
            folder,
            temporal_address=temporal.address,
            namespace=NAMESPACE,
            port=ports.ui,
            processes=processes,
        )
        found.parts[ui.name] = await opened.enter_async_context(running(ui))
        await _start_ours(found, settings, opened, processes, commands or Commands(), ports.apis, workers)
        yield found


async def _find_programs(settings: Settings, env: Mapping[str, str], temporal_version: str) -> _Programs:
    return _Programs(
        server=await find_temporal_server(env, version=temporal_version),
        ui=await find_temporal_ui(env),
        cli=await find_temporal_cli(settings.temporal_cli, env),
    )


def _choose_ports(settings: Settings, apis: int) -> _Ports:
    """Check every port before anything is started. Those of the APIs are one after the other, or any free ones."""
    wanted = [settings.http_port + number if settings.http_port else 0 for number in range(apis)]
    return _Ports(
        apis=[choose_port(settings.http_host, port, "TIMEMACHINE_HTTP_PORT") for port in wanted],
        temporal=choose_port(LOOPBACK, settings.temporal_port, "TIMEMACHINE_TEMPORAL_PORT"),
        ui=choose_port(LOOPBACK, settings.temporal_ui_port, "TIMEMACHINE_TEMPORAL_UI_PORT"),
    )


def _environment(
    env: Mapping[str, str], found: Cluster, *, host: str, postgres_dsn: str, temporal_address: str
) -> dict[str, str]:
    """Return what our programs are told. Receivers on this machine may be called; no key is needed on loopback.

    Neither metrics nor workers' health are served: all programs would have the same address for them.
    """
    auth = Auth.NONE if is_loopback(host) else Auth.KEYS
    defaults = {"TIMEMACHINE_ALLOW_PRIVATE_TARGETS": "true", "TIMEMACHINE_AUTH": auth}
    where = {
        "TEMPORAL_ADDRESS": temporal_address,
        "TEMPORAL_CONFIG_FILE": "/dev/null",
        "TEMPORAL_NAMESPACE": NAMESPACE,
        "TIMEMACHINE_POSTGRES_DSN": postgres_dsn,
        "TIMEMACHINE_SECRET_KEYS": kept_secret(found.folder / "secret.keys", new_key),
    }
    kept = {name: value for name, value in env.items() if not name.startswith(("PG", "TEMPORAL_", *_OF_ONE_PROCESS))}
    return {**defaults, **kept, **where}


async def _start_ours(
    found: Cluster,
    settings: Settings,
    opened: AsyncExitStack,
    processes: RunningProcesses,
    commands: Commands,
    api_ports: list[int],
    workers: int,
) -> None:
    say("preparing both: migrations and search attributes")
    await run_to_end(children.setup(commands, found.env), processes=processes)
    if found.env["TIMEMACHINE_AUTH"] == Auth.KEYS:
        file = found.folder / "admin.key"
        await run_to_end(children.admin_key(commands, found.env, file), processes=processes)
        found.admin_key = await asyncio.to_thread(read_key, file)
    say("starting APIs and workers")
    for number, (port, api_url) in enumerate(zip(api_ports, found.api_urls, strict=True), start=1):
        env = found.env | {"TIMEMACHINE_HTTP_PORT": str(port)}
        name = f"api-{number}"
        program = children.api(commands.apart(name), env, settings)
        api = Part(program, children.answers_ready(api_url), processes=processes)
        found.parts[name] = await opened.enter_async_context(running(api))
    for number in range(1, workers + 1):
        name = f"worker-{number}"
        worker = children.one_worker(commands.apart(name), found.env, settings, processes=processes)
        found.parts[name] = await opened.enter_async_context(running(worker))

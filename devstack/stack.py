"""The whole stack: started in order, watched, and stopped in the reverse order."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec

from devstack import children
from devstack.admin_key import read_key
from devstack.children import ROOT, Commands
from devstack.folder import held, kept_secret
from devstack.parts import Part, run_to_end, running
from devstack.ports import LOOPBACK, choose_port, free_port, url
from devstack.postgres import embedded_postgres
from devstack.prometheus import HOW_TO_GET_IT, Watch, find_prometheus, local_prometheus
from devstack.running_processes import RunningProcesses
from devstack.temporal import NAMESPACE, embedded_temporal
from devstack.temporal_cli import find_temporal_cli
from devstack.terminal import say
from timemachine.domain.errors import LocalStackError
from timemachine.settings import Auth, Settings, is_loopback
from timemachine.vault import new_key

_AUTH = "TIMEMACHINE_AUTH"

# Any of these says that there is a Temporal to use, so that none is started.
_GIVEN_TEMPORAL = ("TEMPORAL_ADDRESS", "TEMPORAL_PROFILE", "TEMPORAL_CONFIG_FILE")


class Stack(msgspec.Struct, kw_only=True):
    """The running stack."""

    folder: Path
    """Where its data and logs are."""

    env: dict[str, str]
    """The environment of its programs; with it others reach the same Postgres and Temporal."""

    api_url: str
    ui_url: str | None = None
    """Temporal's Web UI, where Temporal is started here."""

    admin_key: str | None = None
    """A key that may do everything, where keys are needed."""

    metrics: dict[str, str] = {}
    """Where its programs serve metrics, if they do, as `address:port` by the name of their part."""

    prometheus_url: str | None = None
    """Of the Prometheus that watches it, if one was wanted and is installed."""

    parts: dict[str, Part] = {}
    """What was started here: `postgres`, `temporal`, `api`, `worker`, `prometheus`. Each has its pid and can be
    restarted."""

    def forget(self, prefix: str) -> None:
        """Remove from the environment what begins so: what is meant for another server would not fit ours."""
        self.env = {name: value for name, value in self.env.items() if not name.startswith(prefix)}

    async def first_end(self) -> str:
        """Wait until one of the parts ends by itself, and return which, and how."""
        waits = {asyncio.create_task(part.wait()): part for part in self.parts.values()}
        try:
            ended, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return "; ".join(f"{waits[wait].name} {_manner(wait.result(), waits[wait])}" for wait in ended)


@asynccontextmanager
async def local_stack(
    settings: Settings, env: Mapping[str, str], *, commands: Commands | None = None, watch: Watch | None = None
) -> AsyncIterator[Stack]:
    """Run Postgres, Temporal, API and worker, each ready before the next starts; stop them in the reverse order.

    A Postgres or Temporal that the settings or the environment name is used instead of one of our own.

    Args:
        env: The environment that our programs get, with what they need to find each other put in.
        commands: Other programs in place of our own.
        watch: Have API and worker serve metrics on free ports, and run a Prometheus that does this, if one is
            installed.

    Raises:
        LocalStackError: A part does not start, a port or the data folder is in use, something is missing. What had
            been started is stopped.
    """
    folder = data_folder(settings)
    async with AsyncExitStack() as opened:
        opened.enter_context(held(folder))
        processes = await without_leftovers(folder)
        settings = _with_ports(settings, env)
        stack = Stack(
            folder=folder,
            env=_environment(settings, env),
            api_url=url(settings.http_host, settings.http_port),
            metrics=_on_free_ports("worker", "api") if watch else _as_set(settings.metrics_address),
        )
        await _start_postgres(stack, settings, opened, processes)
        await _start_temporal(stack, settings, opened, processes)
        await _start_ours(stack, settings, opened, processes, commands or Commands())
        if watch:
            await _start_prometheus(stack, watch, opened, processes)
        yield stack


def data_folder(settings: Settings) -> Path:
    """Return the folder of all data and logs, below which each stack has its own."""
    return (ROOT / Path(settings.data_dir).expanduser()).resolve()


async def without_leftovers(folder: Path) -> RunningProcesses:
    """Stop what an earlier run has left behind in a folder, and return the list of what runs there."""
    processes = RunningProcesses(folder)
    if leftovers := await processes.stop_leftovers():
        say(f"stopped what an earlier run left behind: {', '.join(leftovers)}")
    return processes


def _with_ports(settings: Settings, env: Mapping[str, str]) -> Settings:
    """Check every port before anything is started, and choose those that are 0."""
    changes = {"http_port": choose_port(settings.http_host, settings.http_port, "TIMEMACHINE_HTTP_PORT")}
    if not _is_temporal_given(env):
        for name in ("temporal_port", "temporal_ui_port"):
            changes[name] = choose_port(LOOPBACK, getattr(settings, name), f"TIMEMACHINE_{name.upper()}")
    return msgspec.structs.replace(settings, **changes)


def _environment(settings: Settings, env: Mapping[str, str]) -> dict[str, str]:
    changed = {"TIMEMACHINE_HTTP_PORT": str(settings.http_port)}
    if not env.get(_AUTH):
        changed[_AUTH] = Auth.NONE if is_loopback(settings.http_host) else Auth.KEYS
    if not settings.postgres_dsn or not _is_temporal_given(env):
        # A stack of one machine calls receivers on that machine.
        changed["TIMEMACHINE_ALLOW_PRIVATE_TARGETS"] = env.get("TIMEMACHINE_ALLOW_PRIVATE_TARGETS", "true")
    return {**env, **changed}


def _is_temporal_given(env: Mapping[str, str]) -> bool:
    return any(env.get(name) for name in _GIVEN_TEMPORAL)


async def _start_postgres(
    stack: Stack, settings: Settings, opened: AsyncExitStack, processes: RunningProcesses
) -> None:
    if settings.postgres_dsn:
        _check_keys(stack)
        return
    say("starting Postgres")
    postgres = await opened.enter_async_context(embedded_postgres(stack.folder, processes=processes))
    stack.forget("PG")
    stack.env["TIMEMACHINE_POSTGRES_DSN"] = postgres.dsn
    if not stack.env.get("TIMEMACHINE_SECRET_KEYS"):
        # Beside what it encrypts: without the one the other is worth nothing.
        stack.env["TIMEMACHINE_SECRET_KEYS"] = kept_secret(stack.folder / "secret.keys", new_key)
    stack.parts["postgres"] = postgres.part


def _check_keys(stack: Stack) -> None:
    """Refuse to make keys for a Postgres that is not ours, where they would be missing from the next folder."""
    if not stack.env.get("TIMEMACHINE_SECRET_KEYS"):
        raise LocalStackError(
            "TIMEMACHINE_SECRET_KEYS must be set where TIMEMACHINE_POSTGRES_DSN is; "
            "`python -m timemachine.vault` makes a key"
        )


async def _start_temporal(
    stack: Stack, settings: Settings, opened: AsyncExitStack, processes: RunningProcesses
) -> None:
    if _is_temporal_given(stack.env):
        return
    cli = await find_temporal_cli(settings.temporal_cli, stack.env)
    say("starting Temporal")
    temporal = await opened.enter_async_context(
        embedded_temporal(
            cli,
            stack.folder,
            port=settings.temporal_port,
            ui_port=settings.temporal_ui_port,
            env=stack.env,
            processes=processes,
        )
    )
    stack.forget("TEMPORAL_")
    stack.env |= {
        "TEMPORAL_ADDRESS": temporal.address,
        "TEMPORAL_NAMESPACE": NAMESPACE,
        "TEMPORAL_CONFIG_FILE": "/dev/null",
    }
    stack.ui_url = temporal.ui_url
    stack.parts["temporal"] = temporal.part


async def _start_ours(
    stack: Stack, settings: Settings, opened: AsyncExitStack, processes: RunningProcesses, commands: Commands
) -> None:
    say("preparing both: migrations and search attributes")
    await run_to_end(children.setup(commands, stack.env), processes=processes)
    if stack.env[_AUTH] == Auth.KEYS:
        file = stack.folder / "admin.key"
        await run_to_end(children.admin_key(commands, stack.env, file), processes=processes)
        stack.admin_key = await asyncio.to_thread(read_key, file)
    say("starting API and worker")
    program = children.api(commands, _with_metrics(stack, "api"), settings)
    api = Part(program, children.answers_ready(stack.api_url), processes=processes)
    stack.parts["api"] = await opened.enter_async_context(running(api))
    program = children.worker(commands, _with_metrics(stack, "worker"), settings)
    worker = Part(program, children.serves_queue(stack.env, settings.task_queue), processes=processes)
    stack.parts["worker"] = await opened.enter_async_context(running(worker))


async def _start_prometheus(stack: Stack, watch: Watch, opened: AsyncExitStack, processes: RunningProcesses) -> None:
    program = find_prometheus(stack.env)
    if program is None:
        say(HOW_TO_GET_IT)
        return
    say("starting Prometheus")
    prometheus = await opened.enter_async_context(
        local_prometheus(program, stack.folder, watch, scraped=stack.metrics, processes=processes)
    )
    stack.prometheus_url = prometheus.url
    stack.parts["prometheus"] = prometheus.part


def _with_metrics(stack: Stack, part: str) -> dict[str, str]:
    """Return the environment of a part, with where it serves metrics."""
    address = stack.metrics.get(part)
    return stack.env | {"TIMEMACHINE_METRICS_ADDRESS": address} if address else stack.env


def _on_free_ports(*parts: str) -> dict[str, str]:
    return {part: f"{LOOPBACK}:{free_port()}" for part in parts}


def _as_set(address: str | None) -> dict[str, str]:
    """Return where parts serve metrics: the API on the port after the worker's, which is on the same machine."""
    if not address:
        return {}
    host, _, port = address.rpartition(":")
    return {"worker": address, "api": f"{host}:{int(port) + 1 if int(port) else 0}"}


def _manner(status: int, part: Part) -> str:
    where = f"; its log: {part.program.log}" if part.program.log else ""
    return f"was killed by signal {-status}{where}" if status < 0 else f"ended with status {status}{where}"

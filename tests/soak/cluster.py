"""A cluster of real processes: Postgres, Temporal, two APIs, two workers. Each can be killed and started again."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import msgspec
import psutil
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client

from devstack import children
from devstack.children import Commands
from devstack.cluster import local_cluster
from devstack.parts import Part, run_to_end, running
from devstack.ports import free_port
from devstack.postgres import embedded_postgres
from devstack.temporal import embedded_temporal
from devstack.temporal_cli import find_temporal_cli
from devstack.temporal_server import VERSION
from tests.soak.story import Call
from tests.support.kills import stop
from timemachine.settings import Settings
from timemachine.vault import new_key

_OURS = ("TIMEMACHINE_", "TEMPORAL_")

SERVICES = tuple(f"temporal-{name}" for name in ("frontend", "history-1", "history-2", "matching", "worker"))
"""Temporal's, as `make cluster` runs them."""

_END_SESSIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'timemachine'"


UNREAD_MS = 100
"""A request that was sent so shortly before a stop may not have been read by then."""


class Loss(msgspec.Struct, kw_only=True):
    """A time in which a worker did nothing: from its kill or freeze on, until it was there again."""

    worker: int
    began_ms: int
    ended_ms: int | None = None
    own: frozenset[int] = frozenset()
    """Its ends of its connections at that moment. What was under way on these was cut."""
    others: frozenset[int] = frozenset()
    """Those of the other workers. What came from one of these was not cut."""


class Silence(msgspec.Struct, kw_only=True):
    """A time in which an API answered nothing, from its kill, freeze or stop on."""

    api: int
    began_ms: int
    ended_ms: int | None = None
    is_stop: bool = False
    """Whether what it had been asked before was to be answered."""

    def excuses(self, call: Call) -> bool:
        """Return whether a request that has no answer is not to have one."""
        if call.api != self.api or call.done_ms < self.began_ms or call.sent_ms > (self.ended_ms or call.sent_ms):
            return False
        return not self.is_stop or call.sent_ms >= self.began_ms - UNREAD_MS


class Cluster:
    """What runs, and what was done to it."""

    def __init__(
        self,
        *,
        postgres: Part,
        temporal: Part,
        dsn: str,
        temporal_address: str,
        logs: Path,
        namespace: str = "default",
        services: Mapping[str, Part] | None = None,
        folder: Path = Path(),
    ) -> None:
        self.logs = logs
        self.folder = folder
        """Of its data, where Temporal's services have a process each."""
        self.postgres = postgres
        self.temporal = temporal
        self.apis: list[Part] = []
        self.urls: list[str] = []
        """Where the APIs listen, in their order."""
        self.workers: list[Part] = []
        self.losses: list[Loss] = []
        """Of workers, in the order in which they began."""
        self.silences: list[Silence] = []
        self.services = dict(services or {})
        """Temporal's, by name, where each has a process of its own."""
        self._namespace = namespace
        self._temporal_address = temporal_address
        self._client: Client | None = None
        self.dsn = dsn

    async def restart_postgres(self) -> None:
        """Kill Postgres with all of its sessions, and start it again on the same port and folder."""
        kill(self.postgres)
        await self.postgres.restart()

    def kill_worker(self, number: int) -> None:
        self.freeze_worker(number)
        kill(self.workers[number])

    async def start_worker(self, number: int) -> None:
        """Start a worker that was killed, and return when it asks for tasks."""
        await self.workers[number].restart()
        self._note_end(number)

    def freeze_worker(self, number: int) -> None:
        worker, began_ms = self.workers[number].pid, _now_ms()
        before = _ports(worker)
        stop([psutil.Process(worker)])
        ports = [_ports(worker.pid) for worker in self.workers]
        others = frozenset().union(*ports[:number], *ports[number + 1 :])
        self.losses.append(Loss(worker=number, began_ms=began_ms, own=before | ports[number], others=others))

    def thaw_worker(self, number: int) -> None:
        psutil.Process(self.workers[number].pid).resume()
        self._note_end(number)

    async def kill_api(self, number: int, *, down: float) -> None:
        """Kill an API, and start it again after some seconds."""
        silence = self._silence(number)
        kill(self.apis[number])
        await asyncio.sleep(down)
        await self.apis[number].start()
        silence.ended_ms = _now_ms()

    async def restart_api(self, number: int) -> None:
        """Stop an API, which answers what it has been asked, and start it again."""
        silence = self._silence(number, is_stop=True)
        await self.apis[number].restart()
        silence.ended_ms = _now_ms()

    async def freeze_api(self, number: int, seconds: float) -> None:
        silence = self._silence(number)
        await freeze(self.apis[number], seconds)
        silence.ended_ms = _now_ms()

    def excuse(self, calls: Iterable[Call]) -> None:
        """Note which requests have no answer because their API was killed, stopped or frozen meanwhile."""
        for call in (call for call in calls if call.status is None):
            call.excused = any(silence.excuses(call) for silence in self.silences)

    def _silence(self, number: int, *, is_stop: bool = False) -> Silence:
        self.silences.append(Silence(api=number, began_ms=_now_ms(), is_stop=is_stop))
        return self.silences[-1]

    async def end_sessions(self) -> int:
        """End all sessions of the service's at Postgres, as a fail-over does, and return how many there were."""
        return len(await self._sql(_END_SESSIONS))

    async def run_of(self, workflow_id: str) -> str | None:
        """Return which run of a job Temporal has now: another one where the history was cut."""
        client = await self._connected()
        return (await client.get_workflow_handle(workflow_id).describe()).run_id

    async def history(self, workflow_id: str, last: int = 30) -> list[str]:
        """Return what Temporal has of a job, for people: its runs, and the last events of each."""
        lines = []
        client = await self._connected()
        async for run in client.list_workflows(f"WorkflowId = '{workflow_id}'"):
            history = await client.get_workflow_handle(run.id, run_id=run.run_id).fetch_history()
            lines.append(f"  run {run.run_id} {run.status and run.status.name}, {len(history.events)} events")
            lines += [
                f"    {event.event_time.ToJsonString()} {EventType.Name(event.event_type).removeprefix('EVENT_TYPE_')}"
                for event in history.events[-last:]
            ]
        return lines

    async def _connected(self) -> Client:
        if self._client is None:
            self._client = await Client.connect(self._temporal_address, namespace=self._namespace)
        return self._client

    async def _sql(self, query: str) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.dsn, timeout=5)
        try:
            return list(await connection.fetch(query))
        finally:
            await connection.close()

    def _note_end(self, number: int) -> None:
        for loss in self.losses:
            if loss.worker == number and loss.ended_ms is None:
                loss.ended_ms = _now_ms()


def kill(part: Part) -> None:
    """Kill a part with the processes that it has started."""
    with suppress(psutil.NoSuchProcess):
        tree = psutil.Process(part.pid)
        for process in (tree, *tree.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.kill()


async def freeze(part: Part, seconds: float) -> None:
    """Have a part with the processes that it has started do nothing for a while."""
    parent = psutil.Process(part.pid)
    try:
        await asyncio.to_thread(stop, [parent])  # it starts no others any more
        await asyncio.to_thread(stop, parent.children(recursive=True))
        await asyncio.sleep(seconds)
    finally:
        for process in (parent, *parent.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.resume()


def _now_ms() -> int:
    return int(time.time() * 1000)


def _ports(pid: int) -> frozenset[int]:
    """Return a process's own ends of its connections."""
    with suppress(psutil.Error):
        return frozenset(found.laddr.port for found in psutil.Process(pid).net_connections("tcp") if found.raddr)
    return frozenset()


@asynccontextmanager
async def cluster(folder: Path, *, logs: Path, apis: int = 2, workers: int = 2) -> AsyncIterator[Cluster]:
    """Run a cluster with the default settings on free ports, whatever this process's environment says.

    Args:
        folder: Where the data is.
        logs: Folder that the programs write to.
    """
    cli = await find_temporal_cli(os.environ.get("TIMEMACHINE_TEMPORAL_CLI"), os.environ)
    async with AsyncExitStack() as opened:
        postgres = await opened.enter_async_context(embedded_postgres(folder))
        temporal = await opened.enter_async_context(embedded_temporal(cli, folder, env=os.environ))
        env = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)} | {
            "TEMPORAL_ADDRESS": temporal.address,
            "TIMEMACHINE_AUTH": "none",
            "TIMEMACHINE_ALLOW_PRIVATE_TARGETS": "true",
            "TIMEMACHINE_DEFAULT_SCHEME": "http",
            "TIMEMACHINE_POSTGRES_DSN": postgres.dsn,
            "TIMEMACHINE_SECRET_KEYS": new_key(),
        }
        await run_to_end(children.setup(Commands(logs=logs), env))
        found = Cluster(
            postgres=postgres.part,
            temporal=temporal.part,
            dsn=postgres.dsn,
            temporal_address=temporal.address,
            logs=logs,
        )
        for number in range(apis):
            port = free_port()
            api = _api(Commands(logs=logs / f"api-{number}"), env | {"TIMEMACHINE_HTTP_PORT": str(port)}, port)
            found.apis.append(await opened.enter_async_context(running(api)))
            found.urls.append(f"http://127.0.0.1:{port}")
        for number in range(workers):
            worker = children.one_worker(Commands(logs=logs / f"worker-{number}"), env, Settings())
            found.workers.append(await opened.enter_async_context(running(worker)))
        yield found


def _api(commands: Commands, env: dict[str, str], port: int) -> Part:
    return Part(children.api(commands, env, Settings()), children.answers_ready(f"http://127.0.0.1:{port}"))


@asynccontextmanager
async def production(folder: Path, *, logs: Path, temporal_version: str = VERSION) -> AsyncIterator[Cluster]:
    """Run what `make cluster` runs, on free ports, whatever this process's environment says."""
    settings = Settings(
        http_port=0,
        temporal_port=0,
        temporal_ui_port=0,
        data_dir=str(folder),
        temporal_cli=os.environ.get("TIMEMACHINE_TEMPORAL_CLI"),
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    env["TIMEMACHINE_DEFAULT_SCHEME"] = "http"
    commands = Commands(logs=logs)
    async with local_cluster(settings, env, commands=commands, temporal_version=temporal_version) as running:
        found = Cluster(
            postgres=running.parts["postgres"],
            temporal=running.parts["temporal-frontend"],
            dsn=running.env["TIMEMACHINE_POSTGRES_DSN"],
            temporal_address=running.env["TEMPORAL_ADDRESS"],
            namespace=running.env["TEMPORAL_NAMESPACE"],
            services={name: running.parts[name] for name in SERVICES},
            folder=running.folder,
            logs=logs,
        )
        found.urls = list(running.api_urls)
        found.apis = [running.parts[f"api-{number}"] for number in (1, 2)]
        found.workers = [running.parts[f"worker-{number}"] for number in (1, 2)]
        yield found

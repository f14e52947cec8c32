"""A cluster of real processes: Postgres, Temporal, two APIs, two workers. Each can be killed and started again."""

import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

import asyncpg
import msgspec
import psutil
from temporalio.api.enums.v1 import EventType, TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client
from temporalio.service import RPCError

from devstack import children
from devstack.children import Commands
from devstack.parts import Part, run_to_end, running
from devstack.ports import free_port
from devstack.postgres import embedded_postgres
from devstack.temporal import embedded_temporal
from devstack.temporal_cli import find_temporal_cli
from timemachine.settings import Settings
from timemachine.vault import new_key

_OURS = ("TIMEMACHINE_", "TEMPORAL_")

_END_SESSIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'timemachine'"


class Loss(msgspec.Struct, kw_only=True):
    """A time in which a worker did nothing: from its kill or freeze on, until it was there again."""

    worker: int
    began_ms: int
    ended_ms: int | None = None
    others: frozenset[int] = frozenset()
    """The other workers' ends of their connections at that moment. What came from one of these was not cut."""


class Cluster:
    """What runs, and what was done to it."""

    def __init__(self, *, postgres: Part, temporal: Part, dsn: str, temporal_address: str, logs: Path) -> None:
        self.logs = logs
        self.postgres = postgres
        self.temporal = temporal
        self.apis: list[Part] = []
        self.urls: list[str] = []
        """Where the APIs listen, in their order."""
        self.workers: list[Part] = []
        self.losses: list[Loss] = []
        """Of workers, in the order in which they began."""
        self._temporal_address = temporal_address
        self._client: Client | None = None
        self._dsn = dsn

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
        psutil.Process(self.workers[number].pid).send_signal(signal.SIGSTOP)
        began_ms = int(time.time() * 1000)
        others = [_ports(worker.pid) for other, worker in enumerate(self.workers) if other != number]
        self.losses.append(Loss(worker=number, began_ms=began_ms, others=frozenset().union(*others)))

    def thaw_worker(self, number: int) -> None:
        psutil.Process(self.workers[number].pid).send_signal(signal.SIGCONT)
        self._note_end(number)

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
            self._client = await Client.connect(self._temporal_address)
        return self._client

    async def _sql(self, query: str) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self._dsn, timeout=5)
        try:
            return list(await connection.fetch(query))
        finally:
            await connection.close()

    def _note_end(self, number: int) -> None:
        for loss in self.losses:
            if loss.worker == number and loss.ended_ms is None:
                loss.ended_ms = int(time.time() * 1000)


def kill(part: Part) -> None:
    """Kill a part with the processes that it has started."""
    with suppress(psutil.NoSuchProcess):
        tree = psutil.Process(part.pid)
        for process in (tree, *tree.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.kill()


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
            worker = _worker(Commands(logs=logs / f"worker-{number}"), env)
            found.workers.append(await opened.enter_async_context(running(worker)))
        yield found


def _api(commands: Commands, env: dict[str, str], port: int) -> Part:
    return Part(children.api(commands, env, Settings()), children.answers_ready(f"http://127.0.0.1:{port}"))


def _worker(commands: Commands, env: dict[str, str]) -> Part:
    async def asks() -> bool:
        with suppress(RPCError, RuntimeError):
            return await _is_polled_by(part.pid, env["TEMPORAL_ADDRESS"])
        return False

    part = Part(children.worker(commands, env, Settings()), asks)
    return part


async def _is_polled_by(pid: int, address: str) -> bool:
    """Return whether the worker of a process asks for tasks; beside another, it has to be told by its name."""
    client = await Client.connect(address)
    described = await client.workflow_service.describe_task_queue(
        DescribeTaskQueueRequest(
            namespace=client.namespace,
            task_queue=TaskQueue(name=Settings().task_queue),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
        ),
        timeout=timedelta(seconds=5),
    )
    return any(poller.identity.startswith(f"{pid}@") for poller in described.pollers)

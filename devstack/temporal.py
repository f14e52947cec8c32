"""Temporal's dev server on a file database, with its Web UI, run as our own child process."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

import msgspec
from google.protobuf.duration_pb2 import Duration
from temporalio.api.namespace.v1 import NamespaceConfig
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, UpdateNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError

from devstack.parts import Part, Program, running
from devstack.ports import LOOPBACK, free_port, url
from devstack.running_processes import RunningProcesses
from devstack.stuck_sqlite import started_anew_when_stuck
from devstack.visibility_indexes import drop_unasked_indexes
from timemachine.temporal.search_attributes import KINDS, kind_name

NAMESPACE = "default"

RETENTION = timedelta(days=30)
"""How long ended jobs can be looked at. The dev server's own is a day, and it has no option for it."""

_DYNAMIC_CONFIG = {
    # The server hands an activity to the worker together with the answer that asked for it, without a queue between.
    "system.enableActivityEagerExecution": "true",
    # Lists and counts a second. The dev server's own is 100, which a benchmark or a busy Web UI meets.
    "frontend.namespaceRPS.visibility": "1000",
    # The dev server reads the search attributes anew for each start and each row of a list, so that new ones are known
    # at once. They are kept, as in production.
    "system.forceSearchAttributesCacheRefreshOnRead": "false",
    # Routes share what is to be done now by their fairness keys, so that none waits for another's thousands.
    "matching.useNewMatcher": "true",
    "matching.enableFairness": "true",
    # A workflow task that was lost is handed out again after 20 s at the most, and not after up to 10 minutes.
    "history.workflowTaskRetryMaxInterval": '"10s"',
    # All share one connection to SQLite, so what lists show may be written a moment later than what is due. Of a job
    # that has ended by then, only the end is.
    "history.visibilityProcessorSchedulerWorkerCount": "4",
}

# WAL with synchronous=NORMAL: three times as fast, and keeps everything through a killed process, though a power cut
# may lose the last moments. Its own writes wait while we change the file, too, and do not fail.
_PRAGMAS = ("journal_mode=wal", "synchronous=1", "busy_timeout=5000")

# Of a look whether it is up. A call that is given up early may be what SQLite gets stuck by.
_PATIENCE = timedelta(seconds=10)

# Let garbage grow to twice of what is in use before it is collected, and not to as much: for a quarter more memory, 7 %
# less of the server's CPU, which is what all else waits for.
_GO = {"GOGC": "200"}


class Temporal(msgspec.Struct, frozen=True):
    """A running dev server."""

    part: Part
    address: str
    ui_url: str


@asynccontextmanager
async def embedded_temporal(
    cli: Path,
    folder: Path,
    *,
    port: int = 0,
    ui_port: int = 0,
    env: Mapping[str, str] | None = None,
    processes: RunningProcesses | None = None,
    dynamic_config: Mapping[str, str] | None = None,
) -> AsyncIterator[Temporal]:
    """Run the dev server on loopback with its database in `folder`/temporal.db, and stop it in the end.

    It is started anew when its connection to SQLite is stuck.

    Args:
        cli: The `temporal` program, from `find_temporal_cli`.
        port: Port of its gRPC service; 0 takes a free one.
        ui_port: Port of its Web UI; 0 takes a free one.
        env: The environment that the program is looked up in; of it the server gets PATH and HOME.
        dynamic_config: Values of the server's dynamic configuration, as JSON, beside our own.

    Raises:
        LocalStackError: It does not start; the message has the last lines of its log.
    """
    port, ui_port = port or free_port(), ui_port or free_port()
    address = f"{LOOPBACK}:{port}"
    database, made = folder / "temporal.db", folder / "temporal.made"
    _remove_unfinished(folder, made)
    server = _server(cli, folder, port, ui_port, env or {}, _DYNAMIC_CONFIG | dict(dynamic_config or {}))
    part = Part(server, lambda: _answers(address), processes=processes)
    kept = made.exists() and database.exists()
    if kept:  # now that nobody else writes: those of an earlier version may take seconds
        await asyncio.to_thread(drop_unasked_indexes, database)
    async with running(part):
        if not kept:
            await asyncio.to_thread(drop_unasked_indexes, database)
            made.touch()
        await _keep_ended_jobs(address)
        async with started_anew_when_stuck(part, address, NAMESPACE):
            yield Temporal(part, address, url(LOOPBACK, ui_port))


def _server(
    cli: Path, folder: Path, port: int, ui_port: int, env: Mapping[str, str], config: Mapping[str, str]
) -> Program:
    return Program(
        name="Temporal",
        argv=(
            *(str(cli), "server", "start-dev", "--ip", LOOPBACK),
            *("--port", str(port), "--ui-port", str(ui_port), "--db-filename", str(folder / "temporal.db")),
            *(word for pragma in _PRAGMAS for word in ("--sqlite-pragma", pragma)),
            *(word for item in config.items() for word in ("--dynamic-config-value", "=".join(item))),
            # A new file has them from the start, so that nothing waits until each part of the server knows them.
            *(word for name, kind in KINDS.items() for word in ("--search-attribute", f"{name}={kind_name(kind)}")),
            *("--log-level", "warn", "--color", "never"),
        ),
        # Enough for a `temporal` that is a version manager's script; TEMPORAL_* is meant for clients.
        env={name: env[name] for name in ("PATH", "HOME") if name in env} | _GO,
        log=folder / "logs" / "temporal.log",
        # The server picks ports for its inner services, and another program may be faster to take one.
        passing="address already in use",
    )


def _remove_unfinished(folder: Path, made: Path) -> None:
    """Remove a database whose first start was cut short: its schema may lack tables, and no job is in it yet."""
    if not made.exists():
        for file in folder.glob("temporal.db*"):
            file.unlink()


async def _answers(address: str) -> bool:
    with suppress(RPCError, RuntimeError):
        client = await Client.connect(address, namespace=NAMESPACE)
        await client.workflow_service.describe_namespace(
            DescribeNamespaceRequest(namespace=NAMESPACE), timeout=_PATIENCE
        )
        # Asks the part of the server that keeps the jobs, which is the last to come up.
        await client.count_workflows("WorkflowType = 'Job'", rpc_timeout=_PATIENCE)
        return True
    return False


async def _keep_ended_jobs(address: str) -> None:
    retention = Duration()
    retention.FromTimedelta(RETENTION)
    client = await Client.connect(address, namespace=NAMESPACE)
    await client.workflow_service.update_namespace(
        UpdateNamespaceRequest(namespace=NAMESPACE, config=NamespaceConfig(workflow_execution_retention_ttl=retention)),
        timeout=timedelta(seconds=10),
    )

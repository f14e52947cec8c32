"""Where the implementations meet: one stack, with our worker and the straightforward one, and a receiver."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import msgspec
import psutil
from temporalio.client import Client

from benchmarks.http_load import HttpLoad
from benchmarks.implementations import Empty, Implementation, Ours, Raw, SameRaw, Standalone, Straightforward
from benchmarks.peers.__main__ import TASK_QUEUE as PEERS
from benchmarks.results import TableSize
from benchmarks.sink import Sink, receiving
from benchmarks.stack import Nodes, fresh_stack
from benchmarks.straightforward.__main__ import TASK_QUEUE
from devstack.children import ROOT, serves_queue
from devstack.parts import Part, Program, running
from devstack.postgres import DATABASE
from devstack.stack import Stack
from devstack.temporal_cluster import DATABASES
from devstack.terminal import say
from timemachine.temporal.payloads import DATA_CONVERTER

WEB_UI = "temporal-ui"
"""Of a cluster's parts the one that is not of Temporal's server."""

LOGS = ROOT / "build" / "bench" / "logs"
"""Where our API and our worker write to, and the straightforward worker."""

QUIET_LIMIT = 600.0
"""Seconds that Temporal gets to finish what it still does of the scenario before."""

_TABLE_SIZES = "SELECT relname, pg_table_size(relid), pg_indexes_size(relid) FROM pg_stat_user_tables ORDER BY relname"
"""Rows with what is too large for them, and indexes, in bytes."""

_START_UP = 1.0

# What a cluster of Temporal's takes without work, of one core, in all of its processes: up to 10 %, and 16 % on a slow
# machine. A moment after work it first looks so, too, and then clears up behind itself for some seconds.
_IDLE_PERCENT, _IDLE_SECONDS = 25, 5


class Testbed(msgspec.Struct, frozen=True, kw_only=True):
    """All that a scenario needs."""

    stack: Stack
    client: Client
    """With the SDK's defaults."""
    sink: Sink
    raw: Raw
    same_raw: SameRaw
    straightforward: Straightforward
    ours: Ours
    peers: tuple[Implementation, ...] = ()
    """Temporal's own ways, on a cluster only; the empty workflow first."""
    cluster: Nodes | None = None
    """Its processes, where it is one."""

    def processes(self, part: str) -> list[Part]:
        """Return the processes of a part, which on a cluster may be several: `temporal` is all of Temporal's server."""
        parts = ((name, process) for name, process in self.stack.parts.items() if name != WEB_UI)
        return [process for name, process in parts if name == part or name.startswith(f"{part}-")]

    def pids(self, part: str) -> list[int]:
        """Return the process ids of a part."""
        return [process.pid for process in self.processes(part)]

    async def quiet(self) -> None:
        """Wait until Temporal has had nothing to do for some seconds; say so where it does not come to rest in time."""
        temporal = [psutil.Process(pid) for pid in self.pids("temporal")]
        for process in temporal:
            process.cpu_percent()
        idle, deadline = 0, time.monotonic() + QUIET_LIMIT
        while idle < _IDLE_SECONDS and time.monotonic() < deadline:
            await asyncio.sleep(1)
            idle = idle + 1 if sum(process.cpu_percent() for process in temporal) < _IDLE_PERCENT else 0
        if idle < _IDLE_SECONDS:
            say(f"Temporal has not come to rest within {QUIET_LIMIT:g} s: measured all the same")

    async def versions(self) -> dict[str, str]:
        """Return the versions of the servers."""
        temporal = next(part for name, part in self.stack.parts.items() if name.startswith("temporal"))
        return {
            Path(temporal.program.argv[0]).name: await _version(temporal),
            "postgres": await self.sql("SHOW server_version"),
        }

    async def sql(self, query: str) -> str:
        """Return the one value that our database answers to a query, as text."""
        return str((await self._rows(query, DATABASE))[0][0])

    async def tables(self) -> list[TableSize]:
        """Return what each table of Temporal's and of ours takes now; of none where Temporal's are not in Postgres."""
        if self.cluster is None:
            return []
        return [
            TableSize(database=database, table=table, rows=rows, indexes=indexes)
            for database in (*DATABASES, DATABASE)
            for table, rows, indexes in await self._rows(_TABLE_SIZES, database)
        ]

    async def _rows(self, query: str, database: str) -> list[asyncpg.Record]:
        dsn = urlsplit(self.stack.env["TIMEMACHINE_POSTGRES_DSN"])._replace(path=f"/{database}").geturl()
        postgres = await asyncpg.connect(dsn)
        try:
            return list(await postgres.fetch(query))
        finally:
            await postgres.close()


@asynccontextmanager
async def testbed(cluster: Nodes | None) -> AsyncIterator[Testbed]:
    """Start everything anew, on a cluster of these processes or else as `make run` does, and stop it in the end."""
    async with (
        fresh_stack(logs=LOGS, cluster=cluster) as stack,
        running(_worker(stack, "straightforward", TASK_QUEUE)) as stack.parts["straightforward"],
        AsyncExitStack() as opened,
        receiving() as sink,
    ):
        if cluster:
            stack.parts["peers"] = await opened.enter_async_context(running(_worker(stack, "peers", PEERS)))
        address, namespace = stack.env["TEMPORAL_ADDRESS"], stack.env["TEMPORAL_NAMESPACE"]
        client = await Client.connect(address, namespace=namespace)
        ours = await Client.connect(address, namespace=namespace, data_converter=DATA_CONVERTER)
        with closing(HttpLoad(stack.api_url)) as http:
            found = Testbed(
                stack=stack,
                client=client,
                sink=sink,
                raw=Raw(client),
                same_raw=SameRaw(ours),
                straightforward=Straightforward(client),
                ours=Ours(client, http),
                peers=(Empty(client), Standalone(client)) if cluster else (),
                cluster=cluster,
            )
            await found.ours.add_route(sink.url)
            await asyncio.sleep(_START_UP)  # the programs' own start-up is not measured
            yield found


def _worker(stack: Stack, name: str, task_queue: str) -> Part:
    """Return the worker of other implementations, `benchmarks.<name>`."""
    program = Program(
        name=f"the worker {name}",
        argv=(sys.executable, "-m", f"benchmarks.{name}"),
        env=stack.env,
        cwd=ROOT,
        log=LOGS / f"{name}.log",
    )
    return Part(program, serves_queue(stack.env, task_queue))


async def _version(part: Part) -> str:
    """Return what a program says of its version, without its name."""
    program = Path(part.program.argv[0])
    process = await asyncio.create_subprocess_exec(program, "--version", stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return output.decode().strip().removeprefix(f"{program.name} version ")

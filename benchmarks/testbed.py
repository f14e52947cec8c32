"""Where the implementations meet: one stack, with our worker and the straightforward one, and a receiver."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import asyncpg
import msgspec
import psutil
from temporalio.client import Client

from benchmarks.http_load import HttpLoad
from benchmarks.implementations import Ours, Raw, SameRaw, Straightforward
from benchmarks.sink import Sink, receiving
from benchmarks.stack import fresh_stack
from benchmarks.straightforward.__main__ import TASK_QUEUE
from devstack.children import ROOT, serves_queue
from devstack.parts import Part, Program, running
from devstack.stack import Stack
from timemachine.temporal.payloads import DATA_CONVERTER

LOGS = ROOT / "build" / "bench" / "logs"
"""Where our API and our worker write to, and the straightforward worker."""

QUIET_LIMIT = 120.0
"""Seconds that Temporal gets to finish what it still does of the scenario before."""

_IDLE_PERCENT = 20
_START_UP = 1.0


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

    async def quiet(self) -> None:
        """Wait until Temporal has nothing left to do of what was before.

        Raises:
            RuntimeError: It does not come to rest.
        """
        temporal = psutil.Process(self.stack.parts["temporal"].pid)
        temporal.cpu_percent()
        for _ in range(int(QUIET_LIMIT / 0.5)):
            await asyncio.sleep(0.5)
            if temporal.cpu_percent() < _IDLE_PERCENT:
                return
        raise RuntimeError(f"Temporal has not come to rest within {QUIET_LIMIT:g} s")

    async def versions(self) -> dict[str, str]:
        """Return the versions of the servers."""
        return {
            "temporal CLI": await _version(self.stack.parts["temporal"]),
            "postgres": await self.sql("SHOW server_version"),
        }

    async def sql(self, query: str) -> str:
        """Return the one value that Postgres answers to a query, as text."""
        postgres = await asyncpg.connect(self.stack.env["TIMEMACHINE_POSTGRES_DSN"])
        try:
            return str(await postgres.fetchval(query))
        finally:
            await postgres.close()


@asynccontextmanager
async def testbed() -> AsyncIterator[Testbed]:
    """Start everything anew, and stop it in the end."""
    async with fresh_stack(logs=LOGS) as stack, running(_straightforward_worker(stack)) as worker, receiving() as sink:
        stack.parts["straightforward"] = worker
        address = stack.env["TEMPORAL_ADDRESS"]
        client = await Client.connect(address)
        with closing(HttpLoad(stack.api_url)) as http:
            found = Testbed(
                stack=stack,
                client=client,
                sink=sink,
                raw=Raw(client),
                same_raw=SameRaw(await Client.connect(address, data_converter=DATA_CONVERTER)),
                straightforward=Straightforward(client),
                ours=Ours(http),
            )
            await found.ours.add_route(sink.url)
            await asyncio.sleep(_START_UP)  # the programs' own start-up is not measured
            yield found


def _straightforward_worker(stack: Stack) -> Part:
    program = Program(
        name="the straightforward worker",
        argv=(sys.executable, "-m", "benchmarks.straightforward"),
        env=stack.env,
        cwd=ROOT,
        log=LOGS / "straightforward.log",
    )
    return Part(program, serves_queue(stack.env, TASK_QUEUE))


async def _version(part: Part) -> str:
    """Return what a program says of its version, without its name."""
    program = Path(part.program.argv[0])
    process = await asyncio.create_subprocess_exec(program, "--version", stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return output.decode().strip().removeprefix(f"{program.name} version ")

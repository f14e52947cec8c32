"""Starting the dev server anew once it answers everything with `interrupted`.

A caller that gives up may cut off its query at a moment after which the server's only connection to SQLite refuses all
that follows: see docs/decisions/0036-stuck-sqlite.md.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError

from devstack.parts import Part
from devstack.terminal import say
from timemachine.domain.errors import LocalStackError

_LOOK_EVERY = 1.0

# Long, as a look that is given up may be what cuts a query off.
_PATIENCE = timedelta(seconds=60)

# One answer of the kind may be to a query that was cut off by itself, after which the connection is whole.
_LOOKS_TO_BE_SURE = 3

_STUCK = "interrupted (9)"
_ANSWERED = f"answered nothing but '{_STUCK}', a fault of its SQLite"


@asynccontextmanager
async def started_anew_when_stuck(part: Part, address: str, namespace: str) -> AsyncIterator[None]:
    """Look each second whether a dev server is stuck, and restart it then. Its data are in a file, and stay.

    A line says so. Where it does not start again, the line has the reason, and the part has ended.

    Args:
        part: The server.
        address: Its address, as `host:port`.
        namespace: One that it has.
    """
    watch = asyncio.create_task(_restart_when_stuck(part, address, namespace))
    try:
        yield
    finally:
        watch.cancel()
        await asyncio.wait([watch])
        if not watch.cancelled():
            watch.result()  # has ended before, and raises what ended it


async def _restart_when_stuck(part: Part, address: str, namespace: str) -> None:
    client = await Client.connect(address, namespace=namespace, lazy=True)
    while True:
        stuck = await _stuck_process(part, client)
        try:
            restarted = await part.restart_process(stuck)
        except (LocalStackError, OSError) as error:
            say(f"{part.name} {_ANSWERED}: {error}")
            return
        if restarted:
            say(f"{part.name} {_ANSWERED}; it was started anew")


async def _stuck_process(part: Part, client: Client) -> int:
    """Wait until a process of the server is stuck, and return its id."""
    pid, looks = part.pid, 0
    while looks < _LOOKS_TO_BE_SURE:
        await asyncio.sleep(_LOOK_EVERY)
        if part.pid != pid:
            pid, looks = part.pid, 0
        looks = looks + 1 if await _is_stuck(client) else 0
    return pid


async def _is_stuck(client: Client) -> bool:
    try:
        # Reads the database each time, and needs no other service of the server.
        request = DescribeNamespaceRequest(namespace=client.namespace)
        await client.workflow_service.describe_namespace(request, timeout=_PATIENCE)
    except (RPCError, RuntimeError) as error:  # the latter where nobody has ever listened
        return _STUCK in str(error)
    return False

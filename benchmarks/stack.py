"""The stack that a benchmark runs on: everything on this machine, on free ports, with nothing in it yet."""

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import msgspec

from devstack.children import Commands
from devstack.cluster import local_cluster
from devstack.stack import Stack, local_stack
from devstack.temporal_cluster import one_service_each
from timemachine.settings import Settings

_OURS = ("TIMEMACHINE_", "TEMPORAL_", "OTEL_")
"""How the variables begin that our programs read."""


class Nodes(msgspec.Struct, frozen=True, kw_only=True):
    """How many processes of a kind a cluster has; of all others it has one."""

    histories: int = 2
    workers: int = 1


@asynccontextmanager
async def fresh_stack(*, logs: Path | None = None, cluster: Nodes | None = None) -> AsyncIterator[Stack]:
    """Run a stack with the default settings, whatever this process's environment says.

    Args:
        logs: Folder that our programs write to; without one they write where we write.
        cluster: Run a cluster, of these processes, as `make cluster` does.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            http_port=0,
            temporal_port=0,
            temporal_ui_port=0,
            data_dir=folder,
            temporal_cli=os.environ.get("TIMEMACHINE_TEMPORAL_CLI"),
        )
        env = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        env["TIMEMACHINE_DEFAULT_SCHEME"] = "http"
        commands = Commands(logs=logs)
        async with _started(settings, env, commands, cluster) as stack:
            yield stack


def _started(
    settings: Settings, env: dict[str, str], commands: Commands, cluster: Nodes | None
) -> AbstractAsyncContextManager[Stack]:
    if cluster is None:
        return local_stack(settings, env, commands=commands)
    layout = one_service_each(cluster.histories)
    return local_cluster(settings, env, commands=commands, apis=1, workers=cluster.workers, layout=layout)

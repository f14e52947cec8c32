"""The stack that a benchmark runs on: everything on this machine, on free ports, with nothing in it yet."""

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from devstack.children import Commands
from devstack.cluster import local_cluster
from devstack.stack import Stack, local_stack
from timemachine.settings import Settings

_OURS = ("TIMEMACHINE_", "TEMPORAL_")


@asynccontextmanager
async def fresh_stack(*, logs: Path | None = None, cluster: bool = False) -> AsyncIterator[Stack]:
    """Run a stack with the default settings, whatever this process's environment says.

    Args:
        logs: Folder that our programs write to; without one they write where we write.
        cluster: Run what `make cluster` does, with one API and one worker.
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
        started = (
            local_cluster(settings, env, commands=commands, apis=1, workers=1)
            if cluster
            else local_stack(settings, env, commands=commands)
        )
        async with started as stack:
            yield stack

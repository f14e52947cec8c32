"""A worker in a process of its own, which a test may kill or freeze."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from tests.support.leaks import leaks_in
from timemachine.settings import Settings

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def worker_process(settings: Settings, temporal_address: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a worker, and return once it works."""
    names = ("postgres_dsn", "secret_keys", "task_queue", "default_scheme", "bulk_per_second")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("TIMEMACHINE_", "TEMPORAL_"))}
    env |= {f"TIMEMACHINE_{name.upper()}": str(getattr(settings, name)) for name in names}
    env |= {"TIMEMACHINE_ALLOW_PRIVATE_TARGETS": "true", "TEMPORAL_ADDRESS": temporal_address}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "worker.py")),
        env=env | {"PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr
    log = process.stderr
    reading: asyncio.Task[bytes] | None = None
    try:
        async with asyncio.timeout(30):
            while b'"working"' not in (line := await log.readline()):
                assert line, "the worker does not start"
        reading = asyncio.create_task(log.read())  # lest it waits for somebody to read what it logs
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if reading is not None:
            assert leaks_in((await reading).decode()) == []

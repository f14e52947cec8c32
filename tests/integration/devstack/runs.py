"""`python -m devstack run` as a process of its own, on free ports, for the tests to read, kill and stop."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import psutil

from devstack.children import ROOT
from devstack.running_processes import Entry

FREE_PORTS = dict.fromkeys(("TIMEMACHINE_HTTP_PORT", "TIMEMACHINE_TEMPORAL_PORT", "TIMEMACHINE_TEMPORAL_UI_PORT"), "0")
GIVEN = ("TIMEMACHINE_POSTGRES_DSN", "TEMPORAL_")


class Run:
    """One run of the whole stack."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.output = ""

    async def until(self, text: str) -> str:
        """Read its output up to the line that has `text`, and return that line."""
        assert self.process.stdout
        while line := (await self.process.stdout.readline()).decode():
            self.output += line
            if text in line:
                return line
        raise AssertionError(f"ended without {text!r}:\n{self.output}")

    async def end(self) -> int:
        """Wait for its end, and return the status."""
        assert self.process.stdout
        self.output += (await self.process.stdout.read()).decode()
        return await self.process.wait()

    async def stop(self, signum: int = signal.SIGTERM) -> int:
        """Ask it to stop, and return the status."""
        self.process.send_signal(signum)
        return await self.end()

    async def kill(self) -> None:
        """Kill it, and leave its parts running."""
        self.process.kill()
        await _gone(self.process.pid)

    def parts(self) -> dict[str, psutil.Process]:
        """Return the running parts by name."""
        file = self.folder / "running.json"
        entries = msgspec.json.decode(file.read_bytes(), type=list[Entry]) if file.exists() else []
        return {entry.name: process for entry in entries if (process := entry.process())}


@asynccontextmanager
async def a_run(folder: Path, *arguments: str, **env: str) -> AsyncIterator[Run]:
    """Start a run with its data in `folder`; stop it where the test has not."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(GIVEN)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "devstack", "run", *arguments),
        cwd=ROOT,
        env={**inherited, **FREE_PORTS, "TIMEMACHINE_DATA_DIR": str(folder), **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        # Whoever runs the tests in the background lets Ctrl-C be ignored, which a child would inherit.
        preexec_fn=_heed_ctrl_c,
    )
    run = Run(process, folder)
    try:
        yield run
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await _gone(process.pid)
        # Of a run that was killed and not followed by another; they would hold its output open.
        for part in run.parts().values():
            part.kill()
        await run.end()


async def _gone(pid: int) -> None:
    """Wait until a process has ended, which asyncio says only when its output is closed by all who have it."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        while not is_gone(process):
            await asyncio.sleep(0.02)


def _heed_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def is_gone(process: psutil.Process) -> bool:
    """Say whether a process has ended; a zombie whose parent was killed has."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE

"""Child processes: started, watched, stopped and started again."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO

import msgspec

from devstack.running_processes import RunningProcesses
from timemachine.domain.errors import LocalStackError

Ready = Callable[[], Awaitable[bool]]

# Seconds during which a start that fails for a passing reason is tried again.
_RETRY_FOR = 15.0

_LOG_KEPT = 20_000_000


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """What to run, where its output goes, and how it is stopped. Times are in seconds."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: Path | None = None

    log: Path | None = None
    """File that its output is added to; without one it writes where we write."""

    stop_signal: int = signal.SIGTERM
    start_limit: float = 60.0
    stop_limit: float = 15.0

    passing: str | None = None
    """Text in the message or the log of a failed start that makes it worth another try. An empty one is in all."""


class Part:
    """A program of the stack while it runs; killed, it can be started again with the same data and ports."""

    def __init__(self, program: Program, ready: Ready, *, processes: RunningProcesses | None = None) -> None:
        """Prepare the part; nothing is started yet.

        Args:
            ready: Says whether the program does its work; asked until it does. Limits its own time.
            processes: Where the process is noted, for the next run to stop it should this one be killed.
        """
        self.program = program
        self._ready = ready
        self._processes = processes
        self._process: asyncio.subprocess.Process | None = None
        self._restarting = asyncio.Lock()
        self._log_start = 0

    @property
    def name(self) -> str:
        """Its name, for messages."""
        return self.program.name

    @property
    def pid(self) -> int:
        """The process id of the program, or of its last run."""
        return self._last.pid

    async def start(self) -> None:
        """Start the program and wait until it is ready.

        Raises:
            LocalStackError: It ended, or was not ready in time. The message has the last lines of its log.
        """
        deadline = time.monotonic() + _RETRY_FOR
        while failure := await self._try_start():
            reason = f"{failure}{_log_tail(self.program.log, self._log_start)}"
            if time.monotonic() > deadline or self.program.passing is None or self.program.passing not in reason:
                raise LocalStackError(reason)
            await asyncio.sleep(0.2)

    async def wait(self) -> int:
        """Wait until the program ends without being restarted, and return its status (negative: the signal)."""
        while True:
            process = self._last
            status = await process.wait()
            async with self._restarting:
                if process is self._last:
                    return status

    async def stop(self) -> None:
        """Stop the program, if it runs: by its signal, and by SIGKILL when it takes too long or we are cancelled."""
        process = self._last
        try:
            async with asyncio.timeout(self.program.stop_limit):
                if process.returncode is None:
                    with suppress(ProcessLookupError):
                        process.send_signal(self.program.stop_signal)
                await process.wait()
        except TimeoutError:
            pass
        finally:
            await _noted_end(process, self._processes)

    async def restart(self) -> None:
        """Start the program anew, after stopping it where it still runs.

        Raises:
            LocalStackError: As `start` does.
        """
        async with self._restarting:
            await self._restart()

    async def restart_process(self, pid: int) -> bool:
        """Do so where this process still runs, and not where it has ended or another one has taken its place.

        Returns:
            Whether it was restarted.

        Raises:
            LocalStackError: As `start` does.
        """
        async with self._restarting:
            if self.pid != pid or self._last.returncode is not None:
                return False
            await self._restart()
            return True

    async def _restart(self) -> None:
        await self.stop()
        await self.start()

    @property
    def _last(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise LocalStackError(f"{self.name} has not been started")
        return self._process

    async def _try_start(self) -> str | None:
        """Start the program once, and return why that failed, or None when it is ready."""
        self._log_start = _rotated_size(self.program.log)
        self._process = await _noted_spawn(self.program, self._processes)
        try:
            async with asyncio.timeout(self.program.start_limit):
                # What we wait for happens in another program.
                while self._last.returncode is None and not await self._ready():  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        except TimeoutError:
            await self.stop()
            return f"{self.name} was not ready within {self.program.start_limit:g} s"
        except BaseException:
            await self.stop()
            raise
        if (status := self._last.returncode) is not None:
            await _noted_end(self._last, self._processes)
            return f"{self.name} ended with status {status} before it was ready"
        return None


@asynccontextmanager
async def running(part: Part) -> AsyncIterator[Part]:
    """Start the part, and stop it in the end.

    Raises:
        LocalStackError: It did not start.
    """
    await part.start()
    try:
        yield part
    finally:
        await part.stop()


async def run_to_end(program: Program, *, processes: RunningProcesses | None = None) -> None:
    """Run a program that ends by itself, within its `start_limit`.

    Args:
        processes: As for a `Part`.

    Raises:
        LocalStackError: It failed or took too long. The message has the last lines of its log.
    """
    log_start = _rotated_size(program.log)
    process = await _noted_spawn(program, processes)
    try:
        async with asyncio.timeout(program.start_limit):
            status = await process.wait()
    except TimeoutError as error:
        tail = _log_tail(program.log, log_start)
        raise LocalStackError(f"{program.name} took longer than {program.start_limit:g} s{tail}") from error
    finally:
        await _noted_end(process, processes)
    if status != 0:
        raise LocalStackError(f"{program.name} failed with status {status}{_log_tail(program.log, log_start)}")


async def _noted_spawn(program: Program, processes: RunningProcesses | None) -> asyncio.subprocess.Process:
    process = await _spawn(program, processes.mark if processes else {})
    try:
        if processes:
            processes.add(program.name, process.pid, program.stop_signal, program.stop_limit)
    except BaseException as error:  # and nobody would stop it later
        await _kill_group(process)
        if isinstance(error, OSError):
            raise LocalStackError(f"{program.name} cannot be noted as running: {error}") from error
        raise
    return process


async def _noted_end(process: asyncio.subprocess.Process, processes: RunningProcesses | None) -> None:
    await _kill_group(process)
    if processes:
        processes.remove(process.pid)


async def _spawn(program: Program, mark: dict[str, str]) -> asyncio.subprocess.Process:
    """Start a program in a session of its own: a Ctrl-C at the terminal reaches us, and we stop it in order."""
    output = _open_log(program.log)
    try:
        return await asyncio.create_subprocess_exec(
            *program.argv,
            env=program.env | mark,
            cwd=program.cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    except OSError as error:
        raise LocalStackError(f"{program.name} cannot be started: {error}") from error
    finally:
        if output:
            output.close()


async def _kill_group(process: asyncio.subprocess.Process) -> None:
    """Kill what is left of a program and of the processes that it started, and reap it."""
    # A program without a child left has no group, and an emptied group on macOS may not be signalled.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _log_tail(log: Path | None, start: int, lines: int = 15) -> str:
    """Return the last lines that a log got since it was `start` bytes long, to be put behind a message."""
    if log is None or not log.exists():
        return "; what it wrote is above"
    with log.open("rb") as file:
        file.seek(start)
        text = file.read().decode(errors="replace").splitlines()[-lines:]
    return "\n".join([f"; the end of {log}:", *text])


def _open_log(log: Path | None) -> IO[bytes] | None:
    if log is None:
        return None
    log.parent.mkdir(parents=True, exist_ok=True)
    return log.open("ab")


def _rotated_size(log: Path | None) -> int:
    """Return a log's size, after setting it aside as `.old` where it has grown too long."""
    if log is None or not log.exists():
        return 0
    if log.stat().st_size > _LOG_KEPT:
        log.replace(log.with_suffix(".old"))
        return 0
    return log.stat().st_size

"""What an earlier run left is stopped; a stranger who got its pid is not."""

import asyncio
import signal
import sys
from pathlib import Path

import msgspec
import psutil

from devstack import children
from devstack.children import Commands
from devstack.parts import Part, running
from devstack.running_processes import Entry, RunningProcesses
from timemachine.settings import Settings

WAITS = (sys.executable, "-c", "import signal; signal.pause()")


async def start(**env: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(*WAITS, env=env)


async def test_a_left_process_is_stopped_by_its_signal(tmp_path: Path) -> None:
    process = await start()
    RunningProcesses(tmp_path).add("left", process.pid, signal.SIGTERM, 20)
    assert await RunningProcesses(tmp_path).stop_leftovers() == ["left"]
    assert await process.wait() == -signal.SIGTERM
    assert await RunningProcesses(tmp_path).stop_leftovers() == []


async def test_a_stranger_with_the_same_pid_is_left_alone(tmp_path: Path) -> None:
    process = await start()
    created = psutil.Process(process.pid).create_time() - 60
    entry = Entry(name="left", pid=process.pid, created=created, stop_signal=signal.SIGTERM)
    (tmp_path / "running.json").write_bytes(msgspec.json.encode([entry]))
    assert await RunningProcesses(tmp_path).stop_leftovers() == []
    assert process.returncode is None
    process.kill()
    await process.wait()


async def test_the_children_of_a_left_process_are_stopped_too(tmp_path: Path) -> None:
    child = await start(**RunningProcesses(tmp_path).mark)
    other = await start(**RunningProcesses(tmp_path / "another").mark)
    await RunningProcesses(tmp_path).stop_leftovers()
    assert await child.wait() == -signal.SIGKILL
    assert other.returncode is None
    other.kill()
    await other.wait()


async def test_one_that_does_not_stop_in_time_is_killed(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c"),
        "import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); signal.pause()",
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout
    await process.stdout.readline()
    RunningProcesses(tmp_path).add("left", process.pid, signal.SIGTERM, 0.2)
    await RunningProcesses(tmp_path).stop_leftovers()
    assert await process.wait() == -signal.SIGKILL


async def test_a_file_that_cannot_be_read_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "running.json").write_text("{")
    assert await RunningProcesses(tmp_path).stop_leftovers() == []


async def test_a_left_worker_gets_as_long_to_finish_its_attempts_as_one_that_is_stopped(tmp_path: Path) -> None:
    async def ready() -> bool:
        return True

    program = children.worker(Commands(worker=WAITS), {}, Settings(shutdown_grace=100))
    async with running(Part(program, ready, processes=RunningProcesses(tmp_path))):
        (noted,) = msgspec.json.decode((tmp_path / "running.json").read_bytes(), type=list[Entry])

    assert noted.stop_limit == program.stop_limit > 100

"""Parts of the stack: restarts, and what is left where a start fails."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from devstack.parts import Part, Program, running
from devstack.running_processes import RunningProcesses
from timemachine.domain.errors import LocalStackError

WAITS = (sys.executable, "-c", "import signal; signal.pause()")

FAILS_ONCE = (
    sys.executable,
    "-c",
    "import pathlib, signal, sys; tried = pathlib.Path(sys.argv[1]);"
    "tried.exists() or (tried.touch(), sys.exit('busy')); tried.with_name('works').touch(); signal.pause()",
)


async def is_ready() -> bool:
    return True


def a_part(processes: RunningProcesses | None = None) -> Part:
    return Part(Program(name="one that waits", argv=WAITS, env={}), is_ready, processes=processes)


async def test_who_waits_for_an_end_is_not_told_of_a_restart() -> None:
    async with running(a_part()) as part:
        ended = asyncio.create_task(part.wait())
        await part.restart()
        await asyncio.sleep(0)
        assert not ended.done()
        await part.stop()
        assert await ended == -15


async def test_a_process_is_restarted_unless_another_one_has_taken_its_place_or_it_has_ended() -> None:
    async with running(a_part()) as part:
        first = part.pid
        await part.restart_process(first)
        second = part.pid
        assert second != first

        await part.restart_process(first)
        assert part.pid == second

        await part.stop()
        await part.restart_process(second)
        assert part.pid == second


async def test_a_program_that_cannot_be_noted_is_not_left_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = list[int]()

    def full(_: RunningProcesses, name: str, pid: int, stop_signal: int, stop_limit: float) -> None:
        noted.append(pid)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunningProcesses, "add", full)
    with pytest.raises(LocalStackError, match="one that waits cannot be noted as running"):
        await a_part(RunningProcesses(tmp_path)).start()

    with pytest.raises(ProcessLookupError):
        os.kill(noted[0], 0)


@pytest.mark.parametrize(
    ("passing", "is_tried_again"), [(None, False), ("other words", False), ("busy", True), ("", True)]
)
async def test_a_start_that_fails_is_tried_again_where_that_may_pass(
    tmp_path: Path, passing: str | None, is_tried_again: bool
) -> None:
    program = Program(
        name="one that fails once",
        argv=(*FAILS_ONCE, str(tmp_path / "tried")),
        env={},
        log=tmp_path / "log",
        passing=passing,
    )
    part = Part(program, lambda: asyncio.sleep(0, (tmp_path / "works").exists()))
    if is_tried_again:
        async with running(part):
            assert part.pid
    else:
        with pytest.raises(LocalStackError, match=r"ended with status 1 before it was ready(.|\n)*busy"):
            await part.start()

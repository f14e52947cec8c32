"""When a dev server that is stuck is started anew. What it is stuck by is tried in tests/integration/devstack."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from temporalio.client import Client

from devstack import stuck_sqlite
from devstack.parts import Part, Program
from devstack.ports import LOOPBACK, free_port
from devstack.stuck_sqlite import _is_stuck, started_anew_when_stuck
from timemachine.domain.errors import LocalStackError

FIRST, SECOND = 11, 22
Watch = Callable[["Server"], Awaitable[None]]


class Server(Part):
    """A server that says what the looks see, one after the other, and is fine in the end."""

    def __init__(self, *looks: bool, failure: Exception | None = None) -> None:
        super().__init__(Program(name="Temporal", argv=(), env={}), self._fine)
        self.seen, self.restarted, self.process = 0, list[tuple[int, int]](), FIRST
        self.all_seen = asyncio.Event()
        self._looks, self._failure = looks, failure

    @property
    def pid(self) -> int:
        return self.process

    async def look(self, _: Client) -> bool:
        self.seen += 1
        if self.seen > len(self._looks):
            self.all_seen.set()
            return False
        return self._looks[self.seen - 1]

    async def restart_process(self, pid: int) -> bool:
        self.restarted.append((pid, self.seen))
        if self._failure:
            self.all_seen.set()
            raise self._failure
        return self.process == pid

    async def _fine(self) -> bool:
        return True


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watch:
    async def watch(server: Server) -> None:
        monkeypatch.setattr(stuck_sqlite, "_LOOK_EVERY", 0)
        monkeypatch.setattr(stuck_sqlite, "_is_stuck", server.look)
        async with started_anew_when_stuck(server, f"{LOOPBACK}:1", "default"):
            await asyncio.wait_for(server.all_seen.wait(), 5)

    return watch


async def test_it_takes_three_looks_in_a_row(watched: Watch, capsys: pytest.CaptureFixture[str]) -> None:
    server = Server(True, True, False, True, True, True)
    await watched(server)
    assert server.restarted == [(FIRST, 6)]
    assert "it was started anew" in capsys.readouterr().out


async def test_looks_at_the_process_before_do_not_count(watched: Watch) -> None:
    class Replaced(Server):
        async def look(self, client: Client) -> bool:
            if self.seen == 1:
                self.process = SECOND
            return await super().look(client)

    server = Replaced(True, True, True, True, True)
    await watched(server)
    assert server.restarted == [(SECOND, 5)]


async def test_a_server_that_has_ended_meanwhile_is_not_said_to_be_started_anew(
    watched: Watch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Ended(Server):
        async def restart_process(self, pid: int) -> bool:
            return False

    await watched(Ended(True, True, True))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("failure", [LocalStackError("Temporal did not start"), OSError("no space")])
async def test_why_it_does_not_start_again_is_said(
    failure: Exception, watched: Watch, capsys: pytest.CaptureFixture[str]
) -> None:
    await watched(Server(True, True, True, failure=failure))
    assert f"a fault of its SQLite: {failure}" in capsys.readouterr().out


async def test_what_else_ends_the_looks_is_raised_in_the_end(watched: Watch) -> None:
    with pytest.raises(ZeroDivisionError):
        await watched(Server(True, True, True, failure=ZeroDivisionError()))


async def test_a_server_that_nobody_has_reached_yet_is_not_stuck() -> None:
    assert not await _is_stuck(await Client.connect(f"{LOOPBACK}:{free_port()}", lazy=True))

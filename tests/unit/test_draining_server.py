"""An API that is told to stop says that it is not ready, and serves for a while."""

import asyncio
import signal
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn

from api.__main__ import DrainingServer


class Serving:
    """A server in the state of one that serves."""

    def __init__(self, drain: float) -> None:
        self.stop = asyncio.Event()
        app: Any = SimpleNamespace(state=SimpleNamespace(readiness=SimpleNamespace(stop=self.stop)))
        self.server = DrainingServer(uvicorn.Config(app), app, drain)
        self.server.started = True


async def test_it_goes_on_until_the_drain_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("api.__main__.time.monotonic", lambda: now)
    serving = Serving(5)
    assert not await serving.server.on_tick(1)

    serving.server.handle_exit(signal.SIGTERM, None)

    assert serving.stop.is_set()
    now = 1004.9
    assert not await serving.server.on_tick(2)
    now = 1005.0
    assert await serving.server.on_tick(3)
    assert serving.server._captured_signals == [signal.SIGTERM]


async def test_without_a_drain_it_stops_at_once() -> None:
    serving = Serving(0)

    serving.server.handle_exit(signal.SIGINT, None)

    assert await serving.server.on_tick(1)
    assert serving.server._captured_signals == [signal.SIGINT]


async def test_a_second_signal_cuts_the_drain_short() -> None:
    serving = Serving(600)

    serving.server.handle_exit(signal.SIGTERM, None)
    assert not await serving.server.on_tick(1)
    serving.server.handle_exit(signal.SIGTERM, None)

    assert await serving.server.on_tick(2)


async def test_what_does_not_serve_yet_ends_at_once() -> None:
    serving = Serving(600)
    serving.server.started = False

    serving.server.handle_exit(signal.SIGTERM, None)

    assert serving.server.should_exit
    assert not serving.stop.is_set()

"""What every soak has: a cluster of its own, a receiver, and clients that remember."""

import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.soak.cluster import Cluster, cluster
from tests.soak.hook import Hook, hooked
from tests.soak.story import Callers, calling


def pytest_configure() -> None:
    # As Ctrl-C does: what runs is cancelled, and what was started is stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Cluster]:
    """A cluster whose logs are kept for a while, and whose data is not."""
    with tempfile.TemporaryDirectory() as data:
        async with cluster(Path(data), logs=tmp_path) as found:
            yield found


@pytest.fixture
async def hook() -> AsyncIterator[Hook]:
    async with hooked() as hook:
        yield hook


@pytest.fixture
async def callers(running: Cluster) -> AsyncIterator[Callers]:
    async with calling(running.urls) as callers:
        yield callers

"""What is frozen by a test does nothing from then on."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.kills import stop

BUSY = """
import threading, time
def count():
    while True: time.sleep(0.0001)
for _ in range(10): threading.Thread(target=count).start()
print("ready", flush=True)
"""


@pytest.fixture
def busy() -> Iterator[psutil.Process]:
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield psutil.Process(process.pid)
        process.kill()


def test_each_thread_is_stopped(busy: psutil.Process) -> None:
    stop([busy])

    states = [stat.read_text().rpartition(")")[2].split()[0] for stat in Path(f"/proc/{busy.pid}/task").glob("*/stat")]
    assert states == ["T"] * 11


def test_one_that_has_ended_is_not_waited_for(busy: psutil.Process) -> None:
    busy.kill()

    stop([busy])

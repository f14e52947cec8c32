import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from timemachine.process import NEW_OBJECTS, collect_garbage_seldom

PROGRAM = """
import resource
from timemachine.process import raise_file_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 128))
raise_file_limit()
print(resource.getrlimit(resource.RLIMIT_NOFILE))
raise_file_limit()
"""


def test_a_process_may_have_as_many_files_open_as_the_system_allows_it() -> None:
    """In a process of its own: a limit that was lowered cannot be raised again."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "(128, 128)"


@pytest.fixture
def as_before() -> Iterator[None]:
    """Leave the garbage collection of the tests' own process as it is."""
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


@pytest.mark.usefixtures("as_before")
def test_what_is_loaded_is_left_out_of_collections_which_come_later() -> None:
    class Loop:
        def __init__(self) -> None:
            self.me = self

    loaded = Loop()

    collect_garbage_seldom()

    assert gc.get_threshold()[0] == NEW_OBJECTS
    assert not any(one is loaded for one in gc.get_objects())
    made = Loop()
    assert any(one is made for one in gc.get_objects())

import subprocess
import sys

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

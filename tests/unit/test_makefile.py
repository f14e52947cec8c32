"""What targets of the Makefile run: `make test` gets the Temporal program only for tests that need it."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def commands(*arguments: str, run: bool = False) -> str:
    """Return the commands that a target would run, or what it says when it does run."""
    made = ["make", *([] if run else ["--dry-run"]), "--no-print-directory", *arguments]
    env = {"PATH": os.environ["PATH"]}
    return subprocess.run(made, cwd=ROOT, env=env, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.parametrize(
    "args", ["", "-k names", "tests/integration", "tests/unit tests/e2e", "tests/replay/record_histories.py"]
)
def test_the_temporal_program_is_there_for_tests_that_need_it(args: str) -> None:
    assert "-m devstack temporal" in commands("test", f"ARGS={args}")


@pytest.mark.parametrize("args", ["tests/unit", "tests/unit -k names", "tests/unit/test_jobs.py tests/replay"])
def test_tests_that_need_no_server_do_not_wait_for_it(args: str) -> None:
    assert "-m devstack temporal" not in commands("test", f"ARGS={args}")


def test_a_check_needs_no_server() -> None:
    assert "-m devstack temporal" not in commands("check")


def test_all_tests_run_beside_each_other_and_chosen_ones_in_one_process() -> None:
    assert "pytest -n " in commands("test")
    assert "pytest tests/unit\n" in commands("test", "ARGS=tests/unit")


def test_prometheus_runs_beside_the_stack_where_that_is_wanted() -> None:
    assert "devstack run --observe\n" in commands("run", "OBSERVE=1")
    assert "--observe" not in commands("run")


def test_the_help_lists_each_target_that_says_what_it_does() -> None:
    text = (ROOT / "Makefile").read_text()
    described = re.findall(r"^([a-z-]+):.* ## ", text, re.MULTILINE)

    assert re.findall(r"^  make (\S+) ", commands("help", run=True), re.MULTILINE) == described
    assert "test-cluster" in described

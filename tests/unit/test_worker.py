"""What the worker's program tells of itself, without a server."""

import pytest

from worker import _tell_left


def test_attempts_left_by_a_stop_are_told_in_lines_that_no_container_runtime_cuts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run_ids = [f"{n:036}" for n in range(250)]

    _tell_left(run_ids)

    lines = [vars(record)["run_ids"] for record in caplog.records]
    assert [run_id for line in lines for run_id in line] == run_ids
    assert max(len(str(line)) for line in lines) < 8 * 1024

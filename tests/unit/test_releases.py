"""When a held job is released."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from timemachine.domain.jobs import Job, to_ms
from timemachine.domain.releases import release_window

NOW = datetime(2026, 11, 26, tzinfo=UTC)


def job(deadline_in: float | None) -> Job:
    deadline = None if deadline_in is None else to_ms(NOW + timedelta(seconds=deadline_in))
    return Job(db="d", collection="c", id="1", trigger_time=0, route="r", meta=msgspec.Raw(b"1"), deadline=deadline)


@pytest.mark.parametrize(
    ("deadline_in", "window"),
    [(None, 60), (3600, 60), (70, 60), (69, 59), (10, 0), (9, 0), (-3600, 0)],
)
def test_a_job_is_released_within_the_spread_and_in_time_for_its_deadline(
    deadline_in: float | None, window: float
) -> None:
    assert release_window(job(deadline_in), NOW, 60) == timedelta(seconds=window)

import logging
import subprocess
import sys
from collections.abc import Iterator

import msgspec
import pytest

from timemachine.telemetry import JsonFormatter, set_log_level


def line(**fields: object) -> dict[str, object]:
    """A log record, as it is written."""
    record = logging.makeLogRecord({"name": "a.b", "levelname": "INFO", "msg": "job %s", "args": ("done",)} | fields)
    found: dict[str, object] = msgspec.json.decode(JsonFormatter().format(record))
    return found


@pytest.fixture
def root_level() -> Iterator[None]:
    before = logging.getLogger().level
    yield
    logging.getLogger().setLevel(before)


def test_a_line_has_what_was_given_and_nothing_else() -> None:
    found = line(job_id="j1", color_message="\x1b[32mjob\x1b[0m")

    assert set(found) == {"time", "level", "logger", "message", "job_id"}
    assert (found["level"], found["logger"], found["message"], found["job_id"]) == ("info", "a.b", "job done", "j1")


def test_an_exception_is_part_of_the_line() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        found = line(exc_info=sys.exc_info())

    assert "ValueError: why" in str(found["exception"])


@pytest.mark.parametrize(("level", "shown"), [("debug", True), ("info", True), ("warning", False), ("error", False)])
@pytest.mark.usefixtures("root_level")
def test_less_than_the_level_is_not_logged(level: str, shown: bool) -> None:
    set_log_level(level)  # type: ignore[arg-type]  # a parameter, and no literal

    assert logging.getLogger("timemachine.a").isEnabledFor(logging.INFO) is shown


def test_a_warning_is_a_line_too() -> None:
    program = "import warnings, timemachine.telemetry as it; it.configure_logging(); warnings.warn('odd')"

    ended = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)

    (found,) = (msgspec.json.decode(line) for line in ended.stderr.splitlines())
    assert (found["level"], found["logger"]) == ("warning", "py.warnings")
    assert "UserWarning: odd" in found["message"]

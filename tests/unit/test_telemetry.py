import asyncio
import logging
import subprocess
import sys
from collections.abc import Iterator

import msgspec
import pytest

from timemachine.telemetry import JsonFormatter, log_context, set_log_level


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


def test_a_line_has_the_fields_of_its_context_which_its_own_take_the_place_of() -> None:
    with log_context(request_id="r-1", db="outer"), log_context(db="inner", job_id="other"):
        found = line(job_id="j1")

    assert {name: found[name] for name in ("request_id", "db", "job_id")} == {
        "request_id": "r-1",
        "db": "inner",
        "job_id": "j1",
    }
    assert "request_id" not in line()


async def test_the_context_of_one_task_is_not_anothers() -> None:
    async def logged(request_id: str) -> object:
        with log_context(request_id=request_id):
            await asyncio.sleep(0)
            return line()["request_id"]

    assert list(await asyncio.gather(logged("a"), logged("b"))) == ["a", "b"]


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

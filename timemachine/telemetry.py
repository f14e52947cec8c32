"""Logging: one JSON object a line, on standard error."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

import msgspec

# uvicorn adds its message once more, with the escapes of a terminal.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


_CONTEXT = ContextVar[Mapping[str, str] | None]("log context", default=None)


@contextmanager
def log_context(**fields: str) -> Iterator[None]:
    """Add fields to all lines that are logged inside, and by the tasks that are begun inside."""
    token = _CONTEXT.set({**(_CONTEXT.get() or {}), **fields})
    try:
        yield
    finally:
        _CONTEXT.reset(token)


def add_log_fields(**fields: str) -> None:
    """Add fields to all lines that are logged from now on, until the `log_context` ends that this is in."""
    _CONTEXT.set({**(_CONTEXT.get() or {}), **fields})


class JsonFormatter(logging.Formatter):
    """Time, level, logger and message, then the fields of the context, and whatever the call gave as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **(_CONTEXT.get() or {}),
        } | {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


LogLevel = Literal["debug", "info", "warning", "error"]


def set_log_level(level: LogLevel) -> None:
    """Log what is at least as important as this."""
    logging.getLogger().setLevel(level.upper())


def configure_logging() -> None:
    """Send every log of this process from the level `info` on, and Python's warnings, to standard error as JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    # No line shows these, so they need not be found out for each (Python's logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None

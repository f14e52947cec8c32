"""A worker whose clock is wrong, in a process whose clock is right."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from types import SimpleNamespace

import pytest

from activities import attempt, attempt_report, failures, webhook_call, webhook_request


def set_worker_clock(monkeypatch: pytest.MonkeyPatch, ahead: float) -> None:
    """Set the clock by which attempts are made ahead by some seconds, or behind."""

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]  # no other class is needed
            return datetime.now(tz) + timedelta(seconds=ahead)

    wrong: Callable[[], float] = lambda: time.time() + ahead  # noqa: E731
    for module in (attempt, attempt_report, failures, webhook_request):
        monkeypatch.setattr(module, "datetime", Wrong)
    for module in (attempt, webhook_call):
        monkeypatch.setattr(module, "time", SimpleNamespace(time=wrong))

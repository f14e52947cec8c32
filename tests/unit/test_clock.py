"""The clock goes on while the machine is suspended, where the system has such a one."""

import importlib
import time

import pytest

from timemachine import clock


def test_it_counts_the_time_in_which_the_machine_was_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def clock_gettime(which: int) -> float:
        asked.append(which)
        return 5.0

    monkeypatch.setattr(time, "clock_gettime", clock_gettime)

    assert clock.boot_time() == 5.0

    assert asked == [getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)]


def test_a_system_without_such_a_clock_has_the_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.delattr(time, "CLOCK_BOOTTIME", raising=False)
        plain = importlib.reload(clock)
        assert time.monotonic() - 1 < plain.boot_time() <= time.monotonic()
    importlib.reload(clock)


def test_it_never_goes_back() -> None:
    seen = [clock.boot_time() for _ in range(100)]

    assert seen == sorted(seen)


@pytest.mark.parametrize(
    "module", ["activities.attempt", "activities.webhook_call", "timemachine.postgres.delivery_ledger"]
)
def test_attempts_are_timed_by_it(module: str) -> None:
    assert importlib.import_module(module).boot_time.__module__ == "timemachine.clock"

"""Rate limits of the API: what is within them, and what they remember."""

import pytest

from api.rate_limit import RateLimits


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("api.rate_limit.time.monotonic", lambda: now[0])
    return now


def acquired(limits: RateLimits, times: int, name: str = "a") -> int:
    return sum(limits.acquire(name, per_second=2, burst=5) == 0 for _ in range(times))


def test_as_many_as_the_burst_come_at_once(clock: list[float]) -> None:
    limits = RateLimits(remembered=10)

    assert acquired(limits, 20) == 5


def test_what_is_too_much_is_told_when_to_come_back_and_uses_up_nothing(clock: list[float]) -> None:
    limits = RateLimits(remembered=10)
    acquired(limits, 20)

    assert limits.acquire("a", per_second=2, burst=5) == pytest.approx(0.5)
    clock[0] += 0.5
    assert acquired(limits, 20) == 1


def test_a_rate_is_held_over_time(clock: list[float]) -> None:
    limits = RateLimits(remembered=10)
    acquired(limits, 20)
    passed = 0
    for _ in range(100):
        clock[0] += 0.1
        passed += acquired(limits, 3)

    assert passed == pytest.approx(20, abs=1)


def test_a_pause_gives_no_more_than_the_burst(clock: list[float]) -> None:
    limits = RateLimits(remembered=10)
    acquired(limits, 20)
    clock[0] += 3600

    assert acquired(limits, 20) == 5


def test_one_name_does_not_take_from_another(clock: list[float]) -> None:
    limits = RateLimits(remembered=10)
    acquired(limits, 20)

    assert acquired(limits, 20, "b") == 5


def test_the_memory_is_bounded_and_forgets_who_came_longest_ago(clock: list[float]) -> None:
    limits = RateLimits(remembered=10)
    for number in range(1000):
        limits.acquire(str(number), per_second=1, burst=1)

    assert len(limits) == 10
    assert limits.acquire("999", per_second=1, burst=1) > 0
    assert limits.acquire("0", per_second=1, burst=1) == 0

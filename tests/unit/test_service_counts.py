"""One worker counts, and all export what was counted last."""

import asyncio
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from math import isnan
from typing import Any, cast

import pytest
from msgspec.structs import replace
from temporalio.common import MetricMeter

from activities.service_counts import ServiceCounting
from tests.support.meters import Counted
from timemachine import metrics
from timemachine.domain.errors import UnavailableError
from timemachine.domain.job_filter import ListedState
from timemachine.domain.routes import RouteState
from timemachine.domain.service_counts import ServiceCounts

BEFORE = ServiceCounts(scheduled=1, due=2, held=3, overdue=4, keys_expiring=5)
"""As a worker of a version that counts no routes writes them."""
NOW = ServiceCounts(
    scheduled=6,
    due=7,
    held=8,
    overdue=9,
    keys_expiring=10,
    routes={RouteState.ACTIVE: 11, RouteState.PAUSED: 12, RouteState.DISABLED: 13},
)
AT = datetime(2026, 1, 1, tzinfo=UTC)


class Store:
    """What is kept in Postgres, for two workers."""

    def __init__(self, *, is_my_turn: bool) -> None:
        self._is_my_turn = is_my_turn
        self.away = False
        self.kept: ServiceCounts | None = BEFORE

    async def claim(self, every: timedelta) -> bool:
        return self._is_my_turn

    async def write(self, counts: ServiceCounts) -> None:
        self.kept = counts

    async def read(self) -> tuple[ServiceCounts, datetime] | None:
        if self.away:
            raise UnavailableError("Postgres does not answer")
        return (self.kept, AT) if self.kept else None


class Counting(ServiceCounting):
    """Finds `NOW`, or fails to."""

    def __init__(self, store: Store, error: Exception | None = None) -> None:
        self._store: Any = store
        self._error = error
        self.counted = 0
        self.begun, self.gate = asyncio.Event(), asyncio.Event()
        self.gate.set()

    async def _count(self) -> ServiceCounts:
        self.counted += 1
        self.begun.set()
        await self.gate.wait()
        if self._error:
            raise self._error
        return NOW


@pytest.fixture
def counted() -> Iterator[Counted]:
    yield Counted()
    metrics.export_to(MetricMeter.noop)


def exported(counted: Counted) -> tuple[list[float], ...]:
    return (
        *(counted.values("timemachine_jobs", state=state) for state in ("scheduled", "due", "held")),
        counted.values("timemachine_jobs_overdue"),
        counted.values("timemachine_keys_expiring"),
        *(counted.values("timemachine_routes", state=state) for state in RouteState),
        counted.values("timemachine_counted_timestamp_seconds"),
    )


async def test_whose_turn_it_is_counts_and_exports(counted: Counted) -> None:
    store = Store(is_my_turn=True)

    await Counting(store).look()

    assert store.kept == NOW
    before_and_now = ([1, 6], [2, 7], [3, 8], [4, 9], [5, 10], [11], [12], [13], [AT.timestamp()] * 2)
    assert exported(counted) == before_and_now


async def test_the_others_export_the_same_and_count_nothing(counted: Counted) -> None:
    counting = Counting(Store(is_my_turn=False))

    await counting.look()

    assert counting.counted == 0
    assert exported(counted) == ([1], [2], [3], [4], [5], [], [], [], [AT.timestamp()])


async def test_what_is_not_known_to_be_overdue_is_exported_as_no_number_and_all_else_is_counted(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def open_jobs(*_: object) -> dict[ListedState, int]:
        return {ListedState.SCHEDULED: 6, ListedState.DUE: 7, ListedState.HELD: 8}

    class Found:
        async def count(self) -> int | None:
            return None

        async def count_expiring(self, _: timedelta) -> int:
            return 10

        async def count_by_state(self) -> Mapping[RouteState, int]:
            return NOW.routes

    monkeypatch.setattr("activities.service_counts.count_open_jobs", open_jobs)
    store, found = Store(is_my_turn=True), cast(Any, Found())

    await ServiceCounting(cast(Any, None), found, found, found, cast(Any, store)).look()

    assert store.kept == replace(NOW, overdue=0, overdue_known=False)
    assert isnan(counted.values("timemachine_jobs_overdue")[-1])
    assert counted.values("timemachine_jobs", state="due")[-1] == 7


async def test_before_the_first_count_nothing_is_exported(counted: Counted) -> None:
    store = Store(is_my_turn=False)
    store.kept = None

    await Counting(store).look()

    assert exported(counted) == ([],) * 9


async def test_where_a_count_fails_what_was_counted_last_is_exported_with_its_time(counted: Counted) -> None:
    with pytest.raises(UnavailableError):
        await Counting(Store(is_my_turn=True), UnavailableError("Temporal does not answer")).look()

    assert exported(counted) == ([1], [2], [3], [4], [5], [], [], [], [AT.timestamp()])


@pytest.mark.usefixtures("counted")
async def test_who_is_stopped_while_it_counts_ends_even_if_postgres_is_away_then() -> None:
    """Else it would go on without end, with a pool that is closed."""
    store = Store(is_my_turn=True)
    counting = Counting(store)
    counting.gate.clear()
    watching = asyncio.create_task(counting.watch())
    await counting.begun.wait()
    store.away = True

    watching.cancel()

    done, _ = await asyncio.wait([watching], timeout=1)
    assert done
    assert watching.cancelled()

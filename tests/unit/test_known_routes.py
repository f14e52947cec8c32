"""How long a look at a route holds, by a store and a clock of the test's own."""

import asyncio
from unittest.mock import Mock

import pytest

from api import known_routes
from api.known_routes import LOOK_HOLDS, REMEMBERED, REMOVAL_TIME, KnownRoutes
from timemachine.domain.errors import NoSuchRouteError


class Clock:
    """Stands still."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Store:
    """Has a few routes, takes its time to answer, and counts the looks."""

    def __init__(self, clock: Clock, *routes: str) -> None:
        self.clock, self.routes, self.takes, self.looks = clock, set(routes), 0.0, list[str]()

    async def check(self, db: str, route_id: str) -> None:
        self.looks.append(f"{db}/{route_id}")
        there = f"{db}/{route_id}" in self.routes
        self.clock.now += self.takes
        if not there:
            raise NoSuchRouteError


class SlowStore(Store):
    """Answers a look only when it is told to."""

    def __init__(self, clock: Clock, *routes: str) -> None:
        super().__init__(clock, *routes)
        self.answers, self.asked = asyncio.Event(), 0

    async def check(self, db: str, route_id: str) -> None:
        self.asked += 1
        await self.answers.wait()
        await super().check(db, route_id)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(known_routes, "time", clock)
    return clock


@pytest.fixture
def long_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look holds for a minute: who is not told of its end waits longer than a test does."""
    monkeypatch.setattr(known_routes, "LOOK_HOLDS", 60.0)


async def checks(known: KnownRoutes, count: int = 1) -> list[asyncio.Task[None]]:
    """Ask so many times at once, and return when all of them wait."""
    tasks = [asyncio.create_task(known.check("a", "hook")) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


async def test_a_look_holds_for_a_moment(clock: Clock) -> None:
    store = Store(clock, "a/hook")
    known = KnownRoutes(Mock(check=store.check))

    for wait in (0, 0, LOOK_HOLDS * 0.98):
        clock.now += wait
        await known.check("a", "hook")
    assert store.looks == ["a/hook"]

    clock.now += LOOK_HOLDS * 0.02
    await known.check("a", "hook")
    assert store.looks == ["a/hook"] * 2


@pytest.mark.usefixtures("long_hold")
async def test_those_that_ask_while_one_looks_go_by_what_it_finds(clock: Clock) -> None:
    store = SlowStore(clock, "a/hook")
    known = KnownRoutes(Mock(check=store.check))

    tasks = await checks(known, 100)
    store.answers.set()
    await asyncio.wait_for(asyncio.gather(*tasks), 5)

    assert store.looks == ["a/hook"]


async def test_nobody_goes_by_a_look_that_was_begun_too_long_before(clock: Clock) -> None:
    store = SlowStore(clock, "a/hook")
    known = KnownRoutes(Mock(check=store.check))
    tasks = await checks(known)

    clock.now += LOOK_HOLDS
    tasks += await checks(known)
    store.answers.set()
    await asyncio.wait_for(asyncio.gather(*tasks), 5)

    assert store.looks == ["a/hook"] * 2


async def test_nobody_waits_for_a_look_any_longer_than_it_would_hold(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_routes, "LOOK_HOLDS", 0.01)
    store = SlowStore(clock, "a/hook")
    known = KnownRoutes(Mock(check=store.check))
    tasks = await checks(known, 2)

    async with asyncio.timeout(5):
        while store.asked < 2:
            await asyncio.sleep(0)

    store.answers.set()
    await asyncio.wait_for(asyncio.gather(*tasks), 5)


@pytest.mark.usefixtures("long_hold")
async def test_those_that_waited_for_a_look_which_found_none_look_too(clock: Clock) -> None:
    store = SlowStore(clock)
    known = KnownRoutes(Mock(check=store.check))

    tasks = await checks(known, 3)
    store.answers.set()
    refusals = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)

    assert [type(refusal) for refusal in refusals] == [NoSuchRouteError] * 3
    assert store.looks == ["a/hook"] * 3


@pytest.mark.usefixtures("long_hold")
async def test_those_that_waited_for_a_look_which_was_stopped_look_too(clock: Clock) -> None:
    store = SlowStore(clock, "a/hook")
    known = KnownRoutes(Mock(check=store.check))
    looks, *waiting = await checks(known, 3)

    looks.cancel()
    store.answers.set()
    await asyncio.wait_for(asyncio.gather(*waiting), 5)

    assert looks.cancelled()
    assert store.looks == ["a/hook"] * 2


async def test_it_holds_from_when_it_was_begun(clock: Clock) -> None:
    store = Store(clock, "a/hook")
    store.takes = LOOK_HOLDS
    known = KnownRoutes(Mock(check=store.check))
    await known.check("a", "hook")
    store.routes.clear()

    with pytest.raises(NoSuchRouteError):
        await known.check("a", "hook")


async def test_a_route_that_is_missing_is_looked_for_each_time(clock: Clock) -> None:
    store = Store(clock)
    known = KnownRoutes(Mock(check=store.check))
    for _ in range(2):
        with pytest.raises(NoSuchRouteError):
            await known.check("a", "hook")

    store.routes.add("a/hook")
    await known.check("a", "hook")


async def test_routes_of_one_name_are_told_apart_by_their_db(clock: Clock) -> None:
    known = KnownRoutes(Mock(check=Store(clock, "a/hook").check))
    await known.check("a", "hook")

    with pytest.raises(NoSuchRouteError):
        await known.check("b", "hook")


async def test_only_so_many_are_remembered(clock: Clock) -> None:
    store = Store(clock, *(f"a/{number}" for number in range(REMEMBERED + 1)))
    known = KnownRoutes(Mock(check=store.check))
    for number in range(REMEMBERED + 1):
        await known.check("a", str(number))

    store.looks.clear()
    await known.check("a", str(REMEMBERED))
    await known.check("a", "0")

    assert store.looks == ["a/0"]


def test_a_removal_takes_longer_than_a_look_holds() -> None:
    assert REMOVAL_TIME > LOOK_HOLDS

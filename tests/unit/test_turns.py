"""A route gets no more than its share of a worker's slots."""

import asyncio

import pytest

from activities.turns import Turns
from timemachine.errors import NotYetError, UnavailableError


async def hold(turns: Turns, route: str, until: asyncio.Event) -> None:
    async with turns.turn(route):
        await until.wait()


async def test_as_many_as_allowed_are_under_way_and_few_wait_in_place() -> None:
    turns, free = Turns(per_route=3), asyncio.Event()
    held = [asyncio.create_task(hold(turns, "slow", free)) for _ in range(5)]
    await asyncio.sleep(0)

    with pytest.raises(NotYetError):
        await hold(turns, "slow", free)
    free.set()

    await asyncio.gather(*held)


async def test_another_route_is_not_concerned() -> None:
    turns, free = Turns(per_route=2), asyncio.Event()
    held = [asyncio.create_task(hold(turns, "slow", free)) for _ in range(3)]
    await asyncio.sleep(0)

    async with asyncio.timeout(0.5), turns.turn("healthy"):
        pass

    free.set()
    await asyncio.gather(*held)


async def test_those_that_are_sent_away_are_called_back_one_after_the_other() -> None:
    turns, free = Turns(per_route=1), asyncio.Event()
    held = asyncio.create_task(hold(turns, "slow", free))
    await asyncio.sleep(0)

    waits = []
    for _ in range(3):
        with pytest.raises(NotYetError) as sent_away:
            await hold(turns, "slow", free)
        waits.append(sent_away.value.after)

    assert waits == sorted(waits)
    assert waits[2] > waits[0]
    free.set()
    await held


async def test_waiting_in_place_ends() -> None:
    turns, free = Turns(per_route=2), asyncio.Event()
    held = [asyncio.create_task(hold(turns, "slow", free)) for _ in range(2)]
    await asyncio.sleep(0)

    async with asyncio.timeout(5):
        with pytest.raises(NotYetError):
            await hold(turns, "slow", free)

    free.set()
    await asyncio.gather(*held)


async def test_a_failed_attempt_gives_its_place_back() -> None:
    turns = Turns(per_route=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with turns.turn("broken"):
                raise ZeroDivisionError


async def test_routes_without_attempts_are_forgotten() -> None:
    turns = Turns(per_route=2)
    for n in range(100):
        async with turns.turn(f"route-{n}"):
            pass

    assert turns._lines == {}


@pytest.mark.parametrize("error", [NotYetError(1), UnavailableError("Postgres does not answer")])
async def test_what_was_not_attempted_is_no_measure(error: Exception) -> None:
    turns, free = Turns(per_route=1), asyncio.Event()
    for _ in range(5):
        with pytest.raises(type(error)):
            async with turns.turn("slow"):
                raise error
    held = asyncio.create_task(hold(turns, "slow", free))
    await asyncio.sleep(0)

    with pytest.raises(NotYetError) as sent_away:
        await hold(turns, "slow", free)

    assert sent_away.value.after >= 3 - 0.1
    free.set()
    await held


async def test_a_route_may_have_a_limit_of_its_own() -> None:
    turns, free = Turns(per_route=50), asyncio.Event()

    async def hold_one() -> None:
        async with turns.turn("narrow", 1):
            await free.wait()

    held = asyncio.create_task(hold_one())
    await asyncio.sleep(0)

    with pytest.raises(NotYetError):
        await hold_one()
    free.set()
    await held

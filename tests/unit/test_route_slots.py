"""A route gets no more than its share of a worker's slots."""

import asyncio

import pytest

from activities import route_slots
from activities.route_slots import RouteSlots, _RouteUse
from timemachine.domain.errors import NoSlotError, UnavailableError


async def hold(slots: RouteSlots, route: str, until: asyncio.Event) -> None:
    async with slots.slot(route):
        await until.wait()


async def test_as_many_as_allowed_are_under_way_and_few_wait_in_place() -> None:
    slots, free = RouteSlots(per_route=3), asyncio.Event()
    held = [asyncio.create_task(hold(slots, "slow", free)) for _ in range(5)]
    await asyncio.sleep(0)

    with pytest.raises(NoSlotError):
        await hold(slots, "slow", free)
    free.set()

    await asyncio.gather(*held)


async def test_another_route_is_not_concerned() -> None:
    slots, free = RouteSlots(per_route=2), asyncio.Event()
    held = [asyncio.create_task(hold(slots, "slow", free)) for _ in range(3)]
    await asyncio.sleep(0)

    async with asyncio.timeout(0.5), slots.slot("healthy"):
        pass

    free.set()
    await asyncio.gather(*held)


async def test_those_that_are_sent_away_are_called_back_one_after_the_other() -> None:
    slots, free = RouteSlots(per_route=1), asyncio.Event()
    held = asyncio.create_task(hold(slots, "slow", free))
    await asyncio.sleep(0)

    waits = []
    for _ in range(3):
        with pytest.raises(NoSlotError) as sent_away:
            await hold(slots, "slow", free)
        waits.append(sent_away.value.after)

    assert waits == sorted(waits)
    assert waits[2] > waits[0]
    free.set()
    await held


async def test_waiting_in_place_ends() -> None:
    slots, free = RouteSlots(per_route=2), asyncio.Event()
    held = [asyncio.create_task(hold(slots, "slow", free)) for _ in range(2)]
    await asyncio.sleep(0)

    async with asyncio.timeout(5):
        with pytest.raises(NoSlotError):
            await hold(slots, "slow", free)

    free.set()
    await asyncio.gather(*held)


async def test_a_failed_attempt_gives_its_place_back() -> None:
    slots = RouteSlots(per_route=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with slots.slot("broken"):
                raise ZeroDivisionError


async def test_routes_without_attempts_are_forgotten() -> None:
    slots = RouteSlots(per_route=2)
    for n in range(100):
        async with slots.slot(f"route-{n}"):
            pass

    assert slots._in_use == {}


@pytest.mark.parametrize("error", [NoSlotError(1), UnavailableError("Postgres does not answer")])
async def test_what_was_not_attempted_is_no_measure(error: Exception) -> None:
    slots, free = RouteSlots(per_route=1), asyncio.Event()
    for _ in range(5):
        with pytest.raises(type(error)):
            async with slots.slot("slow"):
                raise error
    held = asyncio.create_task(hold(slots, "slow", free))
    await asyncio.sleep(0)

    with pytest.raises(NoSlotError) as sent_away:
        await hold(slots, "slow", free)

    assert sent_away.value.after >= 3 - 0.1
    free.set()
    await held


async def test_a_route_may_have_a_limit_of_its_own() -> None:
    slots, free = RouteSlots(per_route=50), asyncio.Event()
    slots.set_limit("narrow", 1)
    held = asyncio.create_task(hold(slots, "narrow", free))
    await asyncio.sleep(0)

    with pytest.raises(NoSlotError):
        await hold(slots, "narrow", free)
    free.set()
    await held


async def running(slots: RouteSlots, free: asyncio.Event, count: int) -> list[asyncio.Task[None]]:
    """Let so many attempts of a route ask for a slot, and as many of them run as may."""
    tasks = [asyncio.create_task(hold(slots, "busy", free)) for _ in range(count)]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


def under_way(slots: RouteSlots) -> int:
    return len(slots._in_use["busy"].running)


async def test_a_raised_limit_counts_while_the_route_is_busy() -> None:
    slots, free = RouteSlots(per_route=50), asyncio.Event()
    slots.set_limit("busy", 2)
    tasks = await running(slots, free, 3)
    assert under_way(slots) == 2

    slots.set_limit("busy", 10)
    tasks += await running(slots, free, 7)

    assert under_way(slots) == 10
    free.set()
    await asyncio.gather(*tasks)


async def sent_away(slots: RouteSlots) -> float:
    with pytest.raises(NoSlotError) as caught:
        await hold(slots, "busy", asyncio.Event())
    return caught.value.after


async def test_a_slow_receiver_with_few_slots_does_not_put_those_that_wait_off_for_long() -> None:
    """Or a limit that is raised would not count for them before their time has come."""
    slots, free = RouteSlots(per_route=50), asyncio.Event()
    slots.set_limit("busy", 1)
    tasks = await running(slots, free, 1)
    slots._in_use["busy"].typical = 30.0

    assert 30 <= await sent_away(slots) < 31
    for _ in range(19):
        await sent_away(slots)
    assert await sent_away(slots) < 30 + 20 * route_slots.LONGEST_STEP + 1
    free.set()
    await asyncio.gather(*tasks)


async def test_what_was_reserved_under_a_lower_limit_puts_nobody_off_under_a_higher_one() -> None:
    slots, free = RouteSlots(per_route=50), asyncio.Event()
    slots.set_limit("busy", 1)
    tasks = await running(slots, free, 1)
    for _ in range(100):
        await sent_away(slots)
    assert await sent_away(slots) > 30

    slots.set_limit("busy", 10)
    tasks += await running(slots, free, 9)
    assert await sent_away(slots) < 10

    slots.set_limit("busy", 1)
    assert await sent_away(slots) >= 2.9
    free.set()
    await asyncio.gather(*tasks)


async def test_a_limit_that_is_taken_away_is_that_of_the_worker() -> None:
    slots, free = RouteSlots(per_route=3), asyncio.Event()
    slots.set_limit("busy", 1)
    tasks = await running(slots, free, 1)

    slots.set_limit("busy", None)
    tasks += await running(slots, free, 2)

    assert under_way(slots) == 3
    free.set()
    await asyncio.gather(*tasks)


async def test_a_lowered_limit_counts_while_the_route_is_busy() -> None:
    slots, first, second = RouteSlots(per_route=50), asyncio.Event(), asyncio.Event()
    tasks = await running(slots, first, 3)

    slots.set_limit("busy", 1)
    with pytest.raises(NoSlotError):
        await hold(slots, "busy", second)
    first.set()
    await asyncio.gather(*tasks)
    tasks = await running(slots, second, 1)

    assert under_way(slots) == 1
    with pytest.raises(NoSlotError):
        await hold(slots, "busy", second)
    second.set()
    await asyncio.gather(*tasks)


async def test_a_limit_is_known_after_the_route_was_idle() -> None:
    slots, free = RouteSlots(per_route=50), asyncio.Event()
    async with slots.slot("busy"):
        slots.set_limit("busy", 1)

    tasks = await running(slots, free, 3)

    assert under_way(slots) == 1
    free.set()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_that_stops_waiting_leaves_its_slot_to_the_next() -> None:
    slots, free = RouteSlots(per_route=2), asyncio.Event()
    slots.set_limit("busy", 1)
    slots._in_use["busy"] = route = _RouteUse(1)
    route.measure(0.01)
    (first,) = await running(slots, free, 1)
    (waiting,) = await running(slots, asyncio.Event(), 1)
    waiting.cancel()
    first.cancel()
    await asyncio.gather(first, waiting, return_exceptions=True)

    async with asyncio.timeout(1), slots.slot("busy"):
        assert under_way(slots) == 1


async def test_no_more_limits_are_remembered_than_a_worker_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route_slots, "LIMITS_KEPT", 2)
    slots = RouteSlots(per_route=50)
    for n in range(5):
        slots.set_limit(f"route-{n}", 1)

    assert list(slots._own_limits) == ["route-3", "route-4"]


async def test_only_what_called_the_receiver_tells_how_long_an_attempt_takes() -> None:
    slots, free = RouteSlots(per_route=1), asyncio.Event()
    held = asyncio.create_task(hold(slots, "slow", free))
    await asyncio.sleep(0)
    use = slots._in_use["slow"]
    use.typical, use.measured, use.reserved_until = 15.0, True, float("inf")
    free.set()
    await held
    for _ in range(5):
        async with slots.slot("slow"):
            pass
    assert use.typical == 15.0

    async with slots.slot("slow") as note_attempt:
        note_attempt()

    assert use.typical < 15.0

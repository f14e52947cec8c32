"""What one worker counts for all: whose turn it is, and what is kept."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from asyncpg import Pool

from tests.support.keys import id_of, make_key, revoke_key
from timemachine.domain.routes import RestRoute, RouteState
from timemachine.domain.service_counts import ServiceCounts
from timemachine.postgres.key_store import KeyStore
from timemachine.postgres.pool import connection, open_pool
from timemachine.postgres.route_store import RouteStore
from timemachine.postgres.service_counts import ServiceCountStore
from timemachine.settings import Settings
from timemachine.vault import Vault

HOUR = timedelta(hours=1)


@pytest.fixture
async def pool(settings: Settings) -> AsyncIterator[Pool]:
    async with open_pool(settings) as pool:
        yield pool


async def forget(pool: Pool) -> None:
    async with connection(pool) as postgres:
        await postgres.execute("UPDATE service_counts SET claimed_at = 'epoch', counted_at = NULL, counts = NULL")


async def test_of_those_who_try_at_once_one_counts(pool: Pool) -> None:
    await forget(pool)
    store = ServiceCountStore(pool)

    assert sorted(await asyncio.gather(*(store.claim(HOUR) for _ in range(8)))) == [False] * 7 + [True]
    assert not await store.claim(HOUR)
    assert await store.claim(timedelta(0))


async def test_what_was_counted_is_read_with_its_time(pool: Pool) -> None:
    await forget(pool)
    store = ServiceCountStore(pool)
    routes = dict.fromkeys(RouteState, 6)
    counts = ServiceCounts(scheduled=1, due=2, held=3, overdue=4, keys_expiring=5, routes=routes)
    assert await store.read() is None

    await store.write(counts)

    read = await store.read()
    assert read is not None
    assert read[0] == counts
    assert abs(read[1] - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.own_process
async def test_routes_are_counted_by_state(pool: Pool, settings: Settings, db: str) -> None:
    store = RouteStore(pool, Vault(settings))
    before = await store.count_by_state()

    for number, state in enumerate(RouteState):
        for name in range(number + 1):
            route = RestRoute(id=f"{state}-{name}", webhook_url="example.org")
            await store.add(db, route, {})
            await store.set_state(db, route.id, state)

    after = await store.count_by_state()
    assert [after[state] - before[state] for state in RouteState] == [1, 2, 3]


async def test_what_a_worker_that_counts_no_routes_has_written_is_read(pool: Pool) -> None:
    await forget(pool)
    old = '{"scheduled": 1, "due": 2, "held": 3, "overdue": 4, "keys_expiring": 5}'
    async with connection(pool) as postgres:
        await postgres.execute("UPDATE service_counts SET counts = $1::jsonb, counted_at = now()", old)

    read = await ServiceCountStore(pool).read()

    assert read is not None
    assert read[0].routes == {}


@pytest.mark.own_process
async def test_keys_that_expire_soon_are_counted_until_they_do(pool: Pool, settings: Settings) -> None:
    store, now = KeyStore(pool), datetime.now(UTC)
    before = await store.count_expiring(timedelta(days=7))

    soon = await make_key(settings, expires_at=now + timedelta(days=6))
    await make_key(settings, expires_at=now + timedelta(days=8))
    await make_key(settings)
    await make_key(settings, expires_at=datetime.now(UTC) + timedelta(seconds=0.2))
    await asyncio.sleep(0.3)  # until it has
    assert await store.count_expiring(timedelta(days=7)) == before + 1

    await revoke_key(settings, soon)
    assert await store.count_expiring(timedelta(days=7)) == before, id_of(soon)

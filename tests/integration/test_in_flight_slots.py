"""Places of routes that limit their requests in flight: shared by all workers, at nobody else's cost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from uuid import uuid4

import asyncpg
import pytest

from tests.support.waiting import eventually
from timemachine.domain.errors import NoSlotError, UnavailableError
from timemachine.domain.routes import RestRoute
from timemachine.postgres import route_store
from timemachine.postgres.delivery_ledger import AttemptReport, DeliveryLedger
from timemachine.postgres.pool import connection, open_pool
from timemachine.postgres.route_store import RouteStore
from timemachine.settings import Settings
from timemachine.vault import Vault

ROUTE, LIMIT = "narrow", 2


@pytest.fixture
async def pool(settings: Settings) -> AsyncIterator[asyncpg.Pool]:
    async with open_pool(settings) as pool:
        yield pool


@pytest.fixture
async def store(settings: Settings, pool: asyncpg.Pool, db: str) -> RouteStore:
    store = RouteStore(pool, Vault(settings))
    for route_id in (ROUTE, "other"):
        await store.add(db, RestRoute(id=route_id, webhook_url="example.org"), {})
    return store


@asynccontextmanager
async def route_locked(settings: Settings, db: str) -> AsyncIterator[None]:
    """Hold the route in another transaction, as another worker does that asks for a slot."""
    holder = await asyncpg.connect(settings.postgres_dsn)
    try:
        async with holder.transaction():
            await holder.execute("SELECT 1 FROM routes WHERE db = $1 AND id = $2 FOR NO KEY UPDATE", db, ROUTE)
            yield
    finally:
        await holder.close()


async def slots_in_use(pool: asyncpg.Pool, db: str) -> int:
    async with connection(pool) as postgres:
        count: int = await postgres.fetchval("SELECT count(*) FROM in_flight WHERE db = $1", db)
        return count


async def ask(store: RouteStore, db: str, run_id: str, until: asyncio.Event | None = None) -> str:
    try:
        async with store.in_flight_slot(db, ROUTE, run_id, LIMIT):
            if until:
                await until.wait()
            return "held"
    except NoSlotError:
        return "sent away"


async def test_of_many_that_ask_at_once_no_more_get_a_slot_than_there_are(
    store: RouteStore, pool: asyncpg.Pool, db: str
) -> None:
    until = asyncio.Event()
    tasks = [asyncio.create_task(ask(store, db, f"run-{n}", until)) for n in range(40)]
    async with asyncio.timeout(20):
        while sum(task.done() for task in tasks) < 40 - LIMIT:
            await asyncio.sleep(0.02)
    assert await slots_in_use(pool, db) == LIMIT

    until.set()

    assert sorted(await asyncio.gather(*tasks)) == ["held"] * LIMIT + ["sent away"] * (40 - LIMIT)
    assert await slots_in_use(pool, db) == 0


async def test_nobody_else_waits_while_a_route_is_held(
    settings: Settings, store: RouteStore, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route_store, "PLACE_WAIT", 20)
    async with route_locked(settings, db):
        asking = [asyncio.create_task(ask(store, db, f"run-{n}")) for n in range(3 * settings.postgres_pool_size)]
        await asyncio.sleep(0.1)  # time to begin to wait
        for _ in range(20):
            await store.find(db, "other")
        assert not any(task.done() for task in asking)

    assert "held" in await asyncio.gather(*asking)


async def test_who_waits_too_long_for_a_route_is_sent_away(settings: Settings, store: RouteStore, db: str) -> None:
    async with route_locked(settings, db):
        seen = await asyncio.gather(*(ask(store, db, f"run-{n}") for n in range(3)))

    assert seen == ["sent away"] * 3


async def test_a_route_that_is_held_for_a_moment_is_waited_for(
    settings: Settings, store: RouteStore, pool: asyncpg.Pool, db: str
) -> None:
    async with route_locked(settings, db):
        asking = asyncio.create_task(ask(store, db, "run"))
        await asyncio.sleep(0.2)  # time to begin to wait, and less than is waited for

    assert await asking == "held"


async def test_a_route_that_was_deleted_meanwhile_has_no_slot(store: RouteStore, db: str) -> None:
    await store.remove(db, ROUTE)

    assert await ask(store, db, "run") == "sent away"


@pytest.mark.parametrize(
    "failure",
    [
        UnavailableError("away"),
        asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress"),
        RuntimeError("anything"),
        asyncio.CancelledError(),
    ],
    ids=lambda failure: type(failure).__name__,
)
async def test_the_clean_up_replaces_neither_a_success_nor_an_error(
    store: RouteStore, db: str, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    async def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(store, "_release_slot", fail)

    assert await ask(store, db, "run") == "held"
    with pytest.raises(ZeroDivisionError):
        async with store.in_flight_slot(db, ROUTE, "other run", LIMIT):
            raise ZeroDivisionError


async def test_sessions_that_are_ended_during_the_attempt_do_not_replace_its_outcome(
    settings: Settings, store: RouteStore, pool: asyncpg.Pool, db: str
) -> None:
    admin = await asyncpg.connect(settings.postgres_dsn)
    for n in range(10):
        async with store.in_flight_slot(db, ROUTE, f"run-{n}", LIMIT):
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
                "AND application_name = 'timemachine'"
            )
        with suppress(UnavailableError):
            await store.find(db, "other")
        await admin.execute("DELETE FROM in_flight WHERE db = $1", db)
    await admin.close()


async def test_a_slot_that_could_not_be_released_counts_until_the_end_of_its_attempt_is_written(
    store: RouteStore, pool: asyncpg.Pool, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise UnavailableError("away")

    ledger, claims = DeliveryLedger(pool, store, attempt_time=15), [uuid4() for _ in range(LIMIT)]
    with monkeypatch.context() as away:
        away.setattr(store, "_release_slot", fail)
        for claim in claims:
            await ledger.begin(str(claim), db, ROUTE, claim)
            assert await ask(store, db, str(claim)) == "held"
    assert await ask(store, db, "run") == "sent away"

    await ledger.end(str(claims[0]), claims[0], AttemptReport(counts=False))

    assert await ask(store, db, "run") == "held"


async def test_a_cancel_request_does_not_skip_the_clean_up(
    store: RouteStore, pool: asyncpg.Pool, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, give_back = asyncio.Event(), store._release_slot

    async def slow(*key: str) -> None:
        began.set()
        await asyncio.sleep(0.1)
        await give_back(*key)

    monkeypatch.setattr(store, "_release_slot", slow)
    asking = asyncio.create_task(ask(store, db, "run"))
    await began.wait()
    asking.cancel()
    await asyncio.sleep(0.01)
    asking.cancel()

    assert await asking == "held"
    assert await slots_in_use(pool, db) == 0


async def test_a_cancelled_attempt_releases_its_slot(store: RouteStore, pool: asyncpg.Pool, db: str) -> None:
    asking = asyncio.create_task(ask(store, db, "run", asyncio.Event()))
    await eventually(lambda: slots_in_use(pool, db))

    asking.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asking
    assert await slots_in_use(pool, db) == 0

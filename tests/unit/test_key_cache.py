"""What is known of keys for some seconds: what Postgres is asked, and what holds while it is away."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from api import key_cache
from api.key_cache import KEPT, KEPT_WITHOUT_POSTGRES, USE_NOTED_EVERY, KeyCache
from timemachine.domain.errors import UnavailableError
from timemachine.domain.keys import ApiKey, PresentedKey, Role, generate_key, new_key_id
from timemachine.postgres.key_store import KeySecret, KeyStore, StoredKey
from timemachine.telemetry import JsonFormatter, log_context


class Store(KeyStore):
    """Keys in memory, which notes what it is asked."""

    def __init__(self) -> None:
        self.keys: dict[str, StoredKey] = {}
        self.asked: list[list[str]] = []
        self.used: list[str] = []
        self.away = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def find(self, key_ids: Sequence[str]) -> dict[str, StoredKey]:
        self.asked.append(list(key_ids))
        found = {key_id: self.keys[key_id] for key_id in key_ids if key_id in self.keys}
        await self.gate.wait()
        if self.away:
            raise UnavailableError
        return found

    async def note_use(self, key_id: str, at: datetime) -> None:
        self.used.append(key_id)
        if self.away:
            raise UnavailableError

    def add(self, *secrets: PresentedKey, expires_at: datetime | None = None) -> PresentedKey:
        """Add a key, or give one other secrets; the last is the newest."""
        newest = secrets[-1] if secrets else presented()
        key = ApiKey(id=newest.id, name="n", role=Role.READ, dbs=None, created_at=datetime.now(UTC))
        kept = tuple(KeySecret(secret.hash, None) for secret in secrets or (newest,))
        self.keys[newest.id] = StoredKey(replace(key, expires_at=expires_at), kept)
        return newest

    def end(self, key: PresentedKey) -> None:
        stored = self.keys[key.id]
        self.keys[key.id] = replace(stored, key=replace(stored.key, revoked_at=datetime.now(UTC)))


class Clock:
    """A clock to be turned forward."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def presented(key_id: str | None = None) -> PresentedKey:
    new = generate_key(key_id or new_key_id())
    return PresentedKey(new.id, new.hash)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(key_cache, "time", clock)
    monkeypatch.setattr(key_cache, "LOOK_UP_PAUSE", 0)
    return clock


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def cache(store: Store, clock: Clock) -> AsyncIterator[KeyCache]:
    cache = KeyCache(store)
    yield cache
    await cache.close()


async def is_valid(cache: KeyCache, key: PresentedKey) -> bool:
    return (await cache.check(key))[0] is not None


async def test_postgres_is_asked_once_in_some_seconds(cache: KeyCache, store: Store, clock: Clock) -> None:
    key, wrong = store.add(), presented()

    for _ in range(5):
        assert await is_valid(cache, key)
        assert await cache.check(wrong) == (None, "unknown")
        clock.now += KEPT / 5 - 0.01

    assert len(store.asked) == 2
    clock.now += 1
    assert await is_valid(cache, key)
    assert len(store.asked) == 3


async def test_a_revocation_holds_within_five_seconds(cache: KeyCache, store: Store, clock: Clock) -> None:
    key = store.add()
    assert await is_valid(cache, key)
    store.end(key)

    clock.now += 5

    assert await cache.check(key) == (None, "revoked")


async def test_the_seconds_are_counted_from_the_question(cache: KeyCache, store: Store, clock: Clock) -> None:
    """Not from the answer, which may have been on its way for a while when the key was revoked."""
    key = store.add()
    store.gate.clear()
    answer = asyncio.create_task(cache.check(key))
    while not store.asked:
        await asyncio.sleep(0)
    store.end(key)
    clock.now += 3
    store.gate.set()
    assert (await answer)[0] is not None

    clock.now += 2

    assert not await is_valid(cache, key)


async def test_whoever_comes_while_postgres_is_asked_waits_for_the_next_answer(cache: KeyCache, store: Store) -> None:
    key = store.add()
    store.gate.clear()
    first = asyncio.create_task(cache.check(key))
    while not store.asked:
        await asyncio.sleep(0)
    store.end(key)
    second = asyncio.create_task(cache.check(key))
    await asyncio.sleep(0)
    store.gate.set()

    assert (await first)[0] is not None
    assert await second == (None, "revoked")


async def test_what_is_logged_of_a_query_for_several_requests_has_the_id_of_none(
    cache: KeyCache, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = []

    async def find(key_ids: Sequence[str]) -> dict[str, StoredKey]:
        lines.append(JsonFormatter().format(logging.makeLogRecord({"msg": "Postgres does not answer"})))
        return {}

    monkeypatch.setattr(store, "find", find)
    with log_context(request_id="r-1"):
        await cache.check(presented())

    assert ["request_id" in line for line in lines] == [False]


async def test_many_keys_are_asked_for_by_one_query_at_a_time(cache: KeyCache, store: Store) -> None:
    keys = [store.add() if number % 2 else presented() for number in range(1000)]

    found = await asyncio.gather(*(is_valid(cache, key) for key in keys))

    assert found == [bool(number % 2) for number in range(1000)]
    assert len(store.asked) <= 2


async def test_queries_do_not_follow_each_other_closely(
    cache: KeyCache, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_cache, "LOOK_UP_PAUSE", 3600)
    assert not await is_valid(cache, presented())

    waiting = [asyncio.create_task(cache.check(presented())) for _ in range(100)]
    await asyncio.sleep(0.01)

    assert len(store.asked) == 1
    for task in waiting:
        task.cancel()


async def test_a_new_secret_is_valid_at_once(cache: KeyCache, store: Store) -> None:
    """Though another one of the same key is known."""
    old = store.add()
    assert await is_valid(cache, old)
    new = presented(old.id)
    assert not await is_valid(cache, presented(old.id))
    store.add(old, new)

    assert await is_valid(cache, new)
    assert await is_valid(cache, old)


async def test_a_key_expires_in_the_instant_that_it_says(cache: KeyCache, store: Store) -> None:
    key = store.add(expires_at=datetime.now(UTC) + timedelta(seconds=0.2))
    assert await is_valid(cache, key)

    await asyncio.sleep(0.25)

    assert await cache.check(key) == (None, "expired")
    assert len(store.asked) == 1


async def test_while_postgres_is_away_a_known_key_works_and_no_other(
    cache: KeyCache, store: Store, clock: Clock
) -> None:
    key, wrong, revoked = store.add(), presented(), store.add()
    store.end(revoked)
    assert [await is_valid(cache, each) for each in (key, wrong, revoked)] == [True, False, False]
    store.away = True

    for _ in range(3):
        clock.now += 60
        assert await is_valid(cache, key)
        for other in (wrong, revoked, presented()):
            with pytest.raises(UnavailableError):
                await cache.check(other)

    clock.now += KEPT_WITHOUT_POSTGRES
    with pytest.raises(UnavailableError):
        await cache.check(key)


async def test_a_revocation_holds_as_soon_as_postgres_is_back(cache: KeyCache, store: Store, clock: Clock) -> None:
    key = store.add()
    assert await is_valid(cache, key)
    store.away = True
    clock.now += 60
    assert await is_valid(cache, key)

    store.end(key)
    store.away = False

    assert not await is_valid(cache, key)


async def test_a_postgres_that_hangs_does_not_hold_up_a_known_key(
    cache: KeyCache, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_cache, "KNOWN_LIMIT", 0.05)
    key = store.add()
    assert await is_valid(cache, key)
    store.gate.clear()
    clock.now += KEPT

    assert await is_valid(cache, key)


async def test_the_memory_is_bounded_and_wrong_keys_push_out_no_valid_one(
    cache: KeyCache, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_cache, "REMEMBERED", 100)
    key = store.add()
    assert await is_valid(cache, key)

    await asyncio.gather(*(cache.check(presented()) for _ in range(1000)))

    assert len(cache._refused._checked) == 100
    asked = len(store.asked)
    assert await is_valid(cache, key)
    assert len(store.asked) == asked


async def test_the_use_of_a_key_is_noted_once_a_minute(cache: KeyCache, store: Store, clock: Clock) -> None:
    key, wrong = store.add(), presented()
    for _ in range(4):
        await cache.check(key)
        await cache.check(wrong)
        clock.now += USE_NOTED_EVERY / 2

    await cache.close()

    assert store.used == [key.id, key.id]


async def test_a_use_that_cannot_be_noted_is_no_failure(
    cache: KeyCache, store: Store, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    key = store.add()
    assert await is_valid(cache, key)
    store.away = True
    clock.now += USE_NOTED_EVERY

    assert await is_valid(cache, key)
    await cache.close()

    assert "use of a key not noted" in caplog.messages

"""The secrets of routes: what deliveries are signed with, and how they are replaced while deliveries go on."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import pairwise

import asyncpg
import pytest
from msgspec.structs import replace

from tests.support.ledger import read_target
from tests.support.own_database import own_database
from tests.support.receiver import Received, Receiver, response
from tests.support.refusals import BUSY, FORBIDDEN_NAME, NO_SUCH_ROUTE
from tests.support.service import ROUTE, Service, is_signed, now_ms, refused
from timemachine.domain.errors import NoSuchRouteError, VaultError
from timemachine.domain.routes import RestRoute
from timemachine.postgres.migrate import migrate
from timemachine.postgres.pool import open_pool
from timemachine.postgres.route_store import MAX_SECRETS, RouteStore
from timemachine.rekey import rekey
from timemachine.settings import Settings
from timemachine.vault import Vault, new_key

DAY = 86_400


@pytest.fixture
async def pool(settings: Settings) -> AsyncIterator[asyncpg.Pool]:
    async with open_pool(settings) as pool:
        yield pool


@pytest.fixture
async def store(pool: asyncpg.Pool, settings: Settings) -> RouteStore:
    return RouteStore(pool, Vault(settings))


def a_route(route_id: str = ROUTE) -> RestRoute:
    return RestRoute(id=route_id, webhook_url="example.org/hook")


def signatures_of(received: Received) -> int:
    return len(received.headers["webhook-signature"].split())


async def test_a_route_is_given_a_secret_of_its_own(service: Service, receiver: Receiver) -> None:
    await service.add_route(receiver.url, "other")

    mine, other = await service.secret(), await service.secret("other")

    assert mine == {"secret": mine["secret"], "previous": []}
    assert mine["secret"].startswith("whsec_")
    assert mine["secret"] != other["secret"]
    assert await service.secret() == mine


async def test_a_delivery_is_signed_with_its_routes_secret_only(service: Service, receiver: Receiver) -> None:
    await service.add_route(receiver.url, "other")

    (received,) = await receiver.wait_for(await service.create(0, meta={"n": 1.10, "é": "\u00e9"}))

    assert is_signed(received, (await service.secret())["secret"])
    assert not is_signed(received, (await service.secret("other"))["secret"])
    assert signatures_of(received) == 1


async def test_after_a_rotation_both_sign_for_a_day(service: Service, receiver: Receiver) -> None:
    old = (await service.secret())["secret"]

    rotated = await service.rotate()

    new = rotated["secret"]
    (previous,) = rotated["previous"]
    assert new != old
    assert previous["secret"] == old
    assert abs(previous["expires_at"] - now_ms(DAY)) < 10_000
    assert await service.secret() == rotated
    (received,) = await receiver.wait_for(await service.create(0))
    assert is_signed(received, old)
    assert is_signed(received, new)
    assert signatures_of(received) == 2


async def test_the_old_one_signs_until_the_overlap_has_passed_and_no_longer(
    service: Service, receiver: Receiver
) -> None:
    old = (await service.secret())["secret"]
    rotated = await service.rotate(overlap=1)
    until = rotated["previous"][0]["expires_at"]

    async with asyncio.timeout(20):
        while True:
            (received,) = await receiver.wait_for(await service.create(0))
            assert is_signed(received, rotated["secret"])
            if not is_signed(received, old):
                break

    assert received.at_ms >= until
    assert signatures_of(received) == 1
    assert await service.secret() == {"secret": rotated["secret"], "previous": []}


async def test_a_later_rotation_may_end_an_overlap_earlier_but_not_later(service: Service) -> None:
    await service.rotate(overlap=100)
    await service.rotate(overlap=1000)

    newer, older = (await service.rotate(overlap=200))["previous"][:2]

    assert abs(newer["expires_at"] - now_ms(200)) < 10_000
    assert abs(older["expires_at"] - now_ms(200)) < 10_000
    assert abs((await service.secret())["previous"][2]["expires_at"] - now_ms(100)) < 10_000


async def test_without_an_overlap_only_the_new_one_signs(service: Service, receiver: Receiver) -> None:
    old = (await service.secret())["secret"]
    await service.rotate()

    rotated = await service.rotate(overlap=0)

    assert rotated["previous"] == []
    (received,) = await receiver.wait_for(await service.create(0))
    assert is_signed(received, rotated["secret"])
    assert not is_signed(received, old)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"overlap": -1}', "E001"),
        (b'{"overlap": 604801}', "E001"),
        (b'{"overlap": "1"}', "E001"),
        (b'{"overlap": null}', "E001"),
        (b'{"secret": "whsec_"}', "E001"),
        (b"[]", "E001"),
        (b"{", "E001"),
    ],
)
async def test_what_is_malformed_rotates_nothing(service: Service, body: bytes, code: str) -> None:
    before = await service.secret()

    answer = await service.api.post(f"/route/{service.db}/{ROUTE}/secret/rotate", content=body)

    assert refused(answer) == (400, code)
    assert await service.secret() == before


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"overlap": 604800}'])
async def test_the_body_may_be_left_out(service: Service, content: bytes | None) -> None:
    answer = await service.api.post(f"/route/{service.db}/{ROUTE}/secret/rotate", content=content)

    assert answer.status_code == 200
    assert len(answer.json()["previous"]) == 1


@pytest.mark.parametrize(("method", "path"), [("GET", "secret"), ("POST", "secret/rotate")])
async def test_what_is_not_there_is_refused(service: Service, method: str, path: str) -> None:
    assert refused(await service.api.request(method, f"/route/{service.db}/none/{path}")) == NO_SUCH_ROUTE
    assert refused(await service.api.request(method, f"/route/{service.db}/%20/{path}")) == FORBIDDEN_NAME
    assert refused(await service.api.request(method, f"/route/x%20/{ROUTE}/{path}")) == FORBIDDEN_NAME


async def test_the_answers_are_not_to_be_stored(service: Service) -> None:
    path = f"/route/{service.db}/{ROUTE}/secret"

    for answer in (await service.api.get(path), await service.api.post(f"{path}/rotate")):
        assert answer.headers["cache-control"] == "no-store"


async def test_no_more_than_five_sign_at_a_time(service: Service, receiver: Receiver) -> None:
    path = f"/route/{service.db}/{ROUTE}/secret/rotate"
    for overlap in range(100, 100 + MAX_SECRETS - 1):
        await service.rotate(overlap=overlap)
    before = await service.secret()

    answer = await service.api.post(path)

    assert refused(answer) == BUSY
    assert 90 <= int(answer.headers["retry-after"]) <= 101
    assert await service.secret() == before
    (received,) = await receiver.wait_for(await service.create(0))
    assert signatures_of(received) == MAX_SECRETS
    assert (await service.rotate(overlap=0))["previous"] == []


async def test_rotations_at_once_come_one_after_the_other(service: Service) -> None:
    first = (await service.secret())["secret"]

    rotations = await asyncio.gather(*(service.rotate() for _ in range(MAX_SECRETS - 1)))

    last = await service.secret()
    signing = [last["secret"], *(previous["secret"] for previous in last["previous"])]
    assert sorted(signing) == sorted([first, *(rotation["secret"] for rotation in rotations)])
    assert sorted(len(rotation["previous"]) for rotation in rotations) == list(range(1, MAX_SECRETS))
    assert signing[-1] == first


async def test_of_too_many_rotations_at_once_some_are_refused(service: Service) -> None:
    path = f"/route/{service.db}/{ROUTE}/secret/rotate"

    answers = await asyncio.gather(*(service.api.post(path) for _ in range(MAX_SECRETS + 3)))

    assert sorted(answer.status_code for answer in answers) == [200] * (MAX_SECRETS - 1) + [429] * 4
    assert len((await service.secret())["previous"]) == MAX_SECRETS - 1


async def test_a_changed_route_keeps_its_secrets(service: Service, receiver: Receiver) -> None:
    rotated = await service.rotate()

    changed = {"type": "REST", "webhook_url": receiver.url + "/changed"}
    assert (await service.api.put(f"/route/{service.db}/{ROUTE}", json=changed)).status_code == 200

    assert await service.secret() == rotated
    (received,) = await receiver.wait_for(await service.create(0))
    assert received.path == "/hook/changed"
    assert is_signed(received, rotated["secret"])


async def test_creating_a_route_again_changes_no_secret(service: Service, receiver: Receiver) -> None:
    before = await service.secret()

    await service.add_route(receiver.url)

    assert await service.secret() == before


async def test_secrets_go_with_their_route(service: Service, receiver: Receiver, pool: asyncpg.Pool) -> None:
    before = (await service.rotate())["secret"]
    path = f"/route/{service.db}/{ROUTE}"

    assert (await service.api.delete(path)).status_code == 200

    assert refused(await service.api.get(f"{path}/secret")) == NO_SUCH_ROUTE
    assert await pool.fetchval("SELECT count(*) FROM route_secrets WHERE db = $1", service.db) == 0
    await service.add_route(receiver.url)
    after = await service.secret()
    assert after["previous"] == []
    assert after["secret"] != before


async def test_expired_secrets_are_not_kept(service: Service, pool: asyncpg.Pool) -> None:
    for _ in range(3):
        await service.rotate(overlap=0)

    assert await pool.fetchval("SELECT count(*) FROM route_secrets WHERE db = $1", service.db) == 1


async def test_a_rotation_under_load_is_seen_by_no_receiver(service: Service, receiver: Receiver) -> None:
    """The receiver knows one secret at a time, and takes over each new one some time after it was made."""
    known = (await service.secret())["secret"]
    valid = {known: float("inf")}
    wrong: list[Received] = []

    async def verify(received: Received) -> bytes:
        signing = [secret for secret, until in valid.items() if received.at_ms <= until]
        if not is_signed(received, known) or not any(is_signed(received, secret) for secret in signing):
            wrong.append(received)
        return response(200)

    async def arrived(count: int) -> None:
        await receiver.wait_until(lambda: len(receiver.received) >= count, limit=40)

    receiver.answer = verify
    jobs = asyncio.gather(*(service.create(0.5 + n / 25) for n in range(130)))
    for rotation in range(1, 4):
        # In the midst of the deliveries, by what has arrived and not by the clock.
        await arrived(rotation * 30)
        rotated = await service.rotate(overlap=60)  # more than a slow receiver takes
        valid = {previous["secret"]: previous["expires_at"] for previous in rotated["previous"]}
        valid[rotated["secret"]] = float("inf")
        assert len(receiver.received) < 125, "all was over before the rotation"
        # What was signed before the rotation has arrived by then.
        await arrived(min(len(receiver.received) + 25, 130))
        known = rotated["secret"]
    job_ids = await jobs
    await arrived(130)

    assert wrong == []
    assert sorted(received.job_id for received in receiver.received) == sorted(job_ids)
    assert {signatures_of(received) for received in receiver.received} > {1, 2}


async def test_a_route_from_before_there_were_secrets_is_given_one(
    store: RouteStore, pool: asyncpg.Pool, db: str
) -> None:
    await store.add(db, a_route(), {})
    await pool.execute("DELETE FROM route_secrets WHERE db = $1", db)

    targets = await asyncio.gather(*(read_target(pool, store, db) for _ in range(5)))
    (secret,) = await store.secrets(db, ROUTE)

    assert [target.secrets for target in targets] == [(secret.value,)] * 5
    with pytest.raises(NoSuchRouteError):
        await store.secrets(db, "none")


async def test_a_wrong_key_is_told_and_changes_nothing(
    store: RouteStore, pool: asyncpg.Pool, settings: Settings, db: str
) -> None:
    await store.add(db, a_route(), {"x-token": "t"})
    before = await store.secrets(db, ROUTE)
    wrong = RouteStore(pool, Vault(replace(settings, secret_keys=new_key())))

    for request in (
        read_target(pool, wrong, db),
        wrong.secrets(db, ROUTE),
        wrong.rotate(db, ROUTE, timedelta(hours=1)),
    ):
        with pytest.raises(VaultError):
            await request

    assert await store.secrets(db, ROUTE) == before


@pytest.fixture
async def empty(settings: Settings) -> AsyncIterator[Settings]:
    """Settings with a database of the test's own, because a key is replaced in all of it."""
    async with own_database(settings) as own:
        await migrate(own)
        yield own


async def test_a_key_is_replaced_step_by_step(empty: Settings) -> None:
    """At every step programs with the keys of before and after it run at the same time; see timemachine/rekey.py."""
    present, new = new_key(), new_key()
    steps = (present, f"{present},{new}", f"{new},{present}")
    async with open_pool(empty) as pool:
        stores = [RouteStore(pool, Vault(replace(empty, secret_keys=keys))) for keys in steps]
        for number, neighbours in enumerate(pairwise(stores)):
            for writer in neighbours:
                route = a_route(f"r{number}-{stores.index(writer)}")
                await writer.add("db", route, {"x-token": route.id})
                await writer.rotate("db", route.id, timedelta(hours=1))
                for reader in neighbours:
                    assert (await read_target(pool, reader, "db", route.id)).headers == {"x-token": route.id}
        before = {name: await read_target(pool, stores[-1], "db", name) for name in ("r0-0", "r0-1", "r1-1", "r1-2")}

        assert await rekey(replace(empty, secret_keys=steps[-1])) == 4 * 3

        done = RouteStore(pool, Vault(replace(empty, secret_keys=new)))
        assert {name: await read_target(pool, done, "db", name) for name in before} == before
        for name in before:
            with pytest.raises(VaultError):
                await read_target(pool, stores[0], "db", name)


async def test_without_the_old_key_nothing_is_replaced(empty: Settings) -> None:
    async with open_pool(empty) as pool:
        store = RouteStore(pool, Vault(empty))
        await store.add("db", a_route(), {"x-token": "t"})
        before = await read_target(pool, store, "db")

        with pytest.raises(VaultError):
            await rekey(replace(empty, secret_keys=new_key()))

        assert await read_target(pool, store, "db") == before

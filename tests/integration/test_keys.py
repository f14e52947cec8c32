"""Keys against the real Postgres and Temporal: who is let in, how they are made and end, and what is kept of it."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from msgspec.structs import replace
from temporalio.client import Client

from api import authentication, batch, key_cache
from api.app import create_app
from api.key_cache import KEPT
from devstack.postgres import embedded_postgres
from devstack.temporal import Temporal
from tests.conftest import serving
from tests.support.keys import bearer, id_of, make_key, revoke_key, rotate_key
from tests.support.own_database import own_database
from tests.support.receiver import Receiver
from tests.support.refusals import (
    AWAY,
    BUSY,
    LAST_ADMIN_KEY,
    MALFORMED,
    NO_SUCH_JOB,
    NO_SUCH_KEY,
    NO_SUCH_OPERATION,
    NO_SUCH_PATH,
    NO_SUCH_ROUTE,
    NO_VALID_KEY,
)
from tests.support.service import Service, a_job, new_id, now_ms, refused
from tests.support.settings import service_settings
from tests.support.waiting import eventually
from timemachine.domain.audit import Caller
from timemachine.domain.errors import LastAdminKeyError
from timemachine.domain.keys import Role, generate_key, holds_key, new_key_id
from timemachine.domain.signing import encode_secret
from timemachine.postgres.key_store import KeyStore
from timemachine.postgres.migrate import migrate
from timemachine.postgres.pool import connection, open_pool
from timemachine.settings import Auth, Settings
from timemachine.telemetry import JsonFormatter
from timemachine.vault import new_key as new_encryption_key

ANY = "/failed/arena"


@pytest.fixture(scope="module")
async def app(settings: Settings, temporal: Temporal, client: Client) -> AsyncIterator[httpx.AsyncClient]:
    """The API with keys."""
    with pytest.MonkeyPatch.context() as env:
        env.setenv("TEMPORAL_ADDRESS", temporal.address)
        async with serving(create_app(replace(settings, auth=Auth.KEYS))) as http:
            yield http


@pytest.fixture(autouse=True)
def _no_limit_of_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of these tests come from one address."""
    monkeypatch.setattr(authentication, "FAILURES_AT_ONCE", 1e9)


@pytest.fixture(scope="module")
async def admin(settings: Settings) -> str:
    return await make_key(settings)


def unauthorized(answer: httpx.Response) -> str:
    """Return the text of a 401."""
    assert refused(answer) == NO_VALID_KEY
    assert answer.headers["www-authenticate"] == "Bearer"
    return str(answer.json()["error"])


NOT_VALID = "this key is not valid"
HOW = "a key is needed, in one header: `Authorization: Bearer tm_…`"


@pytest.mark.parametrize("value", ["Bearer {}", "bearer {}", "BEARER {}", "bEaReR {}", "Bearer   {}"])
async def test_a_key_is_sent_as_http_says(app: httpx.AsyncClient, admin: str, value: str) -> None:
    assert (await app.get(ANY, headers={"authorization": value.format(admin)})).status_code == 200


@pytest.mark.parametrize(
    "value",
    [
        "{}",
        "Bearer",
        "Bearer ",
        "Bearer{}",
        "Bearer\t{}",
        "Bearer {} ",
        "Bearer {} {}",
        "Bearer {},{}",
        "Bearer {}, Bearer {}",
        "Basic {}",
        "Token {}",
        "Bearer: {}",
        "Bearer  x {}",
        "Bearer \x80",
    ],
)
async def test_a_header_of_another_form_is_no_key(app: httpx.AsyncClient, admin: str, value: str) -> None:
    header = value.format(admin, admin).encode("latin-1")

    answer = await app.get(ANY, headers=[(b"authorization", header)])

    assert unauthorized(answer) in (HOW, NOT_VALID)


@pytest.mark.parametrize(
    "change",
    [
        lambda key: key[:-1],
        lambda key: key[1:],
        lambda key: key.lower(),
        lambda key: key.upper(),
        lambda key: key + "a",
        lambda key: f'"{key}"',
        lambda key: f"{key}=",
        lambda key: key.replace("tm_", "tm-"),
        lambda key: key.split("_")[2],
        lambda key: id_of(key),
        lambda _: "hunter2",
        lambda _: "x" * 5000,
    ],
)
async def test_a_key_of_another_form_is_not_valid(app: httpx.AsyncClient, admin: str, change: Any) -> None:
    assert unauthorized(await app.get(ANY, headers=bearer(change(admin)))) == NOT_VALID


async def test_without_a_key_one_is_told_how_to_send_it(app: httpx.AsyncClient, admin: str) -> None:
    assert unauthorized(await app.get(ANY)) == HOW


@pytest.mark.parametrize(
    "query", ["key={}", "api_key={}", "access_token={}", "authorization=Bearer%20{}", "token={}", "{}"]
)
async def test_a_key_in_the_url_counts_for_nothing(app: httpx.AsyncClient, admin: str, query: str) -> None:
    assert unauthorized(await app.get(f"{ANY}?{query.format(admin)}")) == HOW


@pytest.mark.parametrize("second", ["{}", "Bearer {}", "Basic eA==", ""])
async def test_two_headers_are_none(app: httpx.AsyncClient, admin: str, second: str) -> None:
    headers = [("authorization", f"Bearer {admin}"), ("authorization", second.format(admin))]

    assert unauthorized(await app.get(ANY, headers=headers)) == HOW


@pytest.mark.parametrize("name", ["cookie", "x-api-key", "proxy-authorization", "api-key"])
async def test_no_other_header_is_looked_at(app: httpx.AsyncClient, admin: str, name: str) -> None:
    assert unauthorized(await app.get(ANY, headers={name: f"Bearer {admin}"})) == HOW


async def test_other_secrets_that_are_sent_by_mistake_are_recognised(app: httpx.AsyncClient) -> None:
    secret = unauthorized(await app.get(ANY, headers=bearer(encode_secret(b"x" * 32))))
    encryption = unauthorized(await app.get(ANY, headers=bearer(new_encryption_key())))

    assert secret.startswith("this is the secret of a webhook")
    assert encryption.startswith("this looks like a key of TIMEMACHINE_SECRET_KEYS")


async def test_unknown_expired_and_revoked_keys_are_told_apart_in_the_log_only(
    app: httpx.AsyncClient, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    expired = await make_key(settings, expires_at=datetime.now(UTC) + timedelta(seconds=0.3))
    revoked, other = await make_key(settings), await make_key(settings)
    await revoke_key(settings, revoked)
    await asyncio.sleep(0.35)
    wrong = generate_key(id_of(other)).text
    keys = {"expired": expired, "revoked": revoked, "wrong secret": wrong, "unknown": generate_key(new_key_id()).text}

    same_id = {"x-request-id": "r-1"}
    answers = {reason: await app.get(ANY, headers=bearer(key) | same_id) for reason, key in keys.items()}

    assert {unauthorized(answer) for answer in answers.values()} == {NOT_VALID}
    assert len({str(sorted(answer.headers.items())) for answer in answers.values()}) == 1
    logged = {vars(record)["reason"]: vars(record)["key"] for record in caplog.records if "key" in vars(record)}
    assert logged == {reason: id_of(key) for reason, key in keys.items()}
    assert not [key for key in keys.values() if key in caplog.text]


async def test_health_documentation_and_options_need_no_key(app: httpx.AsyncClient) -> None:
    for path in ("/livez", "/healthz", "/readyz", "/docs", "/docs/openapi.json"):
        assert (await app.get(path)).status_code == 200
        assert (await app.head(path)).status_code == 200
    options = await app.options("/job/arena/c/x")
    assert (options.status_code, options.headers["allow"]) == (204, "DELETE, GET, HEAD, OPTIONS, PUT")
    assert refused(await app.get("/nothing")) == NO_SUCH_PATH
    assert (await app.head(ANY)).status_code == 401


async def test_a_key_that_expires_in_this_second_works_until_then(app: httpx.AsyncClient, settings: Settings) -> None:
    at = datetime.now(UTC) + timedelta(seconds=1)
    key = await make_key(settings, expires_at=at)
    seen: list[tuple[datetime, datetime, int]] = []
    while not seen or seen[-1][2] == 200:
        before = datetime.now(UTC)
        status = (await app.get("/audit/arena?limit=1", headers=bearer(key))).status_code
        seen.append((before, datetime.now(UTC), status))

    assert seen[0][2] == 200
    assert all(before < at for before, _, status in seen if status == 200)
    assert seen[-1][1] >= at


async def test_a_key_that_is_revoked_while_its_request_runs_does_not_end_it(
    app: httpx.AsyncClient, settings: Settings, postgres: Any
) -> None:
    key = await make_key(settings)
    db = f"db-{new_id()[:12]}"
    body = {"id": "hook", "type": "REST", "webhook_url": "http://127.0.0.1:9/"}
    holding, watching = await asyncpg.connect(postgres.dsn), await asyncpg.connect(postgres.dsn)
    try:
        async with holding.transaction():
            await holding.execute("LOCK TABLE routes")
            running = asyncio.create_task(app.post(f"/route/{db}", json=body, headers=bearer(key)))
            await eventually(lambda: watching.fetchval(_WAITS_FOR_ROUTES))
            await revoke_key(settings, key)
        assert (await running).json() == {"status": "ok"}
    finally:
        await holding.close()
        await watching.close()
    rejected = await eventually(lambda: app.get(ANY, headers=bearer(key)), lambda answer: answer.status_code != 200)
    assert unauthorized(rejected) == NOT_VALID


_WAITS_FOR_ROUTES = """
    SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%INTO routes%'
"""


async def test_a_revoked_key_makes_no_other_one_though_it_is_still_known(
    app: httpx.AsyncClient, settings: Settings
) -> None:
    key = await make_key(settings)
    assert (await app.get("/key", headers=bearer(key))).status_code == 200
    await revoke_key(settings, key)

    made = await app.post("/key", json={"name": "n", "role": "admin", "dbs": None}, headers=bearer(key))
    rotated = await app.post(f"/key/{id_of(key)}/rotate", headers=bearer(key))

    assert refused(made) == refused(rotated) == NO_VALID_KEY


async def test_a_secret_that_was_rotated_away_makes_no_other_key_though_it_is_still_known(
    app: httpx.AsyncClient, settings: Settings
) -> None:
    key = await make_key(settings)
    assert (await app.get("/key", headers=bearer(key))).status_code == 200
    new = await rotate_key(settings, key)

    made = await app.post("/key", json={"name": "n", "role": "admin", "dbs": None}, headers=bearer(key))
    rotated = await app.post(f"/key/{id_of(key)}/rotate", headers=bearer(key))
    revoked = await app.delete(f"/key/{id_of(key)}", headers=bearer(key))

    assert refused(made) == refused(rotated) == refused(revoked) == NO_VALID_KEY
    assert (await app.post(f"/key/{id_of(key)}/rotate", headers=bearer(new))).status_code == 200


@pytest.mark.parametrize("end", [revoke_key, rotate_key])
async def test_a_batch_begins_no_other_job_once_its_key_is_valid_no_more(
    app: httpx.AsyncClient, settings: Settings, monkeypatch: pytest.MonkeyPatch, db: str, end: Any
) -> None:
    """A batch may take five minutes, as long as its client likes."""
    monkeypatch.setattr(key_cache, "KEPT", 0.0)
    monkeypatch.setattr(batch, "KEY_CHECKED_EVERY", 0.0)
    headers = bearer(await make_key(settings))
    key = await make_key(settings, Role.WRITE, (db,))
    route = {"id": "hook", "type": "REST", "webhook_url": "http://127.0.0.1:9/"}
    await app.post(f"/route/{db}", json=route, headers=headers)
    before, after = a_job(3600), a_job(3600)

    async def lines() -> AsyncIterator[bytes]:
        yield json.dumps(before).encode() + b"\n"
        path = f"/job/{db}/c/{before['id']}"
        await eventually(lambda: app.get(path, headers=headers), lambda found: found.is_success)
        await end(settings, key)
        yield json.dumps(after).encode()

    ndjson = {"content-type": "application/x-ndjson"}
    answer = await app.post(f"/batch/{db}/c", content=lines(), headers=bearer(key) | ndjson)

    assert [json.loads(line) for line in answer.text.splitlines()] == [
        {"id": before["id"], "status": "created"},
        {"id": None, "status": "refused", "code": "E012", "error": NOT_VALID},
    ]
    assert refused(await app.get(f"/job/{db}/c/{after['id']}", headers=headers)) == NO_SUCH_JOB


async def test_postgres_away(
    temporal: Temporal, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that was valid works where no Postgres is needed otherwise; one that is not known is 503."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal.address)
    path = "/route/arena/hook/redeliver/0-1"
    async with embedded_postgres(tmp_path) as postgres:
        own = service_settings(postgres_dsn=postgres.dsn, auth=Auth.KEYS)
        await migrate(own)
        key, other = await make_key(own), await make_key(own)
        async with serving(create_app(own)) as app:
            assert refused(await app.get(path, headers=bearer(key))) == NO_SUCH_OPERATION
            await postgres.part.stop()

            assert refused(await app.get(path, headers=bearer(key))) == NO_SUCH_OPERATION
            assert refused(await app.get(path, headers=bearer(other))) == AWAY
            await asyncio.sleep(KEPT + 0.5)
            assert refused(await app.get(path, headers=bearer(key))) == NO_SUCH_OPERATION
            assert refused(await app.get(path, headers=bearer(generate_key(new_key_id()).text))) == AWAY
            assert refused(await app.get(path, headers=bearer("hunter2"))) == NO_VALID_KEY

            await postgres.part.start()
            await revoke_key(own, key)
            late = await eventually(
                lambda: app.get(path, headers=bearer(key)), lambda answer: answer.status_code == 401
            )
            assert refused(late) == NO_VALID_KEY
            assert refused(await app.get(path, headers=bearer(other))) == NO_SUCH_OPERATION


class Queries(KeyStore):
    """Counts the queries for keys."""

    asked = 0

    async def find(self, key_ids: Any) -> Any:
        Queries.asked += 1
        return await super().find(key_ids)


async def test_a_flood_of_wrong_keys_does_not_reach_postgres_and_nobody_else_suffers(
    settings: Settings, temporal: Temporal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal.address)
    monkeypatch.setattr(authentication, "FAILURES_AT_ONCE", 50)
    monkeypatch.setattr("api.app.KeyStore", Queries)
    key = await make_key(settings)
    mistyped = generate_key(new_key_id()).text[:-1] + "-"
    async with serving(create_app(replace(settings, auth=Auth.KEYS))) as app:
        await app.get(ANY, headers=bearer(key))
        Queries.asked = 0
        wrong = [generate_key(new_key_id()).text for _ in range(500)] + [mistyped] * 500
        started = asyncio.get_running_loop().time()

        answers = await asyncio.gather(*(app.get(ANY, headers=bearer(each)) for each in wrong))
        took = asyncio.get_running_loop().time() - started

        codes = [refused(answer) for answer in answers]
        assert Queries.asked <= 2 + took / 0.02
        assert Queries.asked < 250, "of 500 that have the right form"
        assert codes.count(NO_VALID_KEY) <= 50 + 1 + took * 5
        assert set(codes) == {NO_VALID_KEY, BUSY}
        assert {answer.headers["retry-after"] for answer in answers if answer.status_code == 429} == {"1"}
        assert (await app.get(ANY, headers=bearer(key))).status_code == 200
        assert (await app.get(ANY, headers=bearer(await make_key(settings)))).status_code == 200
        own_again = await eventually(lambda: app.get(ANY), lambda answer: answer.status_code == 401)
        assert unauthorized(own_again) == HOW


@pytest.mark.parametrize(
    ("one", "other", "is_one"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("unknown", "unknown", True),
    ],
)
def test_what_counts_as_one_address(one: str, other: str, is_one: bool) -> None:
    assert (authentication._network(one) == authentication._network(other)) == is_one


async def test_a_key_may_send_so_many_requests_a_second(
    settings: Settings, temporal: Temporal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal.address)
    limited = replace(settings, auth=Auth.KEYS, requests_per_second_per_key=2)
    async with serving(create_app(limited)) as app:
        few, many = await make_key(settings), await make_key(settings, requests_per_second=1_000_000)

        async def statuses(key: str) -> list[int]:
            answers = [await app.get("/key", headers=bearer(key)) for _ in range(10)]
            assert {answer.headers.get("retry-after") for answer in answers if answer.status_code == 429} <= {"1"}
            return [answer.status_code for answer in answers]

        assert await statuses(many) == [200] * 10
        found = await statuses(few)
        assert found[:2] == [200, 200]
        assert 429 in found
        busy = await eventually(lambda: app.get("/key", headers=bearer(few)), lambda answer: answer.status_code == 429)
        assert refused(busy) == BUSY


async def test_a_key_is_made_and_shown_once(app: httpx.AsyncClient, admin: str) -> None:
    expires_at = now_ms(3600)
    body = {
        "name": "game server",
        "role": "write",
        "dbs": ["arena", "shop"],
        "expires_at": expires_at,
        "requests_per_second": 50,
    }

    answer = await app.post("/key", json=body, headers=bearer(admin))

    made = answer.json()
    assert answer.headers["cache-control"] == "no-store"
    assert made == {
        "id": id_of(made["key"]),
        "key": made["key"],
        "name": "game server",
        "role": "write",
        "dbs": ["arena", "shop"],
    }
    listed = (await app.get("/key", headers=bearer(admin))).json()["keys"][0]
    assert abs(listed.pop("created_at") - now_ms()) < 60_000
    assert listed == body | {"id": made["id"], "created_by": id_of(admin)}
    assert made["key"] not in (await app.get("/key", headers=bearer(admin))).text
    assert (await app.get(ANY, headers=bearer(made["key"]))).status_code == 200
    used = await eventually(
        lambda: app.get("/key", headers=bearer(admin)), lambda page: "last_used_at" in page.json()["keys"][0]
    )
    assert abs(used.json()["keys"][0]["last_used_at"] - now_ms()) < 60_000


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"name": "", "role": "read", "dbs": None}, "E001"),
        ({"name": "n\n", "role": "read", "dbs": None}, "E001"),
        ({"name": "n", "role": "owner", "dbs": None}, "E001"),
        ({"name": "n", "role": "read"}, "E001"),
        ({"name": "n", "role": "read", "dbs": []}, "E001"),
        ({"name": "n", "role": "read", "dbs": ["a/b"]}, "E002"),
        ({"name": "n", "role": "read", "dbs": "arena"}, "E001"),
        ({"name": "n", "role": "read", "dbs": None, "expires_at": 1}, "E001"),
        ({"name": "n", "role": "read", "dbs": None, "expires_at": 1_900_000_000}, "E001"),
        ({"name": "n", "role": "read", "dbs": None, "expires_at": None}, "E001"),
        ({"name": "n", "role": "read", "dbs": None, "requests_per_second": 0}, "E001"),
        ({"name": "n", "role": "read", "dbs": None, "id": "x"}, "E001"),
    ],
)
async def test_what_no_key_may_be_is_refused(
    app: httpx.AsyncClient, admin: str, body: dict[str, Any], code: str
) -> None:
    assert refused(await app.post("/key", json=body, headers=bearer(admin))) == (400, code)


async def test_a_db_that_is_named_twice_counts_once(app: httpx.AsyncClient, admin: str) -> None:
    db = f"db-{new_id()[:12]}"
    made = await app.post("/key", json={"name": "n", "role": "read", "dbs": [db, db]}, headers=bearer(admin))
    assert made.json()["dbs"] == [db]
    audit = (await app.get(f"/audit/{db}", headers=bearer(admin))).json()["entries"]
    assert [entry["action"] for entry in audit if entry["db"] == db] == ["key.create"]


async def test_keys_are_listed_in_pages(app: httpx.AsyncClient, settings: Settings) -> None:
    db = f"db-{new_id()[:12]}"
    admin = await make_key(settings, dbs=(db,))
    made = [id_of(admin)] + [id_of(await make_key(settings, Role.READ, (db,))) for _ in range(6)]
    seen: list[str] = []
    page: dict[str, Any] = {"next": None}
    while "next" in page:
        cursor = f"&cursor={page['next']}" if page["next"] else ""
        page = (await app.get(f"/key?limit=3{cursor}", headers=bearer(admin))).json()
        seen += [key["id"] for key in page["keys"]]

    assert seen == made[::-1]
    assert refused(await app.get("/key?cursor=no", headers=bearer(admin))) == MALFORMED


async def test_a_key_is_replaced_without_a_gap(app: httpx.AsyncClient, admin: str, settings: Settings) -> None:
    old = await make_key(settings, Role.READ, ("arena",))
    assert (await app.get(ANY, headers=bearer(old))).status_code == 200

    answer = await app.post(f"/key/{id_of(old)}/rotate", json={"overlap": 3600}, headers=bearer(admin))

    new = answer.json()["key"]
    assert answer.headers["cache-control"] == "no-store"
    assert id_of(new) == id_of(old)
    assert new != old
    for key in (new, old):
        assert (await app.get(ANY, headers=bearer(key))).status_code == 200
    assert (await app.post(f"/key/{id_of(old)}/rotate", json={"overlap": 0}, headers=bearer(admin))).status_code == 200
    for key in (old, new):
        gone = await eventually(lambda key=key: app.get(ANY, headers=bearer(key)), lambda a: a.status_code != 200)  # type: ignore[misc]
        assert unauthorized(gone) == NOT_VALID


async def test_an_overlap_ends_in_time(app: httpx.AsyncClient, admin: str, settings: Settings) -> None:
    old = await make_key(settings)
    rotated = await app.post(f"/key/{id_of(old)}/rotate", json={"overlap": 0.5}, headers=bearer(admin))
    assert rotated.status_code == 200
    until = datetime.now(UTC) + timedelta(seconds=0.5)
    while datetime.now(UTC) < until:
        await asyncio.sleep(0.05)

    assert unauthorized(await app.get(ANY, headers=bearer(old))) == NOT_VALID


async def test_five_secrets_are_valid_at_a_time_so_that_a_lost_answer_does_no_harm(
    app: httpx.AsyncClient, admin: str, settings: Settings
) -> None:
    first = await make_key(settings)
    path = f"/key/{id_of(first)}/rotate"
    for _ in range(4):
        assert (await app.post(path, headers=bearer(admin))).status_code == 200

    full = await app.post(path, headers=bearer(admin))

    assert refused(full) == BUSY
    assert int(full.headers["retry-after"]) > 86_000
    assert (await app.get(ANY, headers=bearer(first))).status_code == 200
    assert (await app.post(path, json={"overlap": 0}, headers=bearer(admin))).status_code == 200


async def test_a_revoked_key_is_not_rotated_and_may_be_revoked_again(
    app: httpx.AsyncClient, admin: str, settings: Settings
) -> None:
    key = await make_key(settings, Role.READ, ("arena",))
    path = f"/key/{id_of(key)}"

    assert [(await app.delete(path, headers=bearer(admin))).json() for _ in range(2)] == [{"status": "ok"}] * 2
    assert refused(await app.post(f"{path}/rotate", headers=bearer(admin))) == NO_SUCH_KEY
    audit = (await app.get("/audit/arena?limit=200", headers=bearer(admin))).json()["entries"]
    assert [entry["action"] for entry in audit if entry["target"] == id_of(key)] == ["key.revoke", "key.create"]


@pytest.mark.parametrize("key_id", ["k" * 12, "k", "%00" * 12, "%C3%A9" * 12, "k" * 12 + "%0A"])
async def test_what_is_no_id_of_a_key_is_the_id_of_none(app: httpx.AsyncClient, admin: str, key_id: str) -> None:
    assert refused(await app.delete(f"/key/{key_id}", headers=bearer(admin))) == NO_SUCH_KEY
    assert refused(await app.post(f"/key/{key_id}/rotate", headers=bearer(admin))) == NO_SUCH_KEY


@pytest.fixture
async def empty(settings: Settings) -> AsyncIterator[Settings]:
    """A database without a key."""
    async with own_database(replace(settings, auth=Auth.KEYS)) as own:
        await migrate(own)
        yield own


async def test_the_last_admin_key_is_not_revoked_over_http(
    empty: Settings, temporal: Temporal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal.address)
    last = await make_key(empty)
    await make_key(empty, Role.WRITE)
    expired = await make_key(empty, expires_at=datetime.now(UTC) + timedelta(seconds=0.1))
    of_a_db = await make_key(empty, dbs=("arena",))
    revoked = await make_key(empty)
    await revoke_key(empty, revoked)
    await asyncio.sleep(0.15)
    async with serving(create_app(empty)) as app:
        refusal = await app.delete(f"/key/{id_of(last)}", headers=bearer(last))
        assert refused(refusal) == LAST_ADMIN_KEY
        for key in (expired, of_a_db):
            assert (await app.delete(f"/key/{id_of(key)}", headers=bearer(last))).status_code == 200
        second = await make_key(empty)
        assert (await app.delete(f"/key/{id_of(last)}", headers=bearer(second))).status_code == 200
        assert refused(await app.delete(f"/key/{id_of(second)}", headers=bearer(second))) == LAST_ADMIN_KEY


async def test_the_last_admin_key_of_some_dbs_is_not_revoked_by_itself(empty: Settings) -> None:
    one, _ = await make_key(empty, dbs=("arena",)), await make_key(empty, dbs=("shop",))
    async with open_pool(empty) as pool:
        store = KeyStore(pool)
        caller = await _caller(store, one)
        with pytest.raises(LastAdminKeyError):
            await store.revoke(id_of(one), caller, keep_admin=True)
        await make_key(empty, dbs=("arena", "shop"))
        await store.revoke(id_of(one), caller, keep_admin=True)


@pytest.mark.parametrize("round_", range(5))
async def test_two_admin_keys_that_revoke_each_other_do_not_both_end(empty: Settings, round_: int) -> None:
    one, other = await make_key(empty), await make_key(empty)
    async with open_pool(empty) as pool:
        store = KeyStore(pool)
        callers = await _caller(store, one), await _caller(store, other)

        await asyncio.gather(
            store.revoke(id_of(other), callers[0], keep_admin=True),
            store.revoke(id_of(one), callers[1], keep_admin=True),
            return_exceptions=True,
        )

        found = await store.find([id_of(one), id_of(other)])
        assert sum(stored.key.revoked_at is None for stored in found.values()) == 1


async def _caller(store: KeyStore, key: str) -> Caller:
    stored = (await store.find([id_of(key)]))[id_of(key)]
    return Caller(key=stored.key, secret_hash=stored.secrets[-1].hash, address="test")


async def test_a_job_tells_which_key_created_it_and_so_does_the_log(
    app: httpx.AsyncClient, admin: str, client: Client, db: str, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(app, db)
    app_headers = bearer(admin)
    caplog.set_level(logging.INFO)
    await app.post(
        f"/route/{db}", json={"id": "hook", "type": "REST", "webhook_url": "http://127.0.0.1:9/"}, headers=app_headers
    )
    job = a_job(3600)

    assert (await app.post(service.jobs, json=job, headers=app_headers)).status_code == 200
    assert (await app.delete(f"{service.jobs}/{job['id']}", headers=app_headers)).status_code == 200

    description = await client.get_workflow_handle(f"{db}/c/{job['id']}").describe()
    assert {pair.key.name: pair.value for pair in description.typed_search_attributes}["TimemachineCreatedBy"] == id_of(
        admin
    )
    logged = {record.message: vars(record)["key"] for record in caplog.records if record.message.startswith("job ")}
    assert logged == {"job created": id_of(admin), "job cancelled": id_of(admin)}


async def test_what_is_done_is_in_the_audit_log(app: httpx.AsyncClient, admin: str, db: str) -> None:
    headers = bearer(admin) | {"x-request-id": "request-7"}
    route = {"id": "hook", "type": "REST", "webhook_url": "http://127.0.0.1:9/"}
    path = f"/route/{db}/hook"
    done: list[tuple[str, str, dict[str, Any] | None]] = [
        ("POST", f"/route/{db}", route),
        ("POST", f"/route/{db}", route),  # the same again changes nothing
        ("PUT", path, route | {"timeout": 3}),
        ("POST", f"{path}/pause", {"reason": "maintenance"}),
        ("POST", f"{path}/resume", None),
        ("POST", f"{path}/secret/rotate", None),
        ("POST", f"{path}/redeliver", {"since": now_ms(-3600)}),
        ("POST", f"/job/{db}/c", a_job(3600) | {"id": "kept"}),
        ("GET", f"{path}/secret", None),
        ("POST", "/key", {"name": "n", "role": "read", "dbs": [db]}),
        ("DELETE", f"{path}?force=true", None),
    ]
    for method, at, body in done:
        answer = await app.request(method, at, json=body, headers=headers)
        assert answer.status_code == 200, answer.text
    assert refused(await app.put(path, json=route, headers=headers)) == NO_SUCH_ROUTE

    page = (await app.get(f"/audit/{db}?limit=200", headers=headers)).json()
    entries = [entry for entry in page["entries"] if entry["db"] == db]

    assert [entry["action"] for entry in entries][::-1] == [
        "route.create",
        "route.change",
        "route.pause",
        "route.resume",
        "secret.rotate",
        "route.redeliver",
        "key.create",
        "route.delete",
    ]
    assert {(entry["key"], entry["address"], entry["request_id"]) for entry in entries} == {
        (id_of(admin), "127.0.0.1", "request-7")
    }
    assert {entry["target"] for entry in entries if not entry["action"].startswith("key.")} == {"hook"}
    first = (await app.get(f"/audit/{db}?limit=1&until={entries[-1]['at'] + 1}", headers=headers)).json()["entries"]
    assert first[0]["at"] <= entries[-1]["at"]


async def test_a_redelivered_job_is_in_the_audit_log(
    app: httpx.AsyncClient, admin: str, service: Service, receiver: Receiver
) -> None:
    job_id = await service.create(0)
    await service.wait_for_state(job_id, "delivered")

    answer = await app.post(f"{service.jobs}/{job_id}/redeliver", headers=bearer(admin))

    assert answer.status_code == 200, answer.text
    entries = (await app.get(f"/audit/{service.db}", headers=bearer(admin))).json()["entries"]
    assert [(entry["action"], entry["target"]) for entry in entries if entry["action"].startswith("job.")] == [
        ("job.redeliver", f"c/{job_id}")
    ]


async def test_a_key_that_is_sent_as_the_id_of_a_request_is_not_kept(
    app: httpx.AsyncClient, admin: str, db: str
) -> None:
    asked = {"name": "n", "role": "read", "dbs": [db]}
    told = []
    for request_id in (admin, f"Bearer:{admin}", "r-1"):
        answer = await app.post("/key", json=asked, headers=bearer(admin) | {"x-request-id": request_id})
        told.append(answer.headers["x-request-id"])

    entries = (await app.get(f"/audit/{db}?limit=3", headers=bearer(admin))).json()["entries"]

    assert [entry["request_id"] for entry in entries] == told[::-1]
    assert told[2] == "r-1"
    assert not any(holds_key(request_id) for request_id in told)


async def test_what_is_not_done_is_not_in_the_audit_log(settings: Settings, app: httpx.AsyncClient, admin: str) -> None:
    """An entry and what it tells of are one transaction."""
    db = f"db-{new_id()[:12]}"
    route = {"id": "hook", "type": "REST", "webhook_url": "http://127.0.0.1:9/"}
    async with open_pool(settings) as pool, connection(pool) as postgres:
        await postgres.execute(
            "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '55P03'; END $$"
        )
        await postgres.execute(
            f"CREATE TRIGGER refuse_audit BEFORE INSERT ON audit FOR EACH ROW WHEN (NEW.db = '{db}') "
            "EXECUTE FUNCTION refuse()"
        )
        try:
            answer = await app.post(f"/route/{db}", json=route, headers=bearer(admin))
        finally:
            await postgres.execute("DROP TRIGGER refuse_audit ON audit")

    assert refused(answer) == AWAY
    assert refused(await app.get(f"/route/{db}/hook", headers=bearer(admin))) == NO_SUCH_ROUTE


async def test_no_secret_of_a_key_is_kept_or_logged(
    app: httpx.AsyncClient, admin: str, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    made = (await app.post("/key", json={"name": "n", "role": "read", "dbs": None}, headers=bearer(admin))).json()[
        "key"
    ]
    await app.get(ANY, headers=bearer(made))
    await app.post("/key", json={"name": "n", "role": "read", "dbs": None}, headers=bearer(made))
    rotated = (await app.post(f"/key/{id_of(made)}/rotate", headers=bearer(admin))).json()["key"]
    await app.delete(f"/key/{id_of(made)}", headers=bearer(admin))
    logged = "\n".join(JsonFormatter().format(record) for record in caplog.records)
    async with open_pool(settings) as pool, connection(pool) as postgres:
        rows = [
            str(dict(row))
            for table in ("api_keys", "api_key_secrets", "audit")
            for row in await postgres.fetch(f"SELECT * FROM {table}")  # noqa: S608 - constants
        ]

    for key in (admin, made, rotated):
        secret = key.split("_")[2]
        assert secret[:20] not in logged
        assert not [row for row in rows if secret[:20] in row or secret.encode()[:20].hex() in row]
    assert id_of(made) in logged


async def test_with_no_keys_everybody_is_let_in_and_the_audit_log_tells_so(service: Service, db: str) -> None:
    entries = (await service.api.get(f"/audit/{db}")).json()["entries"]

    created = next(entry for entry in entries if entry["action"] == "route.create")
    assert "key" not in created
    assert created["address"] == "127.0.0.1"

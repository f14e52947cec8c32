"""Temporal or Postgres away: an answer within 5 s, and service again by itself when they are back."""

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace
from temporalio.api.operatorservice.v1 import RemoveSearchAttributesRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from api.app import create_app
from devstack.parts import Part
from devstack.postgres import Postgres, embedded_postgres
from devstack.temporal import Temporal, embedded_temporal
from devstack.temporal_cli import find_temporal_cli
from tests.conftest import serving
from tests.support.kills import send
from tests.support.receiver import Receiver
from tests.support.service import ROUTE, Service, a_job, refused
from tests.support.settings import service_settings
from tests.support.waiting import eventually
from timemachine.domain.errors import MigrationError, UnavailableError
from timemachine.domain.routes import RestRoute
from timemachine.postgres.migrate import migrate
from timemachine.postgres.pool import open_pool
from timemachine.postgres.route_store import RouteStore
from timemachine.settings import Settings
from timemachine.temporal.client import connect
from timemachine.temporal.registered_attributes import ensure_search_attributes
from timemachine.temporal.search_attributes import LABELS
from timemachine.temporal.visibility import attributes_query
from timemachine.vault import Vault

ANSWER_LIMIT = 8.0
"""Seconds: the 5 that are promised, and some for a busy machine."""


class Fragile(Service):
    """A service of the test's own, whose servers it may stop."""

    def __init__(self, api: httpx.AsyncClient, db: str, settings: Settings, postgres: Part, temporal: Part) -> None:
        super().__init__(api, db)
        self.settings = settings
        self.parts = {"postgres": postgres, "temporal": temporal}


@pytest.fixture(scope="module")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Postgres, Temporal]]:
    folder: Path = tmp_path_factory.mktemp("fragile")
    cli = await find_temporal_cli(os.environ.get("TIMEMACHINE_TEMPORAL_CLI"), os.environ)
    async with embedded_postgres(folder) as postgres, embedded_temporal(cli, folder) as temporal:
        yield postgres, temporal


@pytest.fixture(scope="module")
async def own_settings(servers: tuple[Postgres, Temporal]) -> Settings:
    postgres, _ = servers
    settings = service_settings(postgres_dsn=postgres.dsn, default_scheme="http", allow_private_targets=True)
    await migrate(settings)
    return settings


@pytest.fixture(scope="module")
async def own_api(own_settings: Settings, servers: tuple[Postgres, Temporal]) -> AsyncIterator[httpx.AsyncClient]:
    _, temporal = servers
    with pytest.MonkeyPatch.context() as env:
        env.setenv("TEMPORAL_ADDRESS", temporal.address)
        await ensure_search_attributes(await connect())
        async with serving(create_app(own_settings)) as api:
            yield api


@pytest.fixture
async def fragile(
    servers: tuple[Postgres, Temporal],
    own_settings: Settings,
    own_api: httpx.AsyncClient,
    db: str,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> Fragile:
    postgres, temporal = servers
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal.address)
    fragile = Fragile(own_api, db, own_settings, postgres.part, temporal.part)
    await eventually(lambda: own_api.get("/readyz"), lambda answer: answer.status_code == 200)
    await fragile.add_route(receiver.url)
    return fragile


async def timed(answer: Awaitable[httpx.Response]) -> httpx.Response:
    """Return an answer that came within the promised time."""
    async with asyncio.timeout(ANSWER_LIMIT):
        return await answer


def every_request(
    service: Service, job_id: str, *, created_on: str = ROUTE
) -> dict[str, Callable[[], Awaitable[httpx.Response]]]:
    job = a_job(3600, route=created_on)
    route = f"/route/{service.db}/{ROUTE}"
    return {
        "create": lambda: service.api.post(service.jobs, json=job),
        "find": lambda: service.api.get(f"{service.jobs}/{job_id}"),
        "change": lambda: service.change(job_id, 3600),
        "cancel": lambda: service.cancel(job_id),
        "find route": lambda: service.api.get(route),
        "remove route": lambda: service.api.delete(route),
        "ready": lambda: service.api.get("/readyz"),
    }


NEEDS = {
    "postgres": ["create", "find", "change", "cancel", "find route", "remove route", "ready"],
    "temporal": ["create", "find", "change", "cancel", "remove route", "ready"],
}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
@pytest.mark.parametrize("part", ["postgres", "temporal"])
async def test_what_needs_an_absent_part_is_answered_503_in_time(
    fragile: Fragile, part: str, how: signal.Signals
) -> None:
    job_id = await fragile.create(3600)
    # For a route that was seen a moment ago a create needs no Postgres.
    await fragile.add_route("http://127.0.0.1:9/", "unseen")
    requests = every_request(fragile, job_id, created_on="unseen")
    send(fragile.parts[part], how)

    try:
        answers = await asyncio.gather(*(timed(requests[name]()) for name in NEEDS[part]))
        # As one that finds what the others have left of the connections.
        assert refused(await timed(requests["find"]())) == (503, "E015")
    finally:
        await revive(fragile.parts[part], how)

    assert dict(zip(NEEDS[part], map(refused, answers), strict=True)) == dict.fromkeys(NEEDS[part], (503, "E015"))
    assert all(answer.headers["retry-after"] for answer in answers)
    await eventually(requests["ready"], lambda answer: answer.status_code == 200)
    await eventually(requests["create"], lambda answer: answer.status_code == 200)
    assert (await fragile.find(job_id))["state"] in ("scheduled", "cancelled")


async def revive(part: Part, how: signal.Signals) -> None:
    if how is signal.SIGSTOP:
        send(part, signal.SIGCONT)
    else:
        await part.restart()


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("stetement_timeout=1", 'unrecognized configuration parameter "stetement_timeout"'),
        ("work_mem=lots", 'invalid value for parameter "work_mem"'),
        ("shared_buffers=1GB", 'parameter "shared_buffers" cannot be changed'),
        ("options=-c%20x%3Dy", 'unrecognized configuration parameter "x"'),
        ("password=wrong", "password authentication failed"),
    ],
)
async def test_a_session_that_postgres_refuses_is_503_and_ends_the_setup_with_the_reason(
    fragile: Fragile, caplog: pytest.LogCaptureFixture, option: str, reason: str
) -> None:
    dsn = fragile.settings.postgres_dsn or ""
    if option.startswith("password="):
        dsn = re.sub(r"//(\w+):[^@]*@", r"//\1@", dsn)
    job_id = await fragile.create(3600)
    refused_settings = replace(fragile.settings, postgres_dsn=f"{dsn}{'&' if '?' in dsn else '?'}{option}")

    async with serving(create_app(refused_settings)) as api:
        requests = every_request(Service(api, fragile.db), job_id)
        answers = await asyncio.gather(*(timed(request()) for request in requests.values()))
    assert {answer.status_code for answer in answers} == {503}
    assert any(reason in str(vars(record).get("reason")) for record in caplog.records)
    with pytest.raises(MigrationError, match="Postgres refuses: ") as refusal:
        await migrate(refused_settings)
    assert reason in str(refusal.value)


async def test_a_dsn_with_options_that_only_libpq_knows_is_served(fragile: Fragile) -> None:
    dsn = fragile.settings.postgres_dsn or ""
    options = "connect_timeout=10&channel_binding=prefer&keepalives=1"
    own = replace(fragile.settings, postgres_dsn=f"{dsn}{'&' if '?' in dsn else '?'}{options}")

    await migrate(own)
    async with serving(create_app(own)) as api:
        assert (await timed(api.get("/readyz"))).status_code == 200


AWAY = {"error": "Temporal does not answer", "code": "E015"}


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("TEMPORAL_NAMESPACE", "nowhere", "Namespace nowhere is not found"),
        ("TEMPORAL_ADDRESS", "127.0.0.1:1", "127.0.0.1:1"),
        ("TEMPORAL_TLS", "true", "InvalidContentType"),
    ],
)
async def test_of_what_keeps_us_from_temporal_clients_are_told_nothing_and_operators_the_reason(
    fragile: Fragile,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variable: str,
    value: str,
    reason: str,
) -> None:
    """Least of all that there is no such job."""
    job_id = await fragile.create(3600)
    monkeypatch.setenv(variable, value)
    async with serving(create_app(fragile.settings)) as api:
        requests = every_request(Service(api, fragile.db), job_id)
        requests |= {
            "redeliver": lambda: api.post(f"{fragile.jobs}/{job_id}/redeliver"),
            "attempts": lambda: api.get(f"{fragile.jobs}/{job_id}/attempts"),
            "failed": lambda: api.get(f"/failed/{fragile.db}"),
            "redelivery": lambda: api.get(f"/route/{fragile.db}/{ROUTE}/redeliver/x"),
        }
        del requests["find route"]
        answers = await asyncio.gather(*(timed(request()) for request in requests.values()))
    told = {name: (answer.status_code, answer.json()) for name, answer in zip(requests, answers, strict=True)}
    ready = AWAY | {"error": "Temporal does not answer; Postgres answers"}
    assert told == dict.fromkeys(requests, (503, AWAY)) | {"ready": (503, ready)}
    assert any(reason in str(vars(record).get("reason")) for record in caplog.records)
    assert (await fragile.find(job_id))["state"] == "scheduled"


async def _does_not_know_labels(client: Client) -> bool:
    """Temporal keeps search attributes for some seconds."""
    try:
        await client.count_workflows(attributes_query([LABELS.name]))
    except RPCError as error:
        return error.status is RPCStatusCode.INVALID_ARGUMENT
    return False


@pytest.fixture
async def without_labels(fragile: Fragile) -> AsyncIterator[Client]:
    """A Temporal that the setup of an earlier version prepared."""
    client = await connect()
    await client.operator_service.remove_search_attributes(
        RemoveSearchAttributesRequest(namespace=client.namespace, search_attributes=[LABELS.name])
    )
    await eventually(lambda: _does_not_know_labels(client))
    yield client
    await ensure_search_attributes(client)


async def test_before_the_setup_of_this_version_ran_the_api_is_not_ready_and_says_so(
    fragile: Fragile, without_labels: Client, caplog: pytest.LogCaptureFixture
) -> None:
    labelled = a_job(3600) | {"labels": ["blue"]}
    answers = [
        await fragile.api.post(fragile.jobs, json=labelled),
        await fragile.api.get(f"/job/{fragile.db}", params={"label": "blue"}),
        await fragile.api.get(f"/count/{fragile.db}", params={"label": "blue"}),
    ]
    ready = await fragile.api.get("/readyz")

    assert [(answer.status_code, answer.json()) for answer in answers] == [(503, AWAY)] * 3
    assert (ready.status_code, ready.json()["error"]) == (503, "Temporal does not answer; Postgres answers")
    reasons = [str(vars(record).get("reason")) for record in caplog.records]
    assert any("no mapping defined for search attribute TimemachineLabels" in reason for reason in reasons)
    assert any("lacks TimemachineLabels: run `python -m timemachine.setup`" in reason for reason in reasons)

    await ensure_search_attributes(without_labels)

    assert (await fragile.api.post(fragile.jobs, json=labelled)).status_code == 200
    assert (await fragile.api.get("/readyz")).status_code == 200


async def test_without_a_worker_a_job_is_shown_and_cancelled_but_not_changed(fragile: Fragile) -> None:
    """Nobody serves this task queue: what the servers know is answered, the rest is told to be unknown."""
    job_id = await fragile.create(3600)

    assert (await fragile.find(job_id))["state"] == "scheduled"
    assert refused(await timed(fragile.change(job_id, 3600))) == (503, "E015")
    assert (await timed(fragile.cancel(job_id))).json() == {"status": "ok"}


async def test_the_route_store_heals_after_postgres_was_killed(
    servers: tuple[Postgres, Temporal], own_settings: Settings, db: str
) -> None:
    postgres, _ = servers
    route = RestRoute(id="r", webhook_url="example.org/hook")
    async with open_pool(own_settings) as pool:
        store = RouteStore(pool, Vault(own_settings))
        await store.add(db, route, {})
        send(postgres.part, signal.SIGKILL)
        started = time.monotonic()
        with pytest.raises(UnavailableError):
            await store.find(db, "r")
        assert time.monotonic() - started < ANSWER_LIMIT
        await postgres.part.restart()

        assert (await store.find(db, "r")).route == route

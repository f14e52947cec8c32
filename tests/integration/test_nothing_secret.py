"""Secrets, header values, keys and passwords stay where they belong: looked for everywhere else, after all of it."""

import base64
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest
from msgspec.structs import replace
from temporalio.client import Client, WorkflowExecution
from temporalio.common import MetricMeter

from api.app import create_app
from api.schemas import EXAMPLE_SECRET, OLDER_EXAMPLE_SECRET
from devstack.ports import free_port
from devstack.temporal import Temporal
from tests.conftest import serving, working
from tests.support.events import ask_for_events, event_requests, wait_for_events
from tests.support.leaks import PAYLOAD
from tests.support.meters import Counted
from tests.support.receiver import Received, Receiver, response
from tests.support.refusals import INTERNAL
from tests.support.service import Service, a_job, new_id, refused
from tests.support.spans import Spans
from tests.support.waiting import eventually
from timemachine import metrics
from timemachine.postgres.pool import open_pool
from timemachine.settings import Settings
from timemachine.telemetry import JsonFormatter
from timemachine.vault import new_key
from timemachine.webhooks.client import WebhookClient

QUICK = {"waits": [0.1]}


def headers() -> dict[str, str]:
    return {"authorization": f"Bearer bearer-{new_id()}", "x-token": f"token-{new_id()}"}


class Search:
    """Looks for what is secret in what is not."""

    def __init__(self) -> None:
        self._secret: dict[str, bytes] = {}
        self.places: dict[str, bytes] = {}

    def hide(self, name: str, value: str) -> None:
        """Count a text as secret, and its usual disguises."""
        plain = value.encode()
        self._secret |= {name: plain, f"{name} in hex": plain.hex().encode()}
        # Base64 of it within a longer text, wherever it begins there; its first and last characters mix with others'.
        for before in range(3):
            encoded = base64.b64encode(b"-" * before + plain)[4:-4]
            self._secret |= {f"{name} in base64, {before}": encoded}

    def hide_secret(self, name: str, secret: str) -> None:
        """Count a secret as such: as it is told, without its prefix, and its bytes."""
        bare = secret.removeprefix("whsec_")
        self.hide(name, bare)
        self._secret |= {f"{name}, its bytes": base64.b64decode(bare)}
        self._secret |= {f"{name}, its bytes in hex": base64.b64decode(bare).hex().encode()}

    def found(self) -> list[str]:
        return [f"{name} in {place}" for place, text in self.places.items() for name in self._names_in(text)]

    def _names_in(self, text: bytes) -> list[str]:
        return [name for name, value in self._secret.items() if value in text]


class Watched:
    """The API, with all that it answered but the secrets that it is asked for."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self.answers = b""

    async def ask(self, method: str, path: str, **how: Any) -> httpx.Response:
        answer = await self.http.request(method, path, **how)
        self.answers += answer.content + repr(answer.headers).encode()
        return answer


@pytest.fixture
async def search(settings: Settings) -> Search:
    search = Search()
    search.hide("key", settings.secret_keys or "")
    search.hide("password", urlsplit(settings.postgres_dsn or "").password or "")
    return search


@asynccontextmanager
async def with_wrong_key(settings: Settings, temporal: Temporal, client: Client) -> AsyncIterator[httpx.AsyncClient]:
    """An API and a worker like the tests' own, but for the key."""
    with pytest.MonkeyPatch.context() as env:
        env.setenv("TEMPORAL_ADDRESS", temporal.address)
        async with (
            serving(create_app(settings)) as api,
            open_pool(settings) as pool,
            WebhookClient(timeout=5, max_connections=5, address_guard=settings.address_guard) as webhooks,
            working(client, pool, webhooks, settings),
        ):
            yield api


async def rows(settings: Settings, table: str) -> bytes:
    """All that a table holds, binary columns as they are."""
    postgres = await asyncpg.connect(settings.postgres_dsn)
    found = await postgres.fetch(f"SELECT * FROM {table}")  # noqa: S608 - a name of ours
    await postgres.close()
    return b"\n".join(
        value if isinstance(value, bytes) else str(value).encode() for row in found for value in row.values()
    )


async def histories(client: Client, db: str, job_ids: set[str]) -> bytes:
    """All that Temporal keeps of every workflow of a db: histories, memos, search attributes, failures."""

    async def listed() -> list[WorkflowExecution]:
        return [run async for run in client.list_workflows() if db in run.id]

    found = b""
    for run in await eventually(listed, lambda runs: {run.id.rpartition("/")[2] for run in runs} >= job_ids):
        handle = client.get_workflow_handle(run.id, run_id=run.run_id)
        history = await handle.fetch_history()
        description = await handle.describe()
        found += history.to_json().encode() + b"".join(event.SerializeToString() for event in history.events)
        found += str(description.raw_description).encode() + description.raw_description.SerializeToString()
    return found


async def run_it_all(service: Service, receiver: Receiver, watched: Watched, extra: dict[str, str]) -> set[str]:
    """Everything that happens to routes and jobs, going well and badly; return the jobs' ids."""
    answers = {
        "/hook/500": response(500, b"no"),
        "/hook/410": response(410, b"gone"),
        "/hook/odd": b"odd\r\n\r\n",
        "/hook/none": b"",
    }

    async def answer(received: Received) -> bytes:
        return answers.get(received.path, response(200))

    receiver.answer = answer
    await ask_for_events(service, receiver, headers=extra, retry=QUICK)
    for path in ("200", "500", "410", "odd", "none"):
        await service.add_route(f"{receiver.url}/{path}", path, headers=extra, retry=QUICK, timeout=0.5)
    await service.add_route(f"http://127.0.0.1:{free_port()}/", "closed", headers=extra, retry=QUICK)
    await service.add_route("http://nowhere.invalid/", "unknown", headers=extra, retry=QUICK)

    jobs = {
        route: await service.create(0, route=route, meta={"n": 1})
        for route in ("200", "500", "410", "odd", "none", "closed", "unknown")
    }
    for job_id in jobs.values():
        await service.wait_for_end(job_id)
        await watched.ask("GET", f"{service.jobs}/{job_id}")
        await watched.ask("GET", f"{service.jobs}/{job_id}/attempts")
    await service.rotate("200")
    after = await service.create(0, route="200")
    waiting = await service.create(3600, route="200")
    await service.change(waiting, 7200, route="500")
    await service.wait_for_end(after)
    await watched.ask("POST", f"/route/{service.db}/200/pause", json={"reason": "for the test"})
    held = await service.create(0, route="200")
    await receiver.wait_for(after)
    await watched.ask("POST", f"/route/{service.db}/200/resume", json={"spread": 0})
    await service.wait_for_end(held)
    for path in ("200", "500"):
        await watched.ask("GET", f"/route/{service.db}/{path}")
        await watched.ask("GET", f"/route/{service.db}/{path}/attempts")
    await watched.ask("POST", f"{service.jobs}/{jobs['500']}/redeliver")
    await wait_for_events(receiver, 1)
    assert {received.headers["x-token"] for received in receiver.received} == {extra["x-token"]}
    return {*jobs.values(), after, waiting, held}


async def ask_badly(watched: Watched, db: str, extra: dict[str, str], secret: str) -> None:
    """Every way in which a request that holds something secret can be wrong."""
    route = {"id": "200", "type": "REST", "webhook_url": "http://127.0.0.1/", "headers": extra}
    token = extra["x-token"]
    bad: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", f"/route/{db}", {"json": route}),  # E008: another route
        ("POST", f"/route/{db}", {"json": route | {"webhook_url": f"http://u:{token}@127.0.0.1/"}}),
        ("POST", f"/route/{db}", {"json": route | {"headers": [extra]}}),
        ("POST", f"/route/{db}", {"json": route | {"headers": token}}),
        ("POST", f"/route/{db}", {"json": route | {"headers": {"x-token": [token]}}}),
        ("POST", f"/route/{db}", {"json": route | {"headers": {"x-token": f" {token}"}}}),
        ("POST", f"/route/{db}", {"json": route | {"headers": {"x-token": f"{token}\r\nx: y"}}}),
        ("POST", f"/route/{db}", {"json": route | {"headers": {"webhook-id": token}}}),
        ("POST", f"/route/{db}", {"json": route | {"headers": {"x y": token}}}),
        ("POST", f"/route/{db}", {"json": route | {"secret": secret}}),
        ("POST", f"/route/{db}", {"json": route | {"timeout": token}}),
        ("POST", f"/route/{db}", {"content": f'{{"headers": {{"x-token": "{token}"'}),
        ("POST", f"/route/{db}", {"content": f"{token}"}),
        ("POST", f"/route/{db}", {"json": route, "headers": {"content-type": "text/plain"}}),
        ("PUT", f"/route/{db}/absent", {"json": route | {"id": "absent"}}),
        ("PUT", f"/route/{db}/200", {"json": route | {"id": "other"}}),
        ("DELETE", f"/route/{db}/500", {}),
        ("POST", f"/route/{db}/200/secret/rotate", {"json": {"overlap": secret}}),
        ("POST", f"/route/{db}/200/secret/rotate", {"json": {"secret": secret}}),
        ("POST", f"/route/{db}/200/secret", {"json": {"secret": secret}}),
        ("GET", f"/route/{db}/absent/secret", {}),
    ]
    for method, path, how in bad:
        assert (await watched.ask(method, path, **how)).is_client_error, (method, path)


async def ask_with_wrong_key(
    watched: Watched, service: Service, settings: Settings, temporal: Temporal, client: Client
) -> str:
    """Read, change and deliver what cannot be read; return the job's id."""
    async with with_wrong_key(settings, temporal, client) as api:
        other = Watched(api)
        path = f"/route/{service.db}/200"
        assert refused(await other.ask("GET", f"{path}/secret")) == INTERNAL
        assert refused(await other.ask("POST", f"{path}/secret/rotate")) == INTERNAL
        job = a_job(0, route="200")
        assert (await other.ask("POST", service.jobs, json=job)).status_code == 200
        shown = f"{service.jobs}/{job['id']}"
        await eventually(lambda: other.ask("GET", shown), lambda answer: answer.json().get("last_error"))
        assert (await other.ask("DELETE", shown)).status_code == 200
        watched.answers += other.answers
    return str(job["id"])


@pytest.fixture
def counted() -> Iterator[Counted]:
    """All that is counted meanwhile."""
    yield Counted("200")
    metrics.export_to(MetricMeter.noop)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> logging.Handler:
    """Every log line of the API and of the worker, which run in the tests' own process, as they would write it."""
    caplog.set_level(logging.CRITICAL, logger="httpx")  # the tests' own client
    caplog.set_level(logging.DEBUG)
    caplog.handler.setFormatter(JsonFormatter())
    return caplog.handler


async def test_nothing_secret_is_anywhere_else(
    service: Service,
    receiver: Receiver,
    settings: Settings,
    temporal: Temporal,
    client: Client,
    search: Search,
    log: logging.Handler,
    caplog: pytest.LogCaptureFixture,
    spans: Spans,
    counted: Counted,
) -> None:
    extra, wrong = headers(), replace(settings, secret_keys=new_key(), task_queue=f"wrong-key-{service.db}")
    watched = Watched(service.api)
    for name, value in extra.items():
        search.hide(name, value)
    search.hide("wrong key", wrong.secret_keys or "")

    job_ids = await run_it_all(service, receiver, watched, extra)
    await ask_badly(watched, service.db, extra, (await service.secret("200"))["secret"])
    job_ids.add(await ask_with_wrong_key(watched, service, wrong, temporal, client))

    for number, secret in enumerate(service.secrets):
        search.hide_secret(f"secret {number}", secret)
    document = (await watched.ask("GET", "/docs/openapi.json")).content
    search.places = {
        "answers": watched.answers,
        "logs": "\n".join(map(log.format, caplog.records)).encode(),
        "histories": await histories(client, service.db, job_ids),
        "OpenAPI document": document,
        "spans": "\n".join(span.to_json() for span in spans.all).encode(),
        "settings": repr(settings).encode(),
        "metrics": counted.everything().encode(),
        "events": b"\n".join(event.body for event in event_requests(receiver)),
    } | {
        f"table {table}": await rows(settings, table) for table in ("routes", "route_secrets", "attempts", "in_flight")
    }
    assert search.found() == []
    told = Search()
    told.hide("payload", PAYLOAD)
    told.places = {place: search.places[place] for place in ("logs", "spans", "metrics", "events", "table attempts")}
    assert told.found() == []

    # The search finds what is there.
    for name, value in {
        "route": "the service itself",
        "job": next(iter(job_ids)),
        "worker's line": "attempt failed",
        "API's line": "cryptography.fernet.InvalidToken",
        "example": EXAMPLE_SECRET,
        "attempt": "500 from the receiver",
        "payload": PAYLOAD,
        "event": "job.failed",
        "metric": "timemachine_attempts",
    }.items():
        search.hide(name, value)
    assert set(search.found()) >= {
        "route in answers",
        "job in histories",
        "job in spans",
        "worker's line in logs",
        "API's line in logs",
        "example in OpenAPI document",
        "attempt in table attempts",
        "payload in histories",
        "event in events",
        "metric in metrics",
    }


async def test_what_a_receiver_echoes_is_kept_without_our_header_values(
    service: Service, receiver: Receiver, settings: Settings, client: Client, search: Search
) -> None:
    extra = headers()
    for name, value in extra.items():
        search.hide(name, value)

    async def echo(received: Received) -> bytes:
        return response(500, repr(received.headers).encode())

    receiver.answer = echo
    await service.add_route(receiver.url, "echo", headers=extra, retry=QUICK)
    job_id = await service.create(0, route="echo")
    job = await service.wait_for_end(job_id)

    search.places = {
        "answer": repr(job).encode(),
        "histories": await histories(client, service.db, {job_id}),
        "table attempts": await rows(settings, "attempts"),
    }
    assert search.found() == []


async def test_a_secret_that_a_receiver_shows_is_not_kept(
    service: Service, receiver: Receiver, settings: Settings, client: Client, search: Search
) -> None:
    await service.add_route(receiver.url, "shows", retry=QUICK)
    await service.rotate("shows")
    for number, secret in enumerate(service.secrets):
        search.hide_secret(f"secret {number}", secret)

    async def show(_: Received) -> bytes:
        return response(500, "\n".join(f"WEBHOOK_SECRET={secret}" for secret in service.secrets).encode())

    receiver.answer = show
    job_id = await service.create(0, route="shows")
    job = await service.wait_for_end(job_id)

    search.places = {
        "answer": repr(job).encode(),
        "histories": await histories(client, service.db, {job_id}),
        "table attempts": await rows(settings, "attempts"),
    }
    assert search.found() == []


def test_the_examples_of_secrets_say_that_they_are_none() -> None:
    for example in (EXAMPLE_SECRET, OLDER_EXAMPLE_SECRET):
        assert b"not a real one" in base64.b64decode(example.removeprefix("whsec_"))

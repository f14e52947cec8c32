"""More than can be done at once: what is too much is told at once and has no effect, and the rest is done."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice

import asyncpg
import httpx
import pytest
from msgspec.structs import replace
from temporalio.client import Client

from api.app import create_app
from devstack import temporal as local_temporal
from devstack.postgres import Postgres
from devstack.temporal import Temporal, embedded_temporal
from devstack.temporal_cli import find_temporal_cli
from tests.conftest import serving
from tests.support.refusals import AWAY, BUSY, NO_SUCH_JOB
from tests.support.service import ROUTE, Service, a_job, refused
from timemachine.settings import Settings
from timemachine.temporal.client import connect
from timemachine.temporal.registered_attributes import ensure_search_attributes

PLACES, REQUESTS = 4, 50
ANSWER_LIMIT = 8.0
"""Seconds: the 5 that are promised, and some for a busy machine."""

Ask = Callable[[], Awaitable[httpx.Response]]


@asynccontextmanager
async def service_with(settings: Settings, temporal: Temporal, db: str) -> AsyncIterator[Service]:
    """An API with settings of its own, and a route in it that nobody calls."""
    with pytest.MonkeyPatch.context() as env:
        env.setenv("TEMPORAL_ADDRESS", temporal.address)
        async with serving(create_app(settings)) as api:
            service = Service(api, db)
            await service.add_route("http://127.0.0.1:9/")
            yield service


@asynccontextmanager
async def routes_locked(postgres: Postgres) -> AsyncIterator[None]:
    """Make every query on routes wait."""
    other = await asyncpg.connect(postgres.dsn)
    try:
        async with other.transaction():
            await other.execute("LOCK TABLE routes IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await other.close()


@pytest.fixture(scope="module")
async def limited(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Temporal]:
    """A Temporal server that takes ten requests a second."""
    cli = await find_temporal_cli(os.environ.get("TIMEMACHINE_TEMPORAL_CLI"), os.environ)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(local_temporal._DYNAMIC_CONFIG, "frontend.namespaceRPS", "10")
        patch.setitem(local_temporal._DYNAMIC_CONFIG, "frontend.namespaceBurstRatio", "1")
        async with embedded_temporal(cli, tmp_path_factory.mktemp("limited")) as temporal:
            patch.setenv("TEMPORAL_ADDRESS", temporal.address)
            await ensure_search_attributes(await connect())
            yield temporal


def is_refused(answer: httpx.Response) -> bool:
    """Return whether an answer is the refusal of what is too much, which says when to come back."""
    return answer.status_code == 429 and refused(answer) == BUSY and answer.headers["retry-after"] == "1"


async def until_taken(ask: Ask, *, limit: float = 30) -> httpx.Response:
    """Return the first answer that is not E014, as a client gets it that comes back when it is told to."""
    async with asyncio.timeout(limit):
        while is_refused(answer := await ask()):
            await asyncio.sleep(float(answer.headers["retry-after"]))
    return answer


async def test_as_many_as_there_are_places_wait_and_the_rest_is_refused_at_once(
    settings: Settings, postgres: Postgres, temporal: Temporal, client: Client, db: str
) -> None:
    async with service_with(replace(settings, max_requests_in_flight=PLACES), temporal, db) as service:
        jobs = [a_job(3600) for _ in range(REQUESTS)]
        async with routes_locked(postgres):
            asked = [asyncio.create_task(service.api.post(service.jobs, json=job)) for job in jobs]
            answers = [await answer for answer in islice(asyncio.as_completed(asked), REQUESTS - PLACES)]

            waiting = [task for task in asked if not task.done()]
            assert all(is_refused(answer) for answer in answers)
            assert len(waiting) == PLACES
            assert (await service.api.get("/healthz")).status_code == 200
            ready = asyncio.create_task(service.api.get("/readyz"))  # let in, and asks for what requests ask for
            await asyncio.sleep(0)

        assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [200] * PLACES
        assert (await ready).status_code == 200
        found = [await service.api.get(f"{service.jobs}/{job['id']}") for job in jobs]
        assert [answer.status_code == 200 for answer in found] == [task in waiting for task in asked]
        assert {refused(answer) for answer in found if answer.status_code != 200} == {NO_SUCH_JOB}
        again = [await service.api.post(service.jobs, json=job) for job in jobs]
        assert {answer.status_code for answer in again} == {200}


async def test_who_waits_for_a_connection_to_postgres_is_answered_in_time(
    settings: Settings, postgres: Postgres, temporal: Temporal, client: Client, db: str
) -> None:
    async with service_with(replace(settings, postgres_pool_size=2), temporal, db) as service:
        route = f"/route/{db}/{ROUTE}"
        async with routes_locked(postgres), asyncio.timeout(ANSWER_LIMIT):
            answers = await asyncio.gather(*(service.api.get(route) for _ in range(12)))

        assert {refused(answer) for answer in answers} == {AWAY}
        answers = await asyncio.gather(*(service.api.get(route) for _ in range(12)))
        assert {answer.status_code for answer in answers} == {200}


async def test_what_temporal_takes_no_more_of_is_refused_without_effect(
    settings: Settings, limited: Temporal, db: str
) -> None:
    async with service_with(settings, limited, db) as service:
        jobs = [a_job(3600) for _ in range(REQUESTS)]

        answers = await asyncio.gather(*(service.api.post(service.jobs, json=job) for job in jobs))

        turned_away = [job for job, answer in zip(jobs, answers, strict=True) if is_refused(answer)]
        assert turned_away
        assert {answer.status_code for answer in answers} <= {200, 429}
        for job in turned_away[:3]:
            assert refused(await until_taken(partial(service.api.get, f"{service.jobs}/{job['id']}"))) == NO_SUCH_JOB
        for job in jobs[:3] + turned_away[:3]:
            assert (await until_taken(partial(service.api.post, service.jobs, json=job))).status_code == 200


async def test_a_resume_that_is_half_done_is_not_called_refused(settings: Settings, limited: Temporal, db: str) -> None:
    async with service_with(settings, limited, db) as service:
        resume = f"/route/{db}/{ROUTE}/resume"

        answers = await asyncio.gather(*(service.api.post(resume) for _ in range(REQUESTS)))

        assert {refused(answer) for answer in answers if answer.status_code != 200} == {AWAY}


async def test_a_create_outlives_a_restart_of_temporal(settings: Settings, limited: Temporal, db: str) -> None:
    async with service_with(replace(settings, request_timeout=30), limited, db) as service:
        await until_taken(partial(service.api.post, service.jobs, json=a_job(3600)))
        job = a_job(3600)
        await limited.part.stop()
        try:
            create = asyncio.create_task(until_taken(partial(service.api.post, service.jobs, json=job)))
        finally:
            await limited.part.start()

        assert (await create).status_code == 200
        found = await until_taken(partial(service.api.get, f"{service.jobs}/{job['id']}"))
        assert found.json()["state"] == "scheduled"

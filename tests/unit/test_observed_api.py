"""The whole API without its servers: whatever it answers has an id, and is counted by the handler's path."""

from collections.abc import AsyncIterator

import httpx
import pytest
from temporalio.common import MetricMeter

from api.app import create_app
from tests.conftest import serving
from tests.support.cases import each_case
from tests.support.meters import Counted
from tests.support.settings import service_settings
from timemachine import metrics
from timemachine.domain.keys import generate_key, new_key_id
from timemachine.settings import Auth

NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"
JOB = "/job/{db}/{collection}/{job_id}"


@pytest.fixture(scope="module")
async def api() -> AsyncIterator[httpx.AsyncClient]:
    with pytest.MonkeyPatch.context() as env:
        env.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
        async with serving(create_app(service_settings(postgres_dsn=NOWHERE))) as http:
            yield http


@pytest.fixture(scope="module")
async def keyed() -> AsyncIterator[httpx.AsyncClient]:
    """One that wants keys."""
    with pytest.MonkeyPatch.context() as env:
        env.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
        async with serving(create_app(service_settings(postgres_dsn=NOWHERE, auth=Auth.KEYS))) as http:
            yield http


@each_case(
    ("method", "path", "status", "route"),
    [
        ("GET", "/livez", 200, "/livez"),
        ("GET", "/healthz", 200, "/healthz"),
        ("GET", "/docs", 200, "/docs"),
        ("HEAD", "/livez", 200, "/livez"),
        ("OPTIONS", "/job/d/c/x", 204, "none"),
        ("GET", "/nowhere", 404, "none"),
        ("PATCH", "/job/d/c/x", 405, "none"),
        ("GET", "/job/d/c%2fx/y", 400, "none"),
        ("GET", "/job/d/c/..%20", 400, JOB),
        ("POST", "/job/d/c", 400, "/job/{db}/{collection}"),
        ("GET", "/job/secret-db/c/x", 503, JOB),
        ("DELETE", "/job/secret-db/c/x", 503, JOB),
        ("GET", "/readyz", 503, "/readyz"),
    ],
)
async def test_every_answer_has_an_id_and_is_counted(
    api: httpx.AsyncClient, method: str, path: str, status: int, route: str
) -> None:
    counted = Counted()
    try:
        answer = await api.request(method, path, headers={"x-request-id": "r-1"})
    finally:
        metrics.export_to(MetricMeter.noop)

    assert (answer.status_code, answer.headers["x-request-id"]) == (status, "r-1"), answer.text
    known = method if method != "PATCH" else "other"
    labels = {"method": known, "route": route}
    assert counted.total("timemachine_http_requests_total", status=str(status), **labels) == 1
    assert len(counted.values("timemachine_http_request_duration_seconds", **labels)) == 1
    code = answer.json()["code"] if status >= 400 and answer.content else None
    assert code is None or counted.total("timemachine_refused_total", reason=code) == 1


async def test_who_is_no_admin_is_not_told_which_part_does_not_answer(keyed: httpx.AsyncClient) -> None:
    for headers in ({}, {"authorization": f"Bearer {generate_key(new_key_id()).text}"}, {"authorization": "Bearer x"}):
        answer = await keyed.get("/readyz", headers=headers)

        assert answer.status_code == 503
        assert answer.json() == {"error": "the service is not ready", "code": "E015"}


async def test_who_may_know_everything_is_told_which_part_does_not_answer(api: httpx.AsyncClient) -> None:
    answer = await api.get("/readyz")

    assert answer.json() == {"error": "Temporal does not answer; Postgres does not answer", "code": "E015"}

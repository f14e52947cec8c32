"""Routes through the API, on real servers."""

import asyncio

import httpx
import pytest
from temporalio.client import Client

from api import known_routes
from tests.support.receiver import Receiver
from tests.support.refusals import MALFORMED, NO_SUCH_ROUTE, ROUTE_EXISTS, ROUTE_IN_USE
from tests.support.service import ROUTE, Service, a_job, new_id, now_ms, refused
from tests.support.waiting import eventually
from timemachine.postgres.route_store import RouteStore

EXAMPLE = {
    "id": "gameServer",
    "type": "REST",
    "webhook_url": "gameserver-dev-1.myorg.com/timer?action=endgame",
}


async def test_a_route_is_kept_as_it_was_given(api: httpx.AsyncClient, db: str) -> None:
    assert (await api.post(f"/route/{db}", json=EXAMPLE)).json() == {"status": "ok"}

    answer = await api.get(f"/route/{db}/gameServer")

    assert EXAMPLE.items() <= answer.json().items()
    assert list(answer.json())[:3] == list(EXAMPLE)


async def test_a_create_may_be_repeated_but_not_with_other_content(api: httpx.AsyncClient, db: str) -> None:
    await api.post(f"/route/{db}", json=EXAMPLE)

    assert (await api.post(f"/route/{db}", json=EXAMPLE)).status_code == 200
    other = EXAMPLE | {"webhook_url": "https://example.org/"}
    assert refused(await api.post(f"/route/{db}", json=other)) == ROUTE_EXISTS


async def test_a_db_does_not_see_the_routes_of_another(api: httpx.AsyncClient, db: str) -> None:
    await api.post(f"/route/{db}", json=EXAMPLE)

    assert refused(await api.get(f"/route/{db}x/gameServer")) == NO_SUCH_ROUTE


async def test_put_replaces_and_creates_nothing(api: httpx.AsyncClient, db: str) -> None:
    changed = EXAMPLE | {"webhook_url": "https://example.org/new"}
    assert refused(await api.put(f"/route/{db}/gameServer", json=changed)) == NO_SUCH_ROUTE
    await api.post(f"/route/{db}", json=EXAMPLE)

    assert (await api.put(f"/route/{db}/gameServer", json=changed)).json() == {"status": "ok"}

    assert changed.items() <= (await api.get(f"/route/{db}/gameServer")).json().items()


async def test_put_with_the_id_of_another_route_is_refused(api: httpx.AsyncClient, db: str) -> None:
    await api.post(f"/route/{db}", json=EXAMPLE)

    assert refused(await api.put(f"/route/{db}/gameServer", json=EXAMPLE | {"id": "other"})) == MALFORMED


async def test_a_deleted_route_is_gone(api: httpx.AsyncClient, db: str) -> None:
    await api.post(f"/route/{db}", json=EXAMPLE)

    assert (await api.delete(f"/route/{db}/gameServer")).json() == {"status": "ok"}

    for answer in (await api.get(f"/route/{db}/gameServer"), await api.delete(f"/route/{db}/gameServer")):
        assert refused(answer) == NO_SUCH_ROUTE


@pytest.mark.parametrize("repeated", [False, True])
async def test_once_a_removal_is_answered_no_api_takes_a_job_for_the_route(
    service: Service, impatient_api: httpx.AsyncClient, repeated: bool
) -> None:
    path, jobs = f"/route/{service.db}/{ROUTE}", service.jobs
    apis = (service.api, impatient_api)
    for api in apis:  # which have seen it a moment ago then
        await api.post(jobs, json=a_job(3600))

    removing = asyncio.create_task(service.api.delete(path, params={"force": "true"}))
    if repeated:
        await eventually(lambda: service.api.get(path), lambda found: not found.is_success)
        assert refused(await impatient_api.delete(path)) == NO_SUCH_ROUTE
    else:
        assert (await removing).status_code == 200

    for api in apis:
        assert refused(await api.post(jobs, json=a_job(3600))) == NO_SUCH_ROUTE
        change = {"trigger_time": now_ms(3600), "route": ROUTE}
        assert refused(await api.put(f"{jobs}/{new_id()}?create=true", json=change)) == NO_SUCH_ROUTE
        batch = await api.post(f"/batch/{service.db}/c", json=[a_job(3600)])
        assert [result["code"] for result in batch.json()["results"]] == ["E007"]
    await removing


async def test_jobs_of_a_route_ask_postgres_for_it_now_and_then(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    check = RouteStore.check

    async def counted(self: RouteStore, db: str, route_id: str) -> None:
        nonlocal looks
        looks += 1
        await check(self, db, route_id)

    monkeypatch.setattr(RouteStore, "check", counted)
    monkeypatch.setattr(known_routes, "LOOK_HOLDS", 60)
    for _ in range(5):
        assert (await service.api.post(service.jobs, json=a_job(3600))).status_code == 200

    assert looks == 1


@pytest.mark.parametrize("moved", [False, True], ids=["as created", "moved onto it"])
async def test_a_route_with_waiting_jobs_is_deleted_only_by_force(
    service: Service, receiver: Receiver, client: Client, moved: bool
) -> None:
    route = ROUTE
    job_id = await service.create(3600)
    if moved:
        route = "other"
        await service.add_route(receiver.url, route)
        await service.change(job_id, 3600, route=route)
    path = f"/route/{service.db}/{route}"

    # Temporal's visibility, which is asked for waiting jobs, lags behind; until then the route would be deleted.
    query = f"TimemachineRoute = '{service.db}/{route}'"
    while (await client.count_workflows(query)).count == 0:
        await asyncio.sleep(0.05)
    answer = await service.api.delete(path)

    assert refused(answer) == ROUTE_IN_USE
    assert answer.json()["error"].startswith("jobs that wait on this route: 1")
    assert (await service.api.delete(path, params={"force": "true"})).json() == {"status": "ok"}
    assert (await service.find(job_id))["state"] == "scheduled"


async def test_a_job_whose_route_was_deleted_is_delivered_once_it_is_there_again(
    service: Service, receiver: Receiver
) -> None:
    job_id = await service.create(2)
    await service.api.delete(f"/route/{service.db}/{ROUTE}", params={"force": "true"})
    job = await service.wait_for_state(job_id, "delivering")
    while "last_error" not in job:
        job = await service.find(job_id)
    assert job["last_error"] == f"no route {ROUTE} in {service.db}"

    await service.add_route(receiver.url)

    assert await receiver.wait_for(job_id)


async def test_a_missing_job_id_is_no_route(service: Service) -> None:
    assert refused(await service.api.get(f"/route/{service.db}/{new_id()}")) == NO_SUCH_ROUTE


async def test_a_route_is_not_in_use_by_the_jobs_of_one_with_a_similar_name(service: Service) -> None:
    for name in ("a_b", "A_B", "aXb"):
        await service.add_route("http://127.0.0.1:1/", name)
    await service.create(3600, route="a_b")
    async with asyncio.timeout(10):
        while (await service.api.delete(f"/route/{service.db}/a_b")).status_code == 200:
            await service.add_route("http://127.0.0.1:1/", "a_b")

    assert refused(await service.api.delete(f"/route/{service.db}/a_b")) == ROUTE_IN_USE
    assert (await service.api.delete(f"/route/{service.db}/A_B")).status_code == 200
    assert (await service.api.delete(f"/route/{service.db}/aXb")).status_code == 200

"""Every request and answer of the seed's document, and every code of docs/api.md that a client can bring about.

What is shown of a route begins with the seed's three fields, and goes on with others.
"""

import asyncio
from typing import Any

import httpx
import pytest

from tests.support.receiver import Receiver
from tests.support.service import ROUTE, Service, new_id, now_ms, refused

OK = b'{"status":"ok"}'
GAME_SERVER = {
    "id": "gameServer",
    "type": "REST",
    "webhook_url": "gameserver-dev-1.myorg.com/timer?action=endgame",
}
SEED_TIME = 1667659342626
MISSING = "nobody"


def a_job(trigger_time: int, **fields: Any) -> dict[str, Any]:
    """The seed's job; its own trigger time has long passed."""
    return {"id": "nxz123bnj", "trigger_time": trigger_time, "meta": {"any": "json"}, "route": "gameServer"} | fields


def the_seeds(answer: httpx.Response) -> dict[str, Any]:
    """Return what an answer has of the seed's fields of a route."""
    return {name: value for name, value in answer.json().items() if name in GAME_SERVER}


@pytest.fixture
async def seed(api: httpx.AsyncClient, worker: None, db: str) -> Service:
    """A db with the seed's route."""
    service = Service(api, db)
    assert (await api.post(f"/route/{db}", json=GAME_SERVER)).content == OK
    return service


async def test_the_jobs_endpoints(seed: Service) -> None:
    job, moved = a_job(now_ms(3600)), a_job(now_ms(7200), meta=[1])
    path = f"{seed.jobs}/nxz123bnj"

    assert (await seed.api.post(seed.jobs, json=job)).content == OK
    assert (await seed.api.get(path)).json() == job | {"state": "scheduled"}
    assert (await seed.api.put(path, json=moved)).content == OK
    assert (await seed.api.get(path)).json() == moved | {"state": "scheduled"}
    assert (await seed.api.delete(path)).content == OK
    assert (await seed.api.get(path)).json() == moved | {"state": "cancelled"}


async def test_a_job_is_answered_in_the_order_of_the_document(seed: Service) -> None:
    job = a_job(now_ms(3600))
    await seed.api.post(seed.jobs, json=job)

    answer = await seed.api.get(f"{seed.jobs}/nxz123bnj")

    shown = '{"id":"nxz123bnj","trigger_time":%d,"meta":{"any":"json"},"route":"gameServer","state":"scheduled"}'
    assert answer.text == shown % job["trigger_time"]
    assert answer.headers["content-type"] == "application/json"


async def test_the_routes_endpoints(seed: Service) -> None:
    path, moved = f"/route/{seed.db}/gameServer", GAME_SERVER | {"webhook_url": "https://example.org/hook"}

    shown = await seed.api.get(path)
    assert shown.content.startswith(
        b'{"id":"gameServer","type":"REST","webhook_url":"gameserver-dev-1.myorg.com/timer?action=endgame",'
    )
    assert shown.headers["content-type"] == "application/json"
    assert (await seed.api.put(path, json=moved)).content == OK
    assert the_seeds(await seed.api.get(path)) == moved
    assert (await seed.api.delete(path)).content == OK
    assert refused(await seed.api.get(path)) == (400, "E007")


async def test_names_of_one_db_or_collection_are_not_those_of_another(seed: Service, db: str) -> None:
    job = a_job(now_ms(3600))
    await seed.api.post(seed.jobs, json=job)

    assert refused(await seed.api.get(f"/job/{db}/other/nxz123bnj")) == (400, "E004")
    assert refused(await seed.api.get(f"/job/{db}-other/c/nxz123bnj")) == (400, "E004")
    assert refused(await seed.api.get(f"/route/{db}-other/gameServer")) == (400, "E007")
    assert (await seed.api.post(f"/job/{db}/other", json=job | {"meta": 2})).content == OK


async def test_e001_malformed(seed: Service) -> None:
    answer = await seed.api.post(seed.jobs, content=b"{")

    assert refused(answer) == (400, "E001")


async def test_e002_a_name_that_is_not_allowed(seed: Service) -> None:
    answer = await seed.api.post(seed.jobs, json=a_job(now_ms(60), id="a b"))

    assert refused(answer) == (400, "E002")
    assert answer.json()["error"].startswith("id: ")


async def test_e003_the_seeds_own_trigger_time_has_passed(seed: Service) -> None:
    assert refused(await seed.api.post(seed.jobs, json=a_job(SEED_TIME))) == (400, "E003")


async def test_e004_no_such_job(seed: Service) -> None:
    path = f"{seed.jobs}/{MISSING}"

    assert refused(await seed.api.get(path)) == (400, "E004")
    assert refused(await seed.api.delete(path)) == (400, "E004")
    assert refused(await seed.api.put(path, json=a_job(now_ms(60), id=MISSING))) == (400, "E004")


async def test_e005_another_job_has_the_id(seed: Service) -> None:
    job = a_job(now_ms(3600))
    await seed.api.post(seed.jobs, json=job)

    assert (await seed.api.post(seed.jobs, json=job)).content == OK
    assert refused(await seed.api.post(seed.jobs, json=job | {"meta": None})) == (400, "E005")


async def test_e006_too_late(service: Service, receiver: Receiver) -> None:
    job_id = await service.create(0)
    await service.wait_for_state(job_id, "delivered")

    assert refused(await service.change(job_id, 60)) == (400, "E006")
    assert refused(await service.cancel(job_id)) == (400, "E006")


async def test_e007_no_such_route(seed: Service) -> None:
    path = f"/route/{seed.db}/{MISSING}"
    change = {"type": "REST", "webhook_url": "example.org"}

    assert refused(await seed.api.post(seed.jobs, json=a_job(now_ms(60), route=MISSING))) == (400, "E007")
    assert refused(await seed.api.get(path)) == (400, "E007")
    assert refused(await seed.api.put(path, json=change)) == (400, "E007")
    assert refused(await seed.api.delete(path)) == (400, "E007")
    assert refused(await seed.api.get(path)) == (400, "E007"), "PUT creates nothing"


async def test_e008_another_route_has_the_id(seed: Service) -> None:
    other = GAME_SERVER | {"webhook_url": "example.org"}

    assert (await seed.api.post(f"/route/{seed.db}", json=GAME_SERVER)).content == OK
    assert refused(await seed.api.post(f"/route/{seed.db}", json=other)) == (400, "E008")
    assert the_seeds(await seed.api.get(f"/route/{seed.db}/gameServer")) == GAME_SERVER


async def test_e009_a_route_that_jobs_wait_on(service: Service) -> None:
    path = f"/route/{service.db}/{ROUTE}"
    kept = the_seeds(await service.api.get(path))
    await service.create(3600)

    async with asyncio.timeout(20):  # Temporal's visibility lags behind
        while (answer := await service.api.delete(path)).status_code == 200:
            await service.api.post(f"/route/{service.db}", json=kept)

    assert refused(answer) == (400, "E009")
    assert the_seeds(await service.api.get(path)) == kept
    assert (await service.api.delete(path, params={"force": "true"})).content == OK


async def test_e010_a_webhook_url_that_is_not_allowed(seed: Service) -> None:
    route = {"id": new_id(), "type": "REST", "webhook_url": "ftp://example.org"}

    assert refused(await seed.api.post(f"/route/{seed.db}", json=route)) == (400, "E010")
    assert refused(await seed.api.put(f"/route/{seed.db}/gameServer", json=route | {"id": "gameServer"})) == (
        400,
        "E010",
    )


async def test_e011_too_large(seed: Service) -> None:
    meta = "x" * 257 * 1024

    assert refused(await seed.api.post(seed.jobs, json=a_job(now_ms(60), meta=meta))) == (413, "E011")


async def test_e017_wrong_path_method_or_content_type(seed: Service) -> None:
    assert refused(await seed.api.get("/jobs")) == (404, "E017")
    assert refused(await seed.api.patch(f"{seed.jobs}/nxz123bnj")) == (405, "E017")
    assert refused(await seed.api.post(seed.jobs, content=b"<a/>", headers={"content-type": "text/xml"})) == (
        415,
        "E017",
    )

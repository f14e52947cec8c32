"""Routes that are paused, and the jobs that they hold."""

from typing import Any

import httpx
from temporalio.client import Client

from tests.support.service import ROUTE, Service
from tests.support.waiting import eventually


async def pause(service: Service, reason: str = "maintenance") -> None:
    answer = await service.api.post(f"/route/{service.db}/{ROUTE}/pause", json={"reason": reason})
    assert answer.json() == {"status": "ok"}, answer.text


async def resume(service: Service, spread: float = 0) -> httpx.Response:
    answer = await service.api.post(f"/route/{service.db}/{ROUTE}/resume", json={"spread": spread})
    assert answer.json() == {"status": "ok"}, answer.text
    return answer


async def wait_until_held(service: Service, job_id: str) -> Any:
    return await eventually(lambda: service.find(job_id), lambda job: "held" in job)


async def wait_until_listed(client: Client, service: Service, count: int) -> None:
    """Wait for Temporal's visibility, which lags behind, to know the held jobs."""
    query = f"TimemachineRoute = '{service.db}/{ROUTE}' AND TimemachineHeld = true"
    await eventually(lambda: client.count_workflows(query), lambda found: found.count >= count)


async def held_count(client: Client, service: Service) -> int:
    query = f"ExecutionStatus = 'Running' AND TimemachineRoute = '{service.db}/{ROUTE}' AND TimemachineHeld = true"
    return (await client.count_workflows(query)).count


async def hold(service: Service, client: Client, count: int, **fields: Any) -> list[str]:
    """Pause the route and return jobs that it holds."""
    assert (await service.api.post(f"/route/{service.db}/{ROUTE}/pause")).status_code == 200
    ids = [await service.create(0, **fields) for _ in range(count)]
    await eventually(lambda: held_count(client, service), lambda held: held >= count)
    return ids

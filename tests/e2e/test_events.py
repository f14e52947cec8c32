"""`kill -9` while something happens that events tell of: each is there once, and none is missing."""

import asyncio
from collections import Counter
from typing import Any

import httpx
import pytest

from devstack.stack import Stack
from tests.support.events import OPS, ask_for_events, event_jobs, events_of, wait_for_events
from tests.support.kills import kill
from tests.support.many_jobs import create_many
from tests.support.receiver import Received, Receiver, response
from tests.support.service import Service, a_job, repeated
from tests.support.waiting import eventually

ONCE = {"maximum_attempts": 1}
JOBS = 40


async def check_each_is_told_once(service: Service, receiver: Receiver, told: list[str], *, limit: float = 180) -> None:
    """Check that there is one event for each of some names, and one job for each event."""
    events = await wait_for_events(receiver, len(told), limit=limit)
    assert Counter(map(_name, events)) == Counter(told)
    jobs = await eventually(lambda: event_jobs(service), lambda jobs: len(jobs) >= len(told))
    assert len(jobs) == len(told)


def _name(event: Any) -> str:
    return f"{event['type']} {event['data'].get('id') or event['data']['route']}"


def failing(receiver: Receiver, status: int = 500) -> None:
    async def answer(received: Received) -> bytes:
        return response(200 if received.path.endswith(f"/{OPS}") else status)

    receiver.answer = answer


@pytest.mark.timeout(400)
@pytest.mark.parametrize("names", [["worker"], ["worker", "api", "temporal", "postgres"]], ids="+".join)
async def test_kill_while_jobs_fail(stack: Stack, service: Service, receiver: Receiver, names: list[str]) -> None:
    """Again and again, so that some die between the end of a job and the start of its event's."""
    failing(receiver)
    await ask_for_events(service, receiver, "job.failed")
    job_ids = await create_many(service, JOBS, due_in=6, retry=ONCE)

    for turn in range(1, 4):
        await receiver.wait_until(lambda turn=turn: len(receiver.received) >= turn * JOBS // 4, limit=120)  # type: ignore[misc]
        kill(*(stack.parts[name] for name in names))
        for name in reversed(names):
            await stack.parts[name].restart()

    await check_each_is_told_once(service, receiver, [f"job.failed {job_id}" for job_id in job_ids])


@pytest.mark.timeout(400)
async def test_kill_of_the_worker_while_receivers_are_gone(stack: Stack, service: Service, receiver: Receiver) -> None:
    """Each job has a route of its own, which its 410 disables."""
    failing(receiver, 410)
    await ask_for_events(service, receiver, "job.failed", "route.disabled")
    routes = [f"r{number}" for number in range(20)]
    for route in routes:
        await service.add_route(receiver.url, route)
    job_ids = [await service.create(5, route=route) for route in routes]

    for turn in (1, 2):
        await receiver.wait_until(lambda turn=turn: len(receiver.received) >= turn * 6, limit=120)  # type: ignore[misc]
        kill(stack.parts["worker"])
        await stack.parts["worker"].restart()

    told = [f"job.failed {job_id}" for job_id in job_ids] + [f"route.disabled {route}" for route in routes]
    await check_each_is_told_once(service, receiver, told)


@pytest.mark.timeout(400)
async def test_kill_of_the_api_while_routes_are_resumed(stack: Stack, service: Service, receiver: Receiver) -> None:
    """Whoever got no answer repeats the resume."""
    failing(receiver, 410)
    await ask_for_events(service, receiver, "route.disabled", "route.recovered")
    routes = [f"r{number}" for number in range(20)]
    for route in routes:
        await service.add_route(receiver.url, route)
        assert (await service.api.post(service.jobs, json=a_job(0, route=route))).status_code == 200
    await wait_for_events(receiver, len(routes), limit=90)

    resumes = [asyncio.create_task(_resume(service, route)) for route in routes]
    await asyncio.wait(resumes, return_when=asyncio.FIRST_COMPLETED)
    kill(stack.parts["api"])
    answers = await asyncio.gather(*resumes, return_exceptions=True)
    await stack.parts["api"].restart()
    for route, answer in zip(routes, answers, strict=True):
        if isinstance(answer, httpx.HTTPError) or answer.status_code != 200:  # type: ignore[union-attr]
            again = await repeated(lambda route=route: _resume(service, route))  # type: ignore[misc]
            assert again.status_code == 200

    told = [f"{kind} {route}" for kind in ("route.disabled", "route.recovered") for route in routes]
    await check_each_is_told_once(service, receiver, told)
    assert {event["data"]["by"] for event in events_of(receiver) if event["type"] == "route.recovered"} == {"resume"}


async def _resume(service: Service, route: str) -> httpx.Response:
    return await service.api.post(f"/route/{service.db}/{route}/resume", json={"spread": 0})

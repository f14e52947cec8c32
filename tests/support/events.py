"""Events as their receiver gets them."""

import json
from typing import Any

from tests.support.receiver import Received, Receiver
from tests.support.service import Service
from tests.support.waiting import LIMIT
from timemachine.domain.stored_names import EVENTS_COLLECTION

ALL = ["job.failed", "job.delivered", "route.disabled", "route.recovered"]
OPS = "ops"
"""The route of events, at a path of its own."""


async def ask_for_events(service: Service, receiver: Receiver, *kinds: str, **fields: Any) -> None:
    """Have the events of a service's db sent to the receiver."""
    await service.add_route(f"{receiver.url}/{OPS}", OPS, **fields)
    await set_events(service, *kinds)


async def set_events(service: Service, *kinds: str, route: str = OPS) -> None:
    answer = await service.api.put(f"/events/{service.db}", json={"route": route, "on": kinds or ALL})
    assert answer.json() == {"status": "ok"}, answer.text


def event_requests(receiver: Receiver) -> list[Received]:
    return [
        received for received in receiver.received if received.headers["timemachine-collection"] == EVENTS_COLLECTION
    ]


def events_of(receiver: Receiver) -> list[Any]:
    """Return the bodies of the events that came, each once, in the order in which they came."""
    bodies = {received.headers["webhook-id"]: json.loads(received.body) for received in event_requests(receiver)}
    return [*bodies.values()]


async def wait_for_events(receiver: Receiver, count: int, *, limit: float = LIMIT) -> list[Any]:
    """Return the events once there are as many."""
    await receiver.wait_until(lambda: len(events_of(receiver)) >= count, limit=limit)
    return events_of(receiver)


async def event_jobs(service: Service) -> list[Any]:
    """Return the jobs that send events, as they are listed."""
    found: list[Any] = []
    cursor: dict[str, Any] = {}
    while True:
        page = (await service.api.get(f"/job/{service.db}/{EVENTS_COLLECTION}", params={"limit": 200} | cursor)).json()
        found += page["jobs"]
        if "next" not in page:
            return found
        cursor = {"cursor": page["next"]}

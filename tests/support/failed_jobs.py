"""Jobs that failed for good."""

from typing import Any

from tests.support.receiver import Received, response
from tests.support.service import Service

ONCE = {"maximum_attempts": 1}


async def refuse(_: Received) -> bytes:
    return response(500, b"out of order")


async def fail(service: Service, **fields: Any) -> str:
    """Create a job and return its id once it has failed."""
    job_id = await service.create(0, **{"retry": ONCE} | fields)
    await service.wait_for_state(job_id, "failed")
    return job_id

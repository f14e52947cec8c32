"""The straightforward activity: look the route up, POST, and let Temporal retry."""

from dataclasses import dataclass

import asyncpg
import httpx
from temporalio import activity


@dataclass
class Job:
    """One call to be made."""

    db: str
    id: str
    trigger_time: int
    route: str
    meta: dict[str, str]


class Webhooks:
    """Calls webhooks with what the worker shares among its activities."""

    def __init__(self, pool: asyncpg.Pool, http: httpx.AsyncClient) -> None:
        """Use the given pool and client."""
        self._pool = pool
        self._http = http

    @activity.defn
    async def call_webhook(self, job: Job) -> int:
        """POST the job's meta to its route, and return the status."""
        url = await self._pool.fetchval(
            "SELECT route->>'webhook_url' FROM routes WHERE db = $1 AND id = $2", job.db, job.route
        )
        headers = {"timemachine-job-id": job.id, "timemachine-trigger-time": str(job.trigger_time)}
        answer = await self._http.post(url, json=job.meta, headers=headers)
        answer.raise_for_status()
        return answer.status_code

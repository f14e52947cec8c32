"""The service as a client of its API sees it, with the words that tests need."""

import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from standardwebhooks import Webhook, WebhookVerificationError

from tests.support.leaks import PAYLOAD
from tests.support.receiver import Received, Receiver
from tests.support.waiting import LIMIT, eventually

ROUTE = "hook"


def now_ms(plus: float = 0) -> int:
    """Return the time in milliseconds since the epoch, `plus` seconds from now."""
    return int((time.time() + plus) * 1000)


def new_id() -> str:
    return uuid.uuid4().hex


def a_job(due_in: float, **fields: Any) -> dict[str, Any]:
    """Return the body of a create for a job due in some seconds."""
    return {"id": new_id(), "trigger_time": now_ms(due_in), "route": ROUTE} | fields


def is_signed(received: Received, secret: str) -> bool:
    """Return whether a receiver that knows this secret takes the request for ours."""
    try:
        Webhook(secret).verify(received.body, received.headers, json_parse=False)
    except WebhookVerificationError:
        return False
    return True


async def repeated(ask: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
    """Return the answer to what is safe to repeat, and on a machine with too much to do has to be: 503 is none."""
    answer = await ask()
    for _ in range(5):
        if answer.status_code != 503:
            break
        answer = await ask()
    return answer


class Service:
    """One db of a running service."""

    def __init__(self, api: httpx.AsyncClient, db: str) -> None:
        self.api = api
        self.db = db
        self.jobs = f"/job/{db}/c"
        self.secrets: set[str] = set()
        """All that its routes were ever given, as far as it was this object that had them made."""

    async def add_route(self, url: str, route: str = ROUTE, **fields: Any) -> None:
        body = {"id": route, "type": "REST", "webhook_url": url} | fields
        answer = await repeated(lambda: self.api.post(f"/route/{self.db}", json=body))
        assert answer.json() == {"status": "ok"}, answer.text
        await self.secret(route)

    async def secret(self, route: str = ROUTE) -> Any:
        """Return the secret of a route, and those of before."""
        return self._noted(await repeated(lambda: self.api.get(f"/route/{self.db}/{route}/secret")))

    async def rotate(self, route: str = ROUTE, **body: Any) -> Any:
        """Give a route a new secret, and return what signs now."""
        return self._noted(await self.api.post(f"/route/{self.db}/{route}/secret/rotate", json=body))

    def _noted(self, answer: httpx.Response) -> Any:
        assert answer.status_code == 200, answer.text
        self.secrets.add(answer.json()["secret"])
        return answer.json()

    def verify_all(self, receiver: Receiver) -> None:
        """Demand that everything that came from this db is signed."""
        for received in receiver.received:
            if received.headers["timemachine-db"] == self.db:
                assert any(is_signed(received, secret) for secret in self.secrets), received

    async def create(self, due_in: float, *, job_id: str | None = None, **fields: Any) -> str:
        """Create a job due in some seconds and return its id."""
        job = a_job(due_in, **{"meta": {"payload": PAYLOAD}} | fields) | ({"id": job_id} if job_id else {})
        answer = await repeated(lambda: self.api.post(self.jobs, json=job))
        assert answer.json() == {"status": "ok"}, answer.text
        return str(job["id"])

    async def find(self, job_id: str) -> Any:
        answer = await repeated(lambda: self.api.get(f"{self.jobs}/{job_id}"))
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def change(self, job_id: str, due_in: float, **fields: Any) -> httpx.Response:
        job = {"trigger_time": now_ms(due_in), "route": ROUTE} | fields
        return await self.api.put(f"{self.jobs}/{job_id}", json=job)

    async def put(self, job_id: str, job: dict[str, Any]) -> httpx.Response:
        """Create a job, or change the one that waits."""
        return await self.api.put(f"{self.jobs}/{job_id}", params={"create": "true"}, json=job)

    async def trigger(self, job_id: str) -> httpx.Response:
        return await self.api.post(f"{self.jobs}/{job_id}/trigger")

    async def cancel(self, job_id: str) -> httpx.Response:
        return await self.api.delete(f"{self.jobs}/{job_id}")

    async def wait_for_state(self, job_id: str, state: str, *, limit: float = LIMIT) -> Any:
        """Return the job once it is in a state."""
        return await eventually(lambda: self.find(job_id), lambda job: job["state"] == state, limit=limit)

    async def wait_for_end(self, job_id: str, *, limit: float = LIMIT) -> Any:
        """Return the job once it has ended, in whatever way."""
        ended = ("delivered", "failed", "cancelled")
        return await eventually(lambda: self.find(job_id), lambda job: job["state"] in ended, limit=limit)


def refused(answer: httpx.Response) -> tuple[int, str]:
    """Return status and code of a refusal, whose body must be exactly `{error, code}`."""
    body = answer.json()
    assert set(body) == {"error", "code"}
    assert body["error"]
    return answer.status_code, body["code"]

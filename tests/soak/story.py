"""What clients asked for a job and what they were told: the one half of what its promises are checked against."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec

ENDED = frozenset({"delivered", "failed", "cancelled"})

NO_SUCH_JOB = "E004"
TOO_LATE = "E006"

AT_A_TIME = 16
"""Jobs that are asked after at a time while they end."""


def now_ms(plus: float = 0) -> int:
    """Return the time in milliseconds since the epoch, `plus` seconds from now."""
    return int((time.time() + plus) * 1000)


BATCH = 1000
"""Jobs that are created by one request."""

TEXT_KEPT = 200
"""Characters of an answer that are kept for people."""


class Call(msgspec.Struct, kw_only=True):
    """One request to the API and its answer."""

    method: str
    api: int
    sent_ms: int
    version: int | None = None
    trigger_time: int | None = None
    done_ms: int = 0
    status: int | None = None
    """None where no answer came: the API died, or the request took too long."""
    code: str | None = None
    state: str | None = None
    """Of the job, as a GET told it."""
    text: str = ""
    excused: bool = False
    """No answer came, because its API was killed or frozen meanwhile."""

    @property
    def took(self) -> bool:
        return self.status == 200

    @property
    def refused(self) -> bool:
        """Whether the answer says that the request has no effect."""
        return self.status is not None and 400 <= self.status < 500

    @property
    def in_doubt(self) -> bool:
        """Whether the request may have taken effect, or may yet."""
        return not self.took and not self.refused


class Story(msgspec.Struct, kw_only=True):
    """One job, from its create to its end."""

    db: str
    id: str
    route: str
    calls: list[Call] = []
    end: dict[str, Any] | None = None
    """What GET said last: the job, or a refusal."""

    @property
    def job(self) -> str:
        """`db/collection/id`, as the receiver sees it."""
        return f"{self.db}/c/{self.id}"

    @property
    def state(self) -> str | None:
        """In the end; None where there is no such job."""
        return self.end.get("state") if self.end else None

    def of(self, method: str) -> list[Call]:
        return [call for call in self.calls if call.method == method]

    def last(self, method: str) -> Call | None:
        return next(iter(self.of(method)[::-1]), None)

    @property
    def versions(self) -> dict[int, Call]:
        """The call that wrote each version; where it was repeated, the one that was taken, or else the last."""
        found: dict[int, Call] = {}
        for call in self.calls:
            if call.version is not None and not (call.version in found and found[call.version].took):
                found[call.version] = call
        return found


class Listing(msgspec.Struct, kw_only=True):
    """One page of a list of jobs."""

    call: Call
    jobs: list[dict[str, Any]] = []
    next: str | None = None


class Callers:
    """Clients of all APIs, which note what they ask and hear."""

    def __init__(self, clients: Sequence[httpx.AsyncClient]) -> None:
        self.clients = clients

    async def add_route(self, db: str, route: str, url: str, **fields: Any) -> None:
        body = {"id": route, "type": "REST", "webhook_url": url} | fields
        answer = await self.clients[0].post(f"/route/{db}", json=body)
        answer.raise_for_status()

    async def create(self, story: Story, trigger_time: int, *, api: int = 0, pad: str = "") -> Call:
        call = Call(method="POST", api=api, sent_ms=now_ms(), version=0, trigger_time=trigger_time)
        return await self._send(story, call, f"/job/{story.db}/c", {"id": story.id} | _body(story, call, pad))

    async def create_many(self, stories: Sequence[Story], trigger_times: Sequence[int], *, label: str) -> None:
        """Create jobs with a label, batch by batch, each of which is repeated until all of its jobs are there."""
        for begin in range(0, len(stories), BATCH):
            jobs = list(zip(stories, trigger_times, strict=True))[begin : begin + BATCH]
            until = time.monotonic() + 60
            while not await self._create_batch(jobs, label):
                assert time.monotonic() < until, "a batch was not created"

    async def _create_batch(self, jobs: Sequence[tuple[Story, int]], label: str) -> bool:
        calls = [Call(method="POST", api=0, sent_ms=now_ms(), version=0, trigger_time=time) for _, time in jobs]
        body = [
            {"id": story.id, "labels": [label]} | _body(story, call, "")
            for (story, _), call in zip(jobs, calls, strict=True)
        ]
        answer = await self.clients[0].post(f"/batch/{jobs[0][0].db}/c", json=body)
        put_off = answer.status_code in (429, 503)
        results = [{}] * len(jobs) if put_off else answer.raise_for_status().json()["results"]
        for (story, _), call, result in zip(jobs, calls, results, strict=True):
            call.done_ms, call.text = now_ms(), str(result)
            call.status = 200 if result.get("status") in ("created", "unchanged") else 503
            story.calls.append(call)
        return all(call.took for call in calls)

    def note_cancel(self, story: Story, answer: httpx.Response) -> None:
        """Note that a cancel of many was begun which means this job, too."""
        story.calls.append(Call(method="DELETE", api=0, sent_ms=now_ms(), done_ms=now_ms(), status=answer.status_code))

    async def change(self, story: Story, version: int, trigger_time: int, *, api: int = 0, pad: str = "") -> Call:
        call = Call(method="PUT", api=api, sent_ms=now_ms(), version=version, trigger_time=trigger_time)
        return await self._send(story, call, f"/job/{story.job}", _body(story, call, pad))

    async def cancel(self, story: Story, *, api: int = 0) -> Call:
        call = Call(method="DELETE", api=api, sent_ms=now_ms())
        return await self._send(story, call, f"/job/{story.job}", None)

    async def trigger(self, story: Story, *, api: int = 0) -> Call:
        """Have a job go out now."""
        call = Call(method="TRIGGER", api=api, sent_ms=now_ms())
        return await self._send(story, call, f"/job/{story.job}/trigger", None, verb="POST")

    async def look(self, story: Story, *, api: int = 0) -> Call:
        return await self._send(story, Call(method="GET", api=api, sent_ms=now_ms()), f"/job/{story.job}", None)

    async def list_attempts(self, story: Story, *, api: int = 0) -> Call:
        call = Call(method="LIST", api=api, sent_ms=now_ms())
        return await self._send(story, call, f"/job/{story.job}/attempts", None, verb="GET")

    async def list_jobs(self, db: str, *, api: int = 0, cursor: str | None = None) -> Listing:
        """Ask for a page of a db's jobs."""
        listing = Listing(call=Call(method="LIST", api=api, sent_ms=now_ms()))
        params = {"limit": "50"} | ({"cursor": cursor} if cursor else {})
        if answer := await self._request(listing.call, "GET", f"/job/{db}", params=params):
            page = answer.json() if listing.call.took else {}
            listing.jobs, listing.next = page.get("jobs", []), page.get("next")
        return listing

    async def list_all(self, db: str, *, api: int) -> list[dict[str, Any]]:
        """Return a db's jobs, as all pages of a list show them, up to one that is not answered."""
        listing = await self.list_jobs(db, api=api)
        jobs = listing.jobs
        while listing.next:
            listing = await self.list_jobs(db, api=api, cursor=listing.next)
            jobs = jobs + listing.jobs
        return jobs

    async def persist(self, send: Callable[[], Awaitable[Call]], *, limit: float = 60) -> Call:
        """Send a request that may be repeated, until it is neither put off nor in doubt, or the time is over."""
        until = time.monotonic() + limit
        while True:
            call = await send()
            if call.status in (200, 400, 500) or time.monotonic() > until:
                return call
            await asyncio.sleep(0.3)

    async def settle(self, stories: Iterable[Story], *, limit: float = 120) -> None:
        """Ask for each job until it has ended, and note what was said last. Whatever comes later is not waited for."""
        turns = asyncio.Semaphore(AT_A_TIME)
        async with asyncio.TaskGroup() as tasks:
            for story in stories:
                tasks.create_task(self._settle(story, turns, time.monotonic() + limit))

    async def _settle(self, story: Story, turns: asyncio.Semaphore, until: float) -> None:
        wait = 0.25
        while True:
            async with turns:
                call = await self.look(story, api=len(story.calls) % len(self.clients))
            if story.state in ENDED or call.code == NO_SUCH_JOB or time.monotonic() > until:
                return
            await asyncio.sleep(wait)
            wait = min(2 * wait, 5.0)

    async def _send(self, story: Story, call: Call, path: str, body: object, *, verb: str | None = None) -> Call:
        story.calls.append(call)
        answer = await self._request(call, verb or call.method, path, json=body)
        if answer and call.method == "GET" and call.status in (200, 400):
            story.end = answer.json()
            call.state = story.state
        return call

    async def _request(self, call: Call, verb: str, path: str, **more: Any) -> httpx.Response | None:
        """Send a request, note what was answered, and return that, or None where nothing was."""
        answer = None
        try:
            answer = await self.clients[call.api].request(verb, path, **more)
            call.status, call.text = answer.status_code, answer.text[:TEXT_KEPT]
            call.code = None if call.took else _code(answer)
        except httpx.HTTPError as error:
            call.text = repr(error)
        call.done_ms = now_ms()
        return answer


def _body(story: Story, call: Call, pad: str) -> dict[str, Any]:
    return {"trigger_time": call.trigger_time, "route": story.route, "meta": {"v": call.version, "pad": pad}}


def _code(answer: httpx.Response) -> str | None:
    try:
        code = answer.json()["code"]
    except (ValueError, LookupError, TypeError):
        return None
    return str(code)


@asynccontextmanager
async def calling(urls: Sequence[str]) -> AsyncIterator[Callers]:
    """Open clients of the APIs. A request that is not answered within 30 s counts as one that has no answer."""
    # An idle connection is given up before the API closes it, which would cut a request that comes in that moment.
    limits = httpx.Limits(max_connections=200, max_keepalive_connections=50, keepalive_expiry=2)
    clients = [httpx.AsyncClient(base_url=url, timeout=30, limits=limits) for url in urls]
    try:
        yield Callers(clients)
    finally:
        for client in clients:
            await client.aclose()

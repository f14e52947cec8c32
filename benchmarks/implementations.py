"""What is compared: ways of having a job done, each with one method that creates it."""

import time
import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import ClassVar, Protocol

import msgspec
from msgspec import UNSET, UnsetType
from temporalio.client import ActivityExecution, Client, WorkflowExecution
from temporalio.common import ActivityIDReusePolicy, WorkflowIDReusePolicy

from benchmarks import results
from benchmarks.http_load import HttpLoad
from benchmarks.peers.__main__ import TASK_QUEUE as PEERS
from benchmarks.peers.workflow import EmptyWorkflow
from benchmarks.straightforward.__main__ import TASK_QUEUE
from benchmarks.straightforward.activity import Job, Webhooks
from benchmarks.straightforward.workflow import StraightforwardWorkflow
from timemachine.domain import jobs
from timemachine.temporal.job_runs import start_job

DB, COLLECTION, ROUTE = "bench", "c", "hook"
META = {"order": "4711", "reason": "payment timed out", "amount": "12.50", "currency": "EUR"}

_NOBODY = "nobody"
"""Task queue that no worker serves."""


class Implementation(Protocol):
    """A way of having jobs done."""

    name: ClassVar[str]
    parts: ClassVar[Mapping[str, str]]
    """The stack's parts that work for it, by what results call them."""
    calls: ClassVar[bool]
    """Whether its jobs call the receiver."""
    has_history: ClassVar[bool]
    """Whether its jobs are workflows."""

    async def create(self, job_id: str, trigger_time: int) -> int:
        """Create a job due at a time, in milliseconds since the epoch; return HTTP's status."""

    def workflow_id(self, job_id: str) -> str:
        """Return the id of a job's workflow, which is the longer the longer the job's id is."""

    async def count_closed(self, prefix: str) -> int:
        """Return how many of the jobs whose ids begin so are closed in Temporal."""

    async def last_close(self, prefix: str) -> datetime:
        """Return when the last of these was closed."""


class Workflows:
    """A way whose jobs are workflows."""

    calls: ClassVar[bool] = True
    has_history: ClassVar[bool] = True

    def __init__(self, client: Client) -> None:
        """Use a client of Temporal's."""
        self._client = client

    def workflow_id(self, job_id: str) -> str:
        """Return the id of a job's workflow."""
        raise NotImplementedError

    async def count_closed(self, prefix: str) -> int:
        """Return how many of the jobs whose ids begin so are closed."""
        return (await self._client.count_workflows(self._closed(prefix))).count

    async def last_close(self, prefix: str) -> datetime:
        """Return when the last of these was closed.

        Raises:
            RuntimeError: It has no time of it.
        """
        # Temporal lists what was closed last first.
        last = await anext(self._client.list_workflows(self._closed(prefix), page_size=1))
        return _close_time(last)

    def _closed(self, prefix: str) -> str:
        return f"WorkflowId STARTS_WITH '{self.workflow_id(prefix)}' AND ExecutionStatus = 'Completed'"


def _close_time(closed: WorkflowExecution | ActivityExecution) -> datetime:
    if closed.close_time is None:
        raise RuntimeError("a job is completed and has no time of it")
    return closed.close_time


def new_id() -> str:
    """Return an id that no job has."""
    return uuid.uuid4().hex


class JobBody(msgspec.Struct, frozen=True, kw_only=True):
    """A job as clients send it to our API."""

    id: str
    trigger_time: int
    route: str = ROUTE
    meta: dict[str, str] = msgspec.field(default_factory=META.copy)
    labels: tuple[str, ...] | UnsetType = UNSET


class Raw(Workflows):
    """`start_workflow` and nothing else; nobody runs what is started."""

    name: ClassVar[str] = results.RAW
    parts: ClassVar[Mapping[str, str]] = {"temporal": "temporal", "postgres": "postgres"}

    async def create(self, job_id: str, trigger_time: int) -> int:
        """Start a workflow with a delay until the time."""
        await self._client.start_workflow(
            "Raw",
            Job(DB, job_id, trigger_time, ROUTE, META),
            id=self.workflow_id(job_id),
            task_queue=_NOBODY,
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            start_delay=_delay(trigger_time),
        )
        return HTTPStatus.OK

    def workflow_id(self, job_id: str) -> str:
        """Return the id of a job's workflow."""
        return f"raw/{job_id}"


class SameRaw(Workflows):
    """`start_workflow` with all that our API passes to it: what its own part costs is the rest."""

    name: ClassVar[str] = results.SAME_RAW
    parts: ClassVar[Mapping[str, str]] = {"temporal": "temporal", "postgres": "postgres"}

    async def create(self, job_id: str, trigger_time: int) -> int:
        """Start a workflow as our API does."""
        meta = msgspec.Raw(msgspec.json.encode(META))
        job = jobs.Job(db=DB, collection="raw", id=job_id, trigger_time=trigger_time, route=ROUTE, meta=meta)
        await start_job(self._client, job, task_queue=_NOBODY, reuse=WorkflowIDReusePolicy.REJECT_DUPLICATE)
        return HTTPStatus.OK

    def workflow_id(self, job_id: str) -> str:
        """Return the id of a job's workflow."""
        return jobs.workflow_id(DB, "raw", job_id)


class Straightforward(Workflows):
    """The straightforward implementation, started without any API before it."""

    name: ClassVar[str] = results.STRAIGHTFORWARD
    parts: ClassVar[Mapping[str, str]] = {"worker": "straightforward", "temporal": "temporal", "postgres": "postgres"}

    async def create(self, job_id: str, trigger_time: int) -> int:
        """Start the workflow that sleeps."""
        await self._client.start_workflow(
            StraightforwardWorkflow.run,
            Job(DB, job_id, trigger_time, ROUTE, META),
            id=self.workflow_id(job_id),
            task_queue=TASK_QUEUE,
        )
        return HTTPStatus.OK

    def workflow_id(self, job_id: str) -> str:
        """Return the id of a job's workflow."""
        return f"straightforward/{job_id}"


class Empty(Workflows):
    """An empty workflow with a start delay: what a workflow for each job costs at least."""

    name: ClassVar[str] = results.EMPTY
    parts: ClassVar[Mapping[str, str]] = {"worker": "peers", "temporal": "temporal", "postgres": "postgres"}
    calls: ClassVar[bool] = False

    async def create(self, job_id: str, trigger_time: int) -> int:
        """Start the workflow with a delay until the time."""
        await self._client.start_workflow(
            EmptyWorkflow.run,
            job_id,
            id=self.workflow_id(job_id),
            task_queue=PEERS,
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            start_delay=_delay(trigger_time),
        )
        return HTTPStatus.OK

    def workflow_id(self, job_id: str) -> str:
        """Return the id of a job's workflow."""
        return f"empty/{job_id}"


class Standalone:
    """Temporal's standalone activity with a start delay, which POSTs. It has no history, and cannot be changed."""

    name: ClassVar[str] = results.STANDALONE
    parts: ClassVar[Mapping[str, str]] = {"worker": "peers", "temporal": "temporal", "postgres": "postgres"}
    calls: ClassVar[bool] = True
    has_history: ClassVar[bool] = False

    def __init__(self, client: Client) -> None:
        """Use a client of Temporal's."""
        self._client = client

    async def create(self, job_id: str, trigger_time: int) -> int:
        """Start the activity with a delay until the time."""
        await self._client.start_activity(
            Webhooks.call_webhook,
            args=[Job(DB, job_id, trigger_time, ROUTE, META)],
            id=self.workflow_id(job_id),
            task_queue=PEERS,
            start_to_close_timeout=timedelta(seconds=60),
            id_reuse_policy=ActivityIDReusePolicy.REJECT_DUPLICATE,
            start_delay=_delay(trigger_time),
        )
        return HTTPStatus.OK

    def workflow_id(self, job_id: str) -> str:
        """Return the id of a job's activity."""
        return f"standalone/{job_id}"

    async def count_closed(self, prefix: str) -> int:
        """Return how many of the jobs whose ids begin so are closed."""
        return (await self._client.count_activities(self._closed(prefix))).count

    async def last_close(self, prefix: str) -> datetime:
        """Return when the last of these was closed.

        Raises:
            RuntimeError: It has no time of it.
        """
        return _close_time(await anext(self._client.list_activities(self._closed(prefix), page_size=1)))

    def _closed(self, prefix: str) -> str:
        return f"ActivityId STARTS_WITH '{self.workflow_id(prefix)}' AND ExecutionStatus = 'Completed'"


def _delay(trigger_time: int) -> timedelta:
    return timedelta(milliseconds=trigger_time - time.time() * 1000)


class Ours(Workflows):
    """This project, through its HTTP API."""

    name: ClassVar[str] = results.OURS
    parts: ClassVar[Mapping[str, str]] = {
        "api": "api",
        "worker": "worker",
        "temporal": "temporal",
        "postgres": "postgres",
    }

    def __init__(self, client: Client, http: HttpLoad, *, route: str = ROUTE) -> None:
        """Use kept connections to the API; what has become of jobs is asked of Temporal.

        Args:
            route: The route of its jobs.
        """
        super().__init__(client)
        self._http, self._route = http, route

    async def create(self, job_id: str, trigger_time: int) -> int:
        """POST the job."""
        body = JobBody(id=job_id, trigger_time=trigger_time, route=self._route)
        return await self._send("POST", f"/job/{DB}/{COLLECTION}", body)

    async def create_batch(self, batch: Iterable[JobBody], *, collection: str = COLLECTION) -> int:
        """POST jobs as the lines of one batch, and return how many are there by it or were there before."""
        lines = b"".join(msgspec.json.encode(one) + b"\n" for one in batch)
        answer = await self._http.send_once(f"/batch/{DB}/{collection}", lines, content_type="application/x-ndjson")
        return answer.count(b'"status":"created"') + answer.count(b'"status":"unchanged"')

    async def read(self, job_id: str) -> int:
        """GET the job."""
        return await self._send("GET", f"/job/{DB}/{COLLECTION}/{job_id}")

    async def change(self, job_id: str, trigger_time: int) -> int:
        """PUT the job."""
        body = JobBody(id=job_id, trigger_time=trigger_time, route=self._route)
        return await self._send("PUT", f"/job/{DB}/{COLLECTION}/{job_id}", body)

    async def first_page(self, label: str | None = None) -> int:
        """GET the first page of the list of all jobs, or of those with a label: the next due come first."""
        return await self._send("GET", f"/job/{DB}" + (f"?label={label}" if label else ""))

    async def count(self) -> int:
        """GET how many jobs there are in each state."""
        return await self._send("GET", f"/count/{DB}")

    async def add_route(self, webhook_url: str, route: str = ROUTE) -> None:
        """Create a route for jobs, with a retry after a second, as the straightforward implementation has.

        Raises:
            RuntimeError: It was refused.
        """
        body = {"id": route, "type": "REST", "webhook_url": webhook_url, "retry": {"waits": [1.0, 1.0, 1.0]}}
        status = await self._send("POST", f"/route/{DB}", body)
        if status != HTTPStatus.OK:
            raise RuntimeError(f"the route was refused: {status}")

    def workflow_id(self, job_id: str) -> str:
        """Return the id of a job's workflow."""
        return jobs.workflow_id(DB, COLLECTION, job_id)

    async def _send(self, method: str, path: str, body: object = None) -> int:
        return await self._http.send(method, path, msgspec.json.encode(body) if body is not None else b"")

"""A worker that ends by an error lets its attempts in flight end, as one does that is asked to stop."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta

import httpx
import pytest
from msgspec.structs import replace
from temporalio.api.enums.v1 import EventType
from temporalio.bridge.proto.activity_task import Cancel
from temporalio.client import Client
from temporalio.worker import Worker

from activities.in_progress import InProgress
from api.app import create_app
from devstack.ports import LOOPBACK, free_port
from devstack.temporal import Temporal
from tests.conftest import serving
from tests.support.job_histories import wait_for_event
from tests.support.receiver import Received, Receiver, response
from tests.support.service import Service
from tests.support.waiting import eventually
from timemachine.postgres.pool import open_pool
from timemachine.settings import Settings
from timemachine.webhooks.client import WebhookClient
from worker import bulk_activities, create_bulk_worker, create_worker, run, work


class Program:
    """What `worker.py` runs, with an API, and how it is broken."""

    def __init__(
        self, service: Service, workers: list[Worker], in_progress: InProgress, ending: asyncio.Event, grace: float
    ) -> None:
        self.service, self.workers = service, workers
        self.stop, self.ending = asyncio.Event(), ending
        self.end = asyncio.create_task(work(workers, in_progress, self.stop, ending=self.ending, grace=grace))

    def break_down(self, number: int) -> None:
        """Let one of the workers find out that it cannot go on, as the SDK itself tells it to."""
        broken = self.workers[number]._activity_worker
        assert broken
        broken._fail_worker_exception_queue.put_nowait(RuntimeError("broken for good"))


@pytest.fixture
async def program(
    request: pytest.FixtureRequest,
    settings: Settings,
    client: Client,
    temporal: Temporal,
    receiver: Receiver,
    db: str,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Program]:
    """A worker's whole program on task queues of its own."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal.address)
    grace = getattr(request, "param", 30)
    own = replace(settings, task_queue=f"end-{uuid.uuid4().hex}", shutdown_grace=grace)
    async with AsyncExitStack() as opened:
        pool = await opened.enter_async_context(open_pool(own))
        webhooks = await opened.enter_async_context(
            WebhookClient(timeout=30, max_connections=9, address_guard=own.address_guard)
        )
        service = Service(await opened.enter_async_context(serving(create_app(own))), db)
        await service.add_route(receiver.url)
        in_progress, ending = InProgress(9), asyncio.Event()
        bulk = bulk_activities(client, pool, own)
        workers = [
            create_worker(client, pool, webhooks, own, in_progress, bulk, ending=ending),
            create_bulk_worker(client, bulk, own, ending=ending),
        ]
        program = Program(service, workers, in_progress, ending, grace)
        yield program
        program.stop.set()
        await asyncio.wait([program.end], timeout=60)


@pytest.mark.parametrize("broken", [0, 1], ids=["deliveries", "bulk"])
@pytest.mark.parametrize("fails_before", [0, 1], ids=["first attempt", "second attempt"])
async def test_attempts_in_flight_end_before_the_worker_does(
    program: Program, receiver: Receiver, client: Client, broken: int, fails_before: int
) -> None:
    answered = asyncio.Event()

    async def slow(received: Received) -> bytes:
        if len(receiver.of(received.job_id)) <= fails_before:
            return response(500)
        await answered.wait()
        return response(200)

    receiver.answer = slow
    job_id = await program.service.create(0, retry={"waits": [0.1]})
    await receiver.wait_for(job_id, 1 + fails_before)
    # The workflow task waits for the first attempt no longer.
    await wait_for_event(client, program.service, job_id, EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED)

    program.break_down(broken)
    done, _ = await asyncio.wait([program.end], timeout=1)
    assert not done
    assert program.ending.is_set()  # it is not ready any more
    answered.set()

    with pytest.raises(RuntimeError):
        await program.end
    answer = await program.service.api.get(f"{program.service.jobs}/{job_id}/attempts")
    assert answer.json()["attempts"][0]["kind"] == "taken"
    assert len(receiver.of(job_id)) == 1 + fails_before


async def test_a_cancel_that_comes_after_its_activity_ended_ends_no_worker(program: Program) -> None:
    """The SDK warns of it, which as an error would leave all tests after it without a worker."""
    worker = program.workers[1]._activity_worker
    assert worker

    worker._handle_cancel_activity_task(b"of an activity that has ended", Cancel())


async def attempted(program: Program, receiver: Receiver, client: Client, answered: asyncio.Event) -> str:
    """Return a job whose receiver answers once it is told to, and whose workflow task waits for it no longer."""

    async def slow(_: Received) -> bytes:
        await answered.wait()
        return response(200)

    receiver.answer = slow
    job_id = await program.service.create(0)
    await receiver.wait_for(job_id)
    await wait_for_event(client, program.service, job_id, EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED)
    return job_id


@pytest.mark.parametrize("program", [5], indirect=True, ids=["short grace"])
async def test_a_worker_that_breaks_while_it_is_stopped_does_not_keep_the_program(
    program: Program, receiver: Receiver, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK waits for ever then: the program would neither work nor end, and nobody would start another one."""
    monkeypatch.setattr("worker.ENDING", 1)
    answered = asyncio.Event()
    job_id = await attempted(program, receiver, client, answered)

    program.stop.set()
    await asyncio.sleep(0.5)  # they are being stopped
    program.break_down(0)
    answered.set()

    done, _ = await asyncio.wait([program.end], timeout=30)
    assert done
    with pytest.raises(RuntimeError, match="did not end in time"):
        await program.end
    answer = await program.service.api.get(f"{program.service.jobs}/{job_id}/attempts")
    assert answer.json()["attempts"][0]["kind"] == "taken"


@pytest.mark.parametrize("program", [1], indirect=True, ids=["short grace"])
async def test_attempts_that_do_not_end_in_their_time_are_told(
    program: Program, receiver: Receiver, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """The receiver may have taken them, and gets them again."""
    answered = asyncio.Event()
    job_id = await attempted(program, receiver, client, answered)

    program.stop.set()
    await asyncio.wait([program.end])
    answered.set()

    described = await client.get_workflow_handle(f"{program.service.db}/c/{job_id}").describe()
    (left,) = [record for record in caplog.records if record.message == "attempts left under way, to be made again"]
    assert vars(left)["run_ids"] == [described.run_id]


async def test_a_stop_that_is_asked_for_is_no_error(program: Program) -> None:
    await asyncio.sleep(0.1)  # whether its workers have started by then makes no difference
    program.stop.set()

    await program.end


async def test_attempts_get_the_time_that_is_set(
    program: Program,
    settings: Settings,
    temporal: Temporal,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stop = asyncio.Event()
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal.address)
    with caplog.at_level("INFO", "worker"):
        own = replace(settings, task_queue=f"grace-{uuid.uuid4().hex}", shutdown_grace=77)
        running = asyncio.create_task(run(own, stop))
        await eventually(lambda: any_logged(caplog, "working"))
        stop.set()
        await running

    assert [vars(record)["grace_seconds"] for record in caplog.records if record.message == "stopping"] == [77]
    assert [worker.config()["graceful_shutdown_timeout"] for worker in program.workers] == [timedelta(seconds=30)] * 2


async def test_a_worker_is_ready_until_it_is_to_stop(
    settings: Settings, temporal: Temporal, receiver: Receiver, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its attempts in flight finish, it lives, and is not ready."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal.address)
    address, stop, answered = f"{LOOPBACK}:{free_port()}", asyncio.Event(), asyncio.Event()
    own = replace(settings, task_queue=f"health-{uuid.uuid4().hex}", health_address=address)

    async def late(_: Received) -> bytes:
        await answered.wait()
        return response(200)

    receiver.answer = late
    transport = httpx.AsyncHTTPTransport(retries=8)
    async with (
        serving(create_app(own)) as api,
        httpx.AsyncClient(base_url=f"http://{address}", transport=transport) as http,
    ):
        service = Service(api, db)
        await service.add_route(receiver.url)
        running = asyncio.create_task(run(own, stop))
        await eventually(lambda: http.get("/readyz"), lambda answer: answer.status_code == 200)
        job_id = await service.create(0)
        await receiver.wait_for(job_id)

        stop.set()

        await eventually(lambda: http.get("/readyz"), lambda answer: answer.status_code == 503)
        assert (await http.get("/livez")).status_code == 200
        answered.set()
        await running


async def any_logged(caplog: pytest.LogCaptureFixture, message: str) -> bool:
    return any(record.message == message for record in caplog.records)


async def test_a_stop_is_heeded_while_temporal_takes_the_connection_and_says_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected, stop = asyncio.Event(), asyncio.Event()

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await stop.wait()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        monkeypatch.setenv("TEMPORAL_ADDRESS", f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        running = asyncio.create_task(run(settings, stop))
        await connected.wait()
        stop.set()
        await running

"""What a service under a small load serves for Prometheus is what docs/metrics.md says."""

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace
from temporalio.client import Client

from activities import service_counts
from api.app import create_app
from devstack.ports import LOOPBACK, free_port
from devstack.temporal import Temporal
from tests.conftest import serving
from tests.support.holds import pause, wait_until_held
from tests.support.ledger import AnotherWorker, refused_by_receiver, taken
from tests.support.meters import Counted
from tests.support.monitoring import sdk_metrics
from tests.support.receiver import Received, Receiver, response, take
from tests.support.refusals import MALFORMED, NO_SUCH_PATH
from tests.support.service import ROUTE, Service, refused
from tests.support.waiting import LIMIT, eventually
from timemachine.domain.redelivery import FailedJobs
from timemachine.settings import Settings
from timemachine.temporal.visibility import all_due_jobs_query
from worker import run

DOCS = Path(__file__).parents[2] / "docs"
LISTED = set(re.findall(r"^\| `(timemachine_\w+)` \|", (DOCS / "metrics.md").read_text(), re.MULTILINE))

LATENESS = "timemachine_lateness_seconds"


class Measured:
    """The service, and what it exports."""

    def __init__(self, service: Service, settings: Settings) -> None:
        self.service = service
        self.settings = settings

    async def scrape(self, enough: Callable[[str], object] = bool) -> str:
        """Return the metrics, once they have what they must: some are exported a moment later."""
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(retries=5)) as http:

            async def text() -> str:
                return (await http.get(f"http://{self.settings.metrics_address}/metrics")).text

            return await eventually(text, enough)


@pytest.fixture
async def measured(
    settings: Settings, temporal: Temporal, client: Client, receiver: Receiver, db: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Measured]:
    """The API, and the worker's program, which serves the metrics of both: they share a process here."""
    address = f"{LOOPBACK}:{free_port()}"
    own = replace(
        settings, task_queue=f"metrics-{uuid.uuid4().hex}", metrics_address=address, metrics_routes=f"{db}/named"
    )
    stop = asyncio.Event()
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal.address)
    monkeypatch.setattr(service_counts, "LOOK_EVERY", 0.3)
    monkeypatch.setattr(service_counts, "COUNT_EVERY", timedelta(0))
    async with serving(create_app(own)) as api, asyncio.TaskGroup() as tasks:
        tasks.create_task(run(own, stop))
        measured = Measured(Service(api, db), own)
        # The worker exports from when it has begun to connect: what was counted before is not there. And it shares the
        # API's loop, which its start holds up for seconds on a busy machine.
        await measured.scrape(lambda text: "timemachine_counted_timestamp_seconds" in text)
        await measured.service.add_route(receiver.url)
        yield measured
        stop.set()


def value(text: str, name: str, *labels: str) -> float:
    """Return the sum of a metric's samples that have these labels."""
    samples = re.findall(rf"^{name}\{{(.*)\}} (\S+)$", text, re.MULTILINE)
    return sum(float(number) for given, number in samples if all(label in given for label in labels))


def exported(text: str) -> set[str]:
    """Return the names of our metrics."""
    return set(re.findall(r"^# TYPE (timemachine_\w+) ", text, re.MULTILINE))


async def refuse(_: Received) -> bytes:
    return response(500)


async def load(measured: Measured, receiver: Receiver) -> dict[str, str]:
    """Have a job end in each way, another one wait, and some requests refused; and return what no label may have."""
    service = measured.service
    await service.add_route(receiver.url, "named")
    hidden = {"db": service.db, "payload": f"payload-{uuid.uuid4().hex}", "given id": f"request-{uuid.uuid4().hex}"}
    service.api.headers["x-request-id"] = hidden["given id"]
    hidden["delivered"] = await service.create(0, meta={"p": hidden["payload"]}, labels=["label-7"])
    hidden["named"] = await service.create(0, route="named")
    for name in ("delivered", "named"):
        await service.wait_for_state(hidden[name], "delivered")
    receiver.answer = refuse
    hidden["failed"] = await service.create(0, retry={"waits": [0.1]})
    await service.wait_for_state(hidden["failed"], "failed")
    hidden["cancelled"] = await service.create(3600)
    assert (await service.cancel(hidden["cancelled"])).status_code == 200
    hidden["waiting"] = await service.create(3600)
    assert refused(await service.api.get(f"/nowhere/{service.db}")) == NO_SUCH_PATH
    assert refused(await service.api.post(service.jobs, content=b"{}")) == MALFORMED
    hidden["secret"] = (await service.secret(ROUTE))["secret"]
    return hidden


async def test_all_that_the_docs_name_is_exported_and_nothing_else_of_ours(
    measured: Measured, receiver: Receiver
) -> None:
    await load(measured, receiver)

    text = await measured.scrape(lambda text: exported(text) >= LISTED)

    assert exported(text) == LISTED
    assert len(LISTED) >= 20


async def test_no_label_tells_what_clients_send(measured: Measured, receiver: Receiver) -> None:
    hidden = await load(measured, receiver)

    text = await measured.scrape(lambda text: exported(text) >= LISTED)

    named = f'webhook_route="{measured.service.db}/named"'
    assert value(text, "timemachine_attempts_total", named, 'kind="taken"') == 1
    ours = "\n".join(line for line in text.splitlines() if line.startswith("timemachine_")).replace(named, "")
    assert [what for what, secret in hidden.items() if secret in ours] == []


@pytest.mark.own_process
async def test_a_small_load_is_counted(measured: Measured, receiver: Receiver, client: Client) -> None:
    before = await measured.scrape()
    await load(measured, receiver)

    text = await measured.scrape(lambda text: value(text, "timemachine_jobs_ended_total") >= 4)

    assert value(text, "timemachine_jobs_created_total") == 5
    for outcome, count in (("delivered", 2), ("failed", 1), ("cancelled", 1)):
        assert value(text, "timemachine_jobs_ended_total", f'outcome="{outcome}"') == count, outcome
        assert f'timemachine_jobs_ended_total{{outcome="{outcome}"' in before
    assert value(text, "timemachine_attempts_total", 'kind="taken"') == 2
    assert value(text, "timemachine_attempts_total", 'kind="refused"') == 2
    assert value(text, "timemachine_attempt_duration_seconds_count") == 4
    assert value(text, f"{LATENESS}_count") == 3
    assert value(text, "timemachine_attempts_in_progress") == 0
    assert value(text, "timemachine_slot_wait_seconds_count") >= 4
    assert value(text, "timemachine_postgres_pool_wait_seconds_count") > 0
    created = ('method="POST"', 'route="/job/{db}/{collection}"')
    assert value(text, "timemachine_http_requests_total", *created, 'status="200"') == 5
    assert value(text, "timemachine_http_requests_total", *created, 'status="400"') == 1
    assert value(text, "timemachine_refused_total", 'reason="E017"') == 1
    assert value(text, "timemachine_write_failures_total") == 0


async def about_to_be_due(client: Client) -> int:
    """Return how many jobs, left by other tests, come due from the last look at what is counted until a later one."""
    now, span = datetime.now(UTC), timedelta(seconds=2 * LIMIT)
    since, until = [(await client.count_workflows(all_due_jobs_query(time))).count for time in (now - span, now + span)]
    return until - since


@pytest.mark.own_process
async def test_jobs_are_counted_by_state(measured: Measured, client: Client) -> None:
    def jobs(text: str, state: str) -> float:
        return value(text, "timemachine_jobs", f'state="{state}"')

    service, before = measured.service, await measured.scrape()
    for _ in range(await about_to_be_due(client) + 2):
        await service.create(3600)
    await measured.scrape(lambda text: jobs(text, "scheduled") >= jobs(before, "scheduled") + 2)

    await pause(service)
    await wait_until_held(service, await service.create(0))
    await measured.scrape(lambda text: jobs(text, "held") >= jobs(before, "held") + 1)


async def terminate_in_an_attempt(measured: Measured, receiver: Receiver, client: Client) -> None:
    """Have Temporal refuse what a worker has to tell of an attempt, as its job is no more."""
    is_terminated = asyncio.Event()

    async def answer_then(_: Received) -> bytes:
        await is_terminated.wait()
        return response(200)

    receiver.answer = answer_then
    job_id = await measured.service.create(0)
    await receiver.wait_for(job_id)
    await client.get_workflow_handle(f"{measured.service.db}/c/{job_id}").terminate()
    is_terminated.set()


async def test_the_sdks_metrics_that_are_listed_are_there(
    measured: Measured, receiver: Receiver, client: Client
) -> None:
    """Each is provoked: an activity and a workflow task that fail by our fault, and a request, too."""
    service, queue = measured.service, measured.settings.task_queue
    await load(measured, receiver)
    await terminate_in_an_attempt(measured, receiver, client)
    broken = [
        await client.start_workflow("Redelivery", asked, id=f"broken-{number}-{service.db}", task_queue=queue)
        for number, asked in enumerate([FailedJobs(db="a'b", route_id="c", since=0, until=1), {"no": "such field"}])
    ]

    listed = {name: (type_, labels) for name, type_, labels in sdk_metrics()}
    types = re.compile(r"^# TYPE (temporal_\w+) (\w+)$", re.MULTILINE)
    text = await measured.scrape(lambda text: dict(types.findall(text)).keys() >= listed.keys())

    for handle in broken:
        await handle.terminate()
    assert len(listed) >= 5
    for name, (type_, labels) in listed.items():
        assert dict(types.findall(text))[name] == type_
        series = re.findall(rf"^{name}(?:_bucket)?\{{(.*)\}} ", text, re.MULTILINE)
        assert any(labels <= set(re.findall(r"(\w+)=\"", found)) for found in series), name
    assert value(text, "temporal_worker_task_slots_available", f'task_queue="{queue}"', 'worker_type="ActivityWorker"')


@pytest.mark.own_process
async def test_lateness_is_that_of_first_attempts_in_seconds(measured: Measured, receiver: Receiver) -> None:
    async def second_time(received: Received) -> bytes:
        await asyncio.sleep(0.3)  # how long a receiver takes is no lateness of ours
        return response(200 if len(receiver.of(received.job_id)) > 1 else 500)

    receiver.answer = second_time
    job_id = await measured.service.create(-30, retry={"waits": [0.1]})
    await measured.service.wait_for_state(job_id, "delivered")

    text = await measured.scrape(lambda text: value(text, f"{LATENESS}_count"))
    assert value(text, f"{LATENESS}_count") == 1
    assert 30 <= value(text, f"{LATENESS}_sum") <= receiver.of(job_id)[0].late_ms / 1000 + 0.001
    assert re.search(rf'^{LATENESS}_bucket{{.*le="3600"', text, re.MULTILINE)


@pytest.mark.own_process
async def test_the_lateness_of_a_redelivered_job_is_not_counted(measured: Measured, receiver: Receiver) -> None:
    """It is due since its first run, which may be weeks ago."""
    service = measured.service
    job_id = await service.create(0)
    await service.wait_for_state(job_id, "delivered")
    receiver.answer = take

    answer = await service.api.post(f"{service.jobs}/{job_id}/redeliver")
    assert answer.status_code == 200, answer.text
    await receiver.wait_for(job_id, 2)
    other = await service.create(0)
    await service.wait_for_state(other, "delivered")

    text = await measured.scrape(lambda text: value(text, f"{LATENESS}_count") >= 2)
    assert value(text, f"{LATENESS}_count") == 2


@pytest.mark.own_process
async def test_a_run_is_counted_once_by_what_decides_it(another: AnotherWorker, service: Service) -> None:
    """However often a statement is repeated, as one is whose answer was lost, and whatever comes after it."""
    ledger, due = another.ledger, datetime.now(UTC)
    run_id, cancelled, failed, lost = (uuid.uuid4().hex for _ in range(4))
    counted = Counted()

    claim = await another.begin(service.db, run_id)
    for _ in range(2):
        await another.end(run_id, claim, taken())
    await ledger.cancel(run_id, due=due)
    for _ in range(2):
        await ledger.cancel(cancelled, due=due)
    claim = await another.begin(service.db, failed)
    for _ in range(2):
        await another.end(failed, claim, refused_by_receiver(None))
    claim = await another.begin(service.db, lost)
    await ledger.cancel(lost, due=due)
    await another.die(lost)
    for _ in range(2):  # what takes the expired claim over ends the run that was to be cancelled
        await ledger.begin(lost, service.db, "hook", uuid.uuid4(), expired_claim=str(claim))

    assert counted.total("timemachine_jobs_ended_total", outcome="delivered") == 1
    assert counted.total("timemachine_jobs_ended_total", outcome="cancelled") == 1
    assert counted.total("timemachine_jobs_ended_total", outcome="failed") == 2


@pytest.mark.own_process
async def test_an_attempt_that_is_tried_again_ends_no_job(another: AnotherWorker, service: Service) -> None:
    counted, run_id = Counted(), uuid.uuid4().hex

    claim = await another.begin(service.db, run_id)
    await another.end(run_id, claim, refused_by_receiver(timedelta(hours=1)))

    for outcome in ("delivered", "failed", "cancelled"):
        assert counted.values("timemachine_jobs_ended_total", outcome=outcome) == []

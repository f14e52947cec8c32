"""What a worker serves for Prometheus is what docs/alarms.md asks for."""

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace
from temporalio.client import Client

from devstack.ports import LOOPBACK, free_port
from devstack.temporal import Temporal
from tests.support.receiver import Received, Receiver, response, take
from tests.support.service import Service
from tests.support.service_of_its_own import a_service
from tests.support.waiting import eventually
from timemachine.domain.redelivery import FailedJobs
from timemachine.settings import Settings
from timemachine.temporal.client import LATENESS, connect

ALARMS = (Path(__file__).parents[2] / "docs/alarms.md").read_text()
METRIC = re.compile(r"`((?:timemachine|temporal)_\w+)(\{[^`]*\})?`")


@pytest.fixture(scope="module")
async def metrics_address() -> str:
    return f"{LOOPBACK}:{free_port()}"


@pytest.fixture(scope="module")
async def measured(temporal: Temporal, client: Client, metrics_address: str) -> Client:
    """A client whose worker serves metrics."""
    with pytest.MonkeyPatch.context() as env:
        env.setenv("TEMPORAL_ADDRESS", temporal.address)
        return await connect(metrics_address=metrics_address)


@pytest.fixture
async def own(
    settings: Settings, measured: Client, temporal: Temporal, receiver: Receiver, db: str
) -> AsyncIterator[Service]:
    """The service, with a worker that serves metrics."""
    own = replace(settings, task_queue=f"metrics-{uuid.uuid4().hex}")
    async with a_service(own, measured, temporal, receiver, db) as service:
        yield service


async def scrape(address: str, enough: Callable[[str], bool]) -> str:
    """Return the metrics, once they have what they must: some are exported a moment later."""
    async with httpx.AsyncClient() as http:
        answer = await eventually(lambda: http.get(f"http://{address}/metrics"), lambda answer: enough(answer.text))
    return answer.text


def value(text: str, name: str, *labels: str) -> float:
    """Return the sum of a metric's samples that have these labels."""
    samples = re.findall(rf"^{name}\{{(.*)\}} (\S+)$", text, re.MULTILINE)
    return sum(float(number) for given, number in samples if all(label in given for label in labels))


def lateness(text: str) -> float:
    return value(text, f"{LATENESS}_count")


async def test_every_metric_of_the_alarms_is_there(
    own: Service, receiver: Receiver, measured: Client, metrics_address: str
) -> None:
    """Each of them is provoked: a delivery, a job given up, an activity and a workflow task that fail by our fault."""
    delivered = await own.create(0)
    await own.wait_for_state(delivered, "delivered")

    async def refuse(_: Received) -> bytes:
        return response(500)

    receiver.answer = refuse
    given_up = await own.create(0, retry={"waits": [0.1]})
    await own.wait_for_state(given_up, "failed")
    queue = (await measured.get_workflow_handle(f"{own.db}/c/{delivered}").describe()).task_queue
    broken = [
        await measured.start_workflow("Redelivery", asked, id=f"broken-{number}-{own.db}", task_queue=queue)
        for number, asked in enumerate([FailedJobs(db="a'b", route_id="c", since=0, until=1), {"no": "such field"}])
    ]

    promised = METRIC.findall(ALARMS)
    text = await scrape(metrics_address, lambda text: all(re.search(rf"^{name}", text, re.M) for name, _ in promised))

    for handle in broken:
        await handle.terminate()
    assert len({name for name, _ in promised}) >= 7
    for name, labels in promised:
        assert re.search(rf"^{name}(_bucket|_count|_sum)?\{{", text, re.MULTILINE), name
        for label, match in re.findall(r"(\w+)=~?\"([^\"]*)\"", labels):
            assert re.search(rf"^{name}\{{.*\b{label}=\"", text, re.MULTILINE), (name, label, match)
    assert value(text, "temporal_workflow_failed", 'workflow_type="Job"') == 1
    assert value(text, "temporal_worker_task_slots_available", f'task_queue="{queue}"', 'worker_type="ActivityWorker"')


async def test_lateness_is_that_of_first_attempts_in_milliseconds(
    own: Service, receiver: Receiver, metrics_address: str
) -> None:
    before = await scrape(metrics_address, lambda _: True)

    async def second_time(received: Received) -> bytes:
        await asyncio.sleep(0.3)  # how long a receiver takes is no lateness of ours
        return response(200 if len(receiver.of(received.job_id)) > 1 else 500)

    receiver.answer = second_time
    job_id = await own.create(-30, retry={"waits": [0.1]})
    await own.wait_for_state(job_id, "delivered")

    after = await scrape(metrics_address, lambda text: lateness(text) > lateness(before))
    late_ms = value(after, f"{LATENESS}_sum") - value(before, f"{LATENESS}_sum")
    assert lateness(after) - lateness(before) == 1
    assert 30_000 <= late_ms <= receiver.of(job_id)[0].late_ms + 1
    assert re.search(rf'^{LATENESS}_bucket{{.*le="3600000"', after, re.MULTILINE)


async def test_the_lateness_of_a_redelivered_job_is_not_counted(
    own: Service, receiver: Receiver, metrics_address: str
) -> None:
    """It is due since its first run, which may be weeks ago."""
    job_id = await own.create(0)
    await own.wait_for_state(job_id, "delivered")
    before = await scrape(metrics_address, lambda text: lateness(text) > 0)
    receiver.answer = take

    answer = await own.api.post(f"{own.jobs}/{job_id}/redeliver")
    assert answer.status_code == 200, answer.text
    await receiver.wait_for(job_id, 2)
    other = await own.create(0)
    await own.wait_for_state(other, "delivered")

    after = await scrape(metrics_address, lambda text: lateness(text) > lateness(before))
    assert lateness(after) == lateness(before) + 1

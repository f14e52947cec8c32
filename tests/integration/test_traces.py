"""A delivery is a trace of its own, linked to the requests that led to it, which the job keeps until then."""

import signal
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind
from temporalio.client import Client

from devstack.temporal import Temporal
from tests.support.collector import Collector
from tests.support.holds import pause, resume, wait_until_held
from tests.support.receiver import Received, Receiver, response
from tests.support.service import ROUTE, Service, a_job, now_ms
from tests.support.spans import SPAN_ID, TRACE_ID, TRACEPARENT, Spans, header_of, links_of, recording, told
from tests.support.waiting import eventually
from tests.support.worker_process import worker_process
from timemachine.domain.jobs import workflow_id
from timemachine.domain.traces import MAX_LINKS
from timemachine.settings import Settings
from timemachine.temporal.job_runs import latest_run


def traceparent(number: int) -> str:
    """Return that of another client's request."""
    return f"00-{number:032x}-{SPAN_ID}-01"


def traced(given: str = TRACEPARENT) -> dict[str, str]:
    return {"traceparent": given}


async def create(service: Service, due_in: float, *, given: str = TRACEPARENT, **fields: Any) -> str:
    job = a_job(due_in, **fields)
    answer = await service.api.post(service.jobs, json=job, headers=traced(given))
    assert answer.json() == {"status": "ok"}, answer.text
    return str(job["id"])


async def change(service: Service, job_id: str, due_in: float, given: str) -> None:
    job = {"trigger_time": now_ms(due_in), "route": ROUTE}
    answer = await service.api.put(f"{service.jobs}/{job_id}", json=job, headers=traced(given))
    assert answer.status_code == 200, answer.text


async def ask(service: Service, method: str, path: str, given: str) -> httpx.Response:
    answer = await service.api.request(method, path, headers=traced(given))
    assert answer.status_code == 200, answer.text
    return answer


def requests_of(spans: Spans, service: Service) -> list[str]:
    """Return the `traceparent` of each request that created or changed a job of the db, or had one sent."""
    done = [span for span in spans.having(timemachine__db=service.db) if span.kind is SpanKind.SERVER]
    return [header_of(span.context) for span in done if not span.name.startswith("GET")]


def attempts_on(spans: Spans, job_id: str) -> list[ReadableSpan]:
    return [span for span in spans.having(timemachine__job_id=job_id) if span.kind is SpanKind.CLIENT]


async def kept_links(client: Client, service: Service, job_id: str) -> tuple[str, ...]:
    return (await latest_run(client, workflow_id(service.db, "c", job_id))).job.trace_links


async def test_a_delivery_has_a_trace_of_its_own_that_is_linked_to_the_creators(
    service: Service, receiver: Receiver, spans: Spans
) -> None:
    job_id = await create(service, 1)

    (received,) = await receiver.wait_for(job_id)
    await service.wait_for_state(job_id, "delivered")
    (delivery,), (creation,) = attempts_on(spans, job_id), requests_of(spans, service)
    assert creation.split("-")[1] == TRACE_ID
    assert received.headers["traceparent"] == header_of(delivery.context)
    assert received.headers["traceparent"].split("-")[1] != TRACE_ID
    assert delivery.parent is None
    assert links_of(delivery) == [creation]
    assert told(delivery)["timemachine.lateness_ms"] >= 0
    assert told(delivery)["timemachine.message_id"] == received.headers["webhook-id"]


async def test_a_job_that_was_changed_is_linked_to_its_creator_and_its_changer(
    service: Service, receiver: Receiver, spans: Spans
) -> None:
    job_id = await create(service, 3600)
    await change(service, job_id, 1, traceparent(1))

    await receiver.wait_for(job_id)
    await service.wait_for_state(job_id, "delivered")
    (delivery,), requests = attempts_on(spans, job_id), requests_of(spans, service)
    assert links_of(delivery) == requests
    assert [request.split("-")[1] for request in requests] == [TRACE_ID, traceparent(1).split("-")[1]]


async def test_a_job_that_goes_on_as_a_new_run_keeps_its_creator_and_its_last_changers(
    cut: Service, receiver: Receiver, client: Client
) -> None:
    job_id = await create(cut, 3600)
    for number in range(1, 12):
        await change(cut, job_id, 3600 + number, traceparent(number))

    kept = await kept_links(client, cut, job_id)
    assert kept == (TRACEPARENT, *map(traceparent, range(13 - MAX_LINKS, 12)))


async def test_a_job_that_is_delivered_once_more_keeps_its_links_and_has_one_more(
    service: Service, receiver: Receiver, spans: Spans
) -> None:
    job_id = await create(service, 0)
    await service.wait_for_state(job_id, "delivered")

    await ask(service, "POST", f"{service.jobs}/{job_id}/redeliver", traceparent(1))
    await receiver.wait_for(job_id, 2)

    async def both() -> list[ReadableSpan]:
        return attempts_on(spans, job_id)

    first, second = await eventually(both, lambda found: len(found) == 2)
    created, redelivered = requests_of(spans, service)
    assert (links_of(first), links_of(second)) == ([created], [created, redelivered])
    assert "timemachine.lateness_ms" not in told(second)


async def test_a_job_that_is_run_now_keeps_its_links_and_has_one_more(
    service: Service, receiver: Receiver, spans: Spans
) -> None:
    job_id = await create(service, 3600)

    await ask(service, "POST", f"{service.jobs}/{job_id}/trigger", traceparent(1))
    await service.wait_for_state(job_id, "delivered")

    (delivery,) = attempts_on(spans, job_id)
    assert links_of(delivery) == requests_of(spans, service)
    assert len(delivery.links) == 2


async def test_a_held_job_that_is_changed_keeps_its_links(service: Service, receiver: Receiver, client: Client) -> None:
    await pause(service)
    job_id = await create(service, 0)
    await wait_until_held(service, job_id)

    await change(service, job_id, 0, traceparent(1))

    assert await kept_links(client, service, job_id) == (TRACEPARENT, traceparent(1))
    await resume(service)
    await receiver.wait_for(job_id)


async def test_each_job_of_a_batch_is_linked_to_its_request(service: Service, receiver: Receiver, spans: Spans) -> None:
    jobs = [a_job(0) for _ in range(3)]

    await service.api.post(f"/batch/{service.db}/c", json=jobs, headers=traced())
    for job in jobs:
        await service.wait_for_state(job["id"], "delivered")

    batch = requests_of(spans, service)
    assert len(batch) == 1
    assert [links_of(span) for job in jobs for span in attempts_on(spans, job["id"])] == [batch] * 3


async def test_another_traceparent_makes_a_repeated_create_no_other_one(service: Service, client: Client) -> None:
    job = a_job(3600)
    answers = [
        await service.api.post(service.jobs, json=job, headers=headers)
        for headers in (traced(), traced(traceparent(1)), {})
    ]
    answers.append(await service.api.put(f"{service.jobs}/{job['id']}?create=true", json=job, headers={}))

    assert [answer.headers["timemachine-job"] for answer in answers] == [
        "created",
        "unchanged",
        "unchanged",
        "unchanged",
    ]
    assert await kept_links(client, service, job["id"]) == (TRACEPARENT,)


async def test_each_attempt_is_a_trace_of_its_own(service: Service, receiver: Receiver, spans: Spans) -> None:
    async def refuse_first(received: Received) -> bytes:
        return response(500 if received.headers["timemachine-attempt"] == "1" else 200)

    receiver.answer = refuse_first
    job_id = await create(service, 0, retry={"waits": [0.1]})
    await service.wait_for_state(job_id, "delivered")

    first, second = attempts_on(spans, job_id)
    assert (told(first)["error.type"], told(second)["http.request.resend_count"]) == ("500", 1)
    assert links_of(first) == links_of(second) == requests_of(spans, service)
    sent = [received.headers["traceparent"] for received in receiver.of(job_id)]
    assert sent == [header_of(first.context), header_of(second.context)]
    assert len({header.split("-")[1] for header in sent}) == 2


async def test_a_link_is_kept_while_traces_are_off_and_no_traceparent_is_sent(
    service: Service, receiver: Receiver, client: Client
) -> None:
    delivered, waiting = await create(service, 0), await create(service, 3600)

    (received,) = await receiver.wait_for(delivered)
    assert "traceparent" not in received.headers
    assert await kept_links(client, service, waiting) == (TRACEPARENT,)
    with recording() as spans:
        await service.change(waiting, 0)
        await service.wait_for_state(waiting, "delivered")
    (delivery,) = attempts_on(spans, waiting)
    assert links_of(delivery)[0] == TRACEPARENT


@pytest.mark.parametrize("given", ["", "00", TRACEPARENT.upper(), f"ff{TRACEPARENT[2:]}", "\x80", "x" * 5000])
async def test_a_malformed_traceparent_is_ignored(given: str, service: Service, client: Client) -> None:
    job = a_job(3600)
    raw = [(b"traceparent", given.encode("latin-1"))]

    answer = await service.api.post(service.jobs, json=job, headers=raw)

    assert answer.json() == {"status": "ok"}, answer.text
    assert await kept_links(client, service, job["id"]) == ()


async def test_no_span_tells_a_secret_or_what_a_job_says(service: Service, receiver: Receiver, spans: Spans) -> None:
    hidden = "hidden-from-spans"

    async def refuse(_: Received) -> bytes:
        return response(500, hidden.encode())

    receiver.answer = refuse
    url, extra = f"{receiver.url}/{hidden}?token={hidden}", {"authorization": hidden}
    await service.add_route(url, "secretive", headers=extra, retry={"waits": [0.1]})
    job_id = await create(service, 0, route="secretive", meta={"hidden": hidden}, labels=[hidden])
    await service.wait_for_state(job_id, "failed")
    await service.api.get(f"/job/{service.db}", params={"label": hidden}, headers={"authorization": f"Bearer {hidden}"})

    told_all = "\n".join(span.to_json() for span in spans.all)
    assert len(attempts_on(spans, job_id)) == 2
    assert job_id in told_all
    assert hidden not in told_all
    secret = (await service.secret("secretive"))["secret"]
    assert secret.removeprefix("whsec_") not in told_all


async def test_a_worker_exports_its_last_spans_when_it_is_stopped(
    alone: tuple[Service, Settings],
    receiver: Receiver,
    temporal: Temporal,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service, own = alone
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    job_id = await create(service, 0)
    async with worker_process(own, temporal.address) as worker:
        (received,) = await receiver.wait_for(job_id)
        await service.wait_for_state(job_id, "delivered")
        worker.send_signal(signal.SIGTERM)
        assert await worker.wait() == 0

    (span,) = collector.spans
    assert collector.resource["service.name"] == "timemachine-worker"
    assert received.headers["traceparent"].split("-")[1] == span.trace_id.hex()
    assert [link.trace_id.hex() for link in span.links] == [TRACE_ID]

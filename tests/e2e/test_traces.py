"""A trace from a client to a receiver, as a collector gets it of the programs."""

import os
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from devstack.stack import local_stack
from tests.support.collector import Collector
from tests.support.receiver import Receiver
from tests.support.service import Service, a_job
from tests.support.spans import SPAN_ID, TRACE_ID, TRACEPARENT
from timemachine.settings import Settings


@pytest.mark.timeout(200)
async def test_a_collector_is_told_of_a_job_from_the_clients_request_to_the_receiver(
    tmp_path: Path, collector: Collector, receiver: Receiver, db: str
) -> None:
    settings = Settings(
        http_port=0,
        temporal_port=0,
        temporal_ui_port=0,
        data_dir=str(tmp_path),
        temporal_cli=os.environ.get("TIMEMACHINE_TEMPORAL_CLI"),
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith(("TIMEMACHINE_", "TEMPORAL_"))}
    job = a_job(2)

    async with (
        local_stack(settings, env | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}) as stack,
        httpx.AsyncClient(base_url=stack.api_url, timeout=30) as api,
    ):
        service = Service(api, db)
        await service.add_route(receiver.url)
        answer = await api.post(service.jobs, json=job, headers={"traceparent": TRACEPARENT})
        assert answer.status_code == 200, answer.text
        (received,) = await receiver.wait_for(job["id"])
        await service.wait_for_state(job["id"], "delivered")

    # Both programs have ended, and exported what they had.
    (creation,) = (span for span in collector.spans if span.trace_id.hex() == TRACE_ID)
    (delivery,) = (span for span in collector.spans if span.kind == Span.SPAN_KIND_CLIENT)
    assert (creation.name, creation.parent_span_id.hex()) == ("POST /job/{db}/{collection}", SPAN_ID)
    assert delivery.parent_span_id == b""
    assert [(link.trace_id, link.span_id) for link in delivery.links] == [(creation.trace_id, creation.span_id)]
    assert received.headers["traceparent"].split("-")[1:3] == [delivery.trace_id.hex(), delivery.span_id.hex()]

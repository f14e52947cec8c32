"""A request to a receiver is a trace of its own, linked to those that led to it; it tells no secret and no meta."""

import io
import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

import msgspec
import pytest
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind

from activities.webhook_call import WebhookCalls
from tests.support.settings import service_settings
from tests.support.spans import SPAN_ID, TRACE_ID, TRACEPARENT, Spans, header_of, links_of, recording, told
from timemachine.clock import boot_time
from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.delivery import Delivery
from timemachine.domain.errors import NoAnswerError, NotSentError
from timemachine.domain.jobs import Job, to_ms
from timemachine.domain.outcomes import Deferred
from timemachine.domain.routes import RestRoute
from timemachine.domain.stored_names import EVENTS_COLLECTION
from timemachine.postgres.delivery_ledger import AttemptReport, Begun
from timemachine.postgres.route_store import Target
from timemachine.telemetry import JsonFormatter, log_context
from timemachine.webhooks.client import WebhookResponse

CHANGER = f"00-{'c' * 32}-{SPAN_ID}-00"
URL = "https://hooks.example.org:8443/services/a-secret?token=a-secret"
LATE = 1500


class Receiver:
    """What a webhook client makes of a receiver."""

    def __init__(self, answer: WebhookResponse | Exception) -> None:
        self._answer = answer
        self.headers: Mapping[str, str] = {}

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], **_: object) -> WebhookResponse:
        self.headers = headers
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


def a_delivery(**fields: Any) -> Delivery:
    job = Job(
        db="d",
        collection="c",
        id="j-1",
        trigger_time=to_ms(datetime.now(UTC)) - LATE,
        route="hook",
        meta=msgspec.Raw(b'"a-secret"'),
        trace_links=(TRACEPARENT, CHANGER),
    )
    return Delivery(job=msgspec.structs.replace(job, **fields), message_id="msg_1", run_id="run-1")


async def attempt(
    answer: WebhookResponse | Exception, *, number: int = 1, url: str = URL, **fields: Any
) -> tuple[Receiver, AttemptReport | Deferred]:
    """Make an attempt, and return what the receiver has seen of it, and what it came to."""
    receiver = Receiver(answer)
    target = Target(
        route=RestRoute(id="hook", webhook_url=url),
        headers={"authorization": "a-secret", "traceparent": "of the route's own"},
        secrets=(b"a-secret",),
    )
    calls = WebhookCalls(cast("Any", None), cast("Any", receiver), service_settings())
    begun = Begun(number=number, target=target, at=datetime.now(UTC))
    with log_context():
        report = await calls.call(a_delivery(**fields), begun, boot_time() + 60, lambda: None)
    return receiver, report


async def test_it_begins_a_trace_that_is_linked_and_that_the_receiver_goes_on_with(spans: Spans) -> None:
    receiver, _ = await attempt(WebhookResponse(status=200))

    span = spans.one()
    assert span.context is not None
    assert (span.name, span.kind, span.parent) == ("POST", SpanKind.CLIENT, None)
    assert span.context.trace_id != int(TRACE_ID, 16)
    assert links_of(span) == [TRACEPARENT, CHANGER]
    assert receiver.headers["traceparent"] == header_of(span.context)


async def test_it_tells_which_job_went_where_how_late_and_to_what_end(spans: Spans) -> None:
    await attempt(WebhookResponse(status=200, body=b"a-secret"))

    attributes = told(spans.one())
    assert LATE <= attributes.pop("timemachine.lateness_ms") < LATE + 60_000
    assert attributes == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "server.address": "hooks.example.org",
        "server.port": 8443,
        "url.full": "https://hooks.example.org:8443/REDACTED",
        "timemachine.db": "d",
        "timemachine.collection": "c",
        "timemachine.job_id": "j-1",
        "timemachine.route": "hook",
        "timemachine.run_id": "run-1",
        "timemachine.message_id": "msg_1",
    }
    assert spans.one().status.is_unset
    assert "a-secret" not in spans.one().to_json()


@pytest.mark.parametrize(("url", "port"), [("http://a.example", 80), ("a.example/x", 443), ("http://[::1]/", 80)])
async def test_a_port_that_is_not_said_is_that_of_the_scheme(url: str, port: int, spans: Spans) -> None:
    await attempt(WebhookResponse(status=200), url=url)

    assert told(spans.one())["server.port"] == port


@pytest.mark.parametrize(
    ("answer", "error_type", "status"),
    [
        (WebhookResponse(status=500, body=b"a-secret"), "500", 500),
        (WebhookResponse(status=302), "302", 302),
        (NoAnswerError("a-secret", kind=AttemptKind.TIMEOUT), "timeout", None),
        (NoAnswerError("a-secret", kind=AttemptKind.DNS), "dns", None),
        (NotSentError("a-secret"), "NotSentError", None),
        (RuntimeError("a-secret"), "RuntimeError", None),
    ],
    ids=str,
)
async def test_it_tells_how_it_failed_in_a_word(
    answer: WebhookResponse | Exception, error_type: str, status: int | None, spans: Spans
) -> None:
    await attempt(answer)

    span = spans.one()
    assert (told(span)["error.type"], told(span).get("http.response.status_code")) == (error_type, status)
    assert not span.status.is_ok
    assert not span.status.is_unset
    assert "a-secret" not in span.to_json()


async def test_a_url_that_cannot_be_called_is_blocked_and_not_told(spans: Spans) -> None:
    await attempt(WebhookResponse(status=200), url="ftp://a-secret")

    assert told(spans.one())["error.type"] == "blocked"
    assert "a-secret" not in spans.one().to_json()


async def test_only_the_first_request_of_a_job_is_late(spans: Spans) -> None:
    """As the metric has it: a redelivery comes when somebody asks for it, and an event after what it tells of."""
    await attempt(WebhookResponse(status=200), number=3)
    await attempt(WebhookResponse(status=200), message_id="msg_1")
    await attempt(WebhookResponse(status=200), collection=EVENTS_COLLECTION)

    later, redelivered, event = map(told, spans.all)
    assert later["http.request.resend_count"] == 2
    assert "timemachine.lateness_ms" not in later | redelivered | event


async def test_while_traces_are_off_the_receiver_is_sent_none() -> None:
    receiver, _ = await attempt(WebhookResponse(status=200))

    assert receiver.headers["traceparent"] == "of the route's own"


async def test_a_receiver_may_go_on_with_a_trace_that_is_not_recorded() -> None:
    with recording(ALWAYS_OFF) as spans:
        receiver, _ = await attempt(WebhookResponse(status=200))

    assert int(receiver.headers["traceparent"][-2:], 16) & 1 == 0
    assert spans.all == ()


async def test_lines_that_come_of_it_have_its_trace(spans: Spans) -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter())
    log = logging.getLogger("activities")
    log.addHandler(handler)
    try:
        await attempt(WebhookResponse(status=500))
        log.warning("afterward")
    finally:
        log.removeHandler(handler)

    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    failed = next(line for line in lines if line["message"] == "attempt failed")
    assert failed["trace_id"] == header_of(spans.one().context).split("-")[1]
    assert "trace_id" not in lines[-1]

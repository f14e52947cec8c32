"""Each request to the API is a span of its client's trace, which tells no secret; and what jobs are linked to."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any, cast

import pytest
from litestar.types import HTTPScope, Message, Receive, Scope, Send
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind

from api.http_protocol import UnambiguousRequests
from api.observed_requests import ObservedRequests, noting_route
from api.request_span import trace_links_of
from tests.support.spans import SPAN_ID, TRACE_ID, TRACEPARENT, Spans, header_of, recording, told
from timemachine.domain.keys import generate_key, new_key_id
from timemachine.telemetry import JsonFormatter

log = logging.getLogger("test")

PATH, TEMPLATE = "/job/d/c/j-1", "/job/{db}/{collection}/{job_id}"
NAMES = {"db": "d", "collection": "c", "job_id": "j-1"}
MALFORMED = TRACEPARENT.upper()


class Framework:
    """Answers as the framework does."""

    def __init__(self, status: int | None = 200, template: str | None = TEMPLATE, **names: str) -> None:
        self._status = status
        self._template = template
        self._names = names or NAMES
        self.links: tuple[str, ...] = ()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._template:
            cast("HTTPScope", scope)["path_template"] = self._template
            scope["path_params"] = self._names
        self.links = trace_links_of(scope)
        log.warning("working")
        if self._status is None:
            raise ConnectionError("a secret")
        await send(cast("Message", {"type": "http.response.start", "status": self._status, "headers": []}))


async def nothing(*_: Any) -> Any:
    """Neither read nor write."""


async def ask(framework: Framework, *traceparents: str, method: str = "GET", path: str = PATH, **headers: str) -> None:
    given = [("x-request-id", "r-1"), *(("traceparent", each) for each in traceparents), *headers.items()]
    scope = {
        "type": "http",
        "method": method,
        "scheme": "http",
        "http_version": "1.1",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"token=a-secret",
        "state": {},
        "headers": [(name.encode(), value.encode()) for name, value in given],
    }
    app = ObservedRequests(UnambiguousRequests(noting_route(framework)))
    await app(cast("Scope", scope), nothing, nothing)


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter())
    log.addHandler(handler)
    yield written
    log.removeHandler(handler)


async def test_a_request_is_a_part_of_its_clients_trace(spans: Spans) -> None:
    await ask(Framework(), TRACEPARENT, tracestate="vendor=1")

    span = spans.one()
    assert span.context is not None
    assert span.parent is not None
    assert (span.name, span.kind) == (f"GET {TEMPLATE}", SpanKind.SERVER)
    assert (header_of(span.parent), span.context.trace_id) == (TRACEPARENT, int(TRACE_ID, 16))
    assert span.context.trace_state.to_header() == ""


async def test_it_tells_what_was_asked_and_answered_and_nothing_else(spans: Spans) -> None:
    await ask(Framework(), authorization=f"Bearer {generate_key(new_key_id()).text}", **{"user-agent": "a-client"})

    assert told(spans.one()) == {
        "http.request.method": "GET",
        "http.route": TEMPLATE,
        "http.response.status_code": 200,
        "url.scheme": "http",
        "url.path": PATH,
        "timemachine.request_id": "r-1",
        "timemachine.db": "d",
        "timemachine.collection": "c",
        "timemachine.job_id": "j-1",
    }


async def test_a_key_that_a_client_put_into_the_path_is_not_told(spans: Spans) -> None:
    key = generate_key(new_key_id()).text

    await ask(Framework(400, db=key), path=f"/job/{key}/c/j-1")

    assert "url.path" not in told(spans.one())
    assert key not in spans.one().to_json()


async def test_of_a_whole_url_only_the_path_is_told(spans: Spans) -> None:
    await ask(Framework(), path=f"http://user:a-secret@api.example{PATH}")

    assert told(spans.one())["url.path"] == PATH
    assert "a-secret" not in spans.one().to_json()


@pytest.mark.parametrize("path", ["ftp://user:a-secret@api.example/", f"/job/{'a-secret' * 1000}/c/j-1"])
async def test_a_path_unlike_the_apis_is_not_told(path: str, spans: Spans) -> None:
    await ask(Framework(400, db=path.split("/")[2]), path=path)

    assert "url.path" not in told(spans.one())
    assert "a-secret" not in spans.one().to_json()


@pytest.mark.parametrize("given", [(), (MALFORMED,), (TRACEPARENT, TRACEPARENT)], ids=["none", "malformed", "two"])
async def test_without_a_valid_traceparent_it_begins_a_trace(given: tuple[str, ...], spans: Spans) -> None:
    await ask(Framework(), *given)

    span = spans.one()
    assert span.context is not None
    assert span.parent is None
    assert span.context.trace_id != int(TRACE_ID, 16)


@pytest.mark.parametrize(
    ("framework", "method", "name", "failed"),
    [
        (Framework(404, None), "GET", "GET", None),
        (Framework(405, None), "MADE-UP", "HTTP", None),
        (Framework(400), "PATCH", f"PATCH {TEMPLATE}", None),
        (Framework(503), "GET", f"GET {TEMPLATE}", "503"),
    ],
    ids=["no route", "no method", "refused", "the service's fault"],
)
async def test_names_are_few_and_only_faults_of_the_service_are_failures(
    framework: Framework, method: str, name: str, failed: str | None, spans: Spans
) -> None:
    await ask(framework, method=method)

    span = spans.one()
    assert (span.name, told(span).get("error.type")) == (name, failed)
    assert span.status.is_unset is (failed is None)


async def test_a_request_that_is_not_answered_has_failed_and_does_not_say_by_which_message(spans: Spans) -> None:
    with pytest.raises(ConnectionError):
        await ask(Framework(None))

    assert told(spans.one())["error.type"] == "ConnectionError"
    assert "http.response.status_code" not in told(spans.one())
    assert "a secret" not in spans.one().to_json()


@pytest.mark.parametrize("path", ["/livez", "/healthz", "/readyz"])
async def test_health_checks_have_no_span(path: str, spans: Spans) -> None:
    await ask(Framework(), TRACEPARENT, path=path)

    assert spans.all == ()


async def test_lines_of_the_log_have_the_trace(spans: Spans, lines: io.StringIO) -> None:
    await ask(Framework(), TRACEPARENT)
    log.warning("afterward")

    working, afterward = (json.loads(line) for line in lines.getvalue().splitlines())
    assert (working["request_id"], working["trace_id"]) == ("r-1", TRACE_ID)
    assert "trace_id" not in afterward


async def test_while_traces_are_off_lines_have_none(lines: io.StringIO) -> None:
    await ask(Framework(), TRACEPARENT)

    assert "trace_id" not in json.loads(lines.getvalue())


async def test_a_job_is_linked_to_the_span_of_its_request(spans: Spans) -> None:
    framework = Framework()

    await ask(framework, TRACEPARENT)

    assert framework.links == (header_of(spans.one().context),)
    assert framework.links != (TRACEPARENT,)


@pytest.mark.parametrize(("given", "links"), [((TRACEPARENT,), (TRACEPARENT,)), ((), ())], ids=["given", "none"])
async def test_a_job_is_linked_to_its_clients_request_where_ours_is_not_recorded(
    given: tuple[str, ...], links: tuple[str, ...]
) -> None:
    framework = Framework()

    with recording(ALWAYS_OFF):
        await ask(framework, *given)

    assert framework.links == links


@pytest.mark.parametrize(
    ("given", "links"),
    [
        ((), ()),
        ((TRACEPARENT,), (TRACEPARENT,)),
        ((f"00-{TRACE_ID}-{SPAN_ID}-00",), (f"00-{TRACE_ID}-{SPAN_ID}-00",)),
        ((MALFORMED,), ()),
        ((TRACEPARENT, TRACEPARENT), ()),
    ],
    ids=["none", "sampled", "not sampled", "malformed", "two"],
)
async def test_while_traces_are_off_it_is_its_clients_too(given: tuple[str, ...], links: tuple[str, ...]) -> None:
    framework = Framework()

    await ask(framework, *given)

    assert framework.links == links

"""Traces are off until variables ask for them, and never a reason to fail, or to wait."""

import logging
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import unquote

import pytest

from devstack.ports import LOOPBACK, free_port
from tests.support.collector import Collector
from tests.support.spans import SPAN_ID, TRACE_ID, TRACEPARENT, Spans, told
from timemachine import VERSION, tracing
from timemachine.domain.routes import HIDDEN
from timemachine.tracing import Tracer

OFF = """
import sys
import api.__main__, worker
from timemachine import tracing
tracing.start({}, service="s")
with tracing.client_span("POST", {}, links=["x"]) as span:
    assert (span.traceparent, span.headers, span.log_fields) == (None, {}, {})
tracing.stop()
print([name for name in sys.modules if name.partition(".")[0] in ("opentelemetry", "requests")])
"""


@pytest.fixture(autouse=True)
def _off_afterward(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """End with no thread left that still tries to export.

    It draws the pauses between its tries, and hypothesis refuses that in whatever test it has by then.
    """
    monkeypatch.setattr(tracing, "FLUSH_TIME", 10.0)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    before = {*threading.enumerate()}
    yield
    tracing.stop()
    for thread in {*threading.enumerate()} - before:
        thread.join()


def start(env: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Start with these variables, some of which OpenTelemetry reads by itself."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    tracing.start(env, service="a-program")


def make_span() -> str | None:
    with tracing.client_span("POST", {"timemachine.job_id": "j-1"}, links=[TRACEPARENT]) as span:
        return span.traceparent


def test_while_they_are_off_nothing_of_them_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", OFF], capture_output=True, text=True, check=False)

    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize(
    ("env", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "s", "OTEL_TRACES_SAMPLER": "always_on"}, False),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, False),
        ({"OTEL_SDK_DISABLED": "True", "OTEL_TRACES_EXPORTER": "otlp"}, False),
        ({"OTEL_SDK_DISABLED": "false", "OTEL_TRACES_EXPORTER": "otlp"}, True),
    ],
)
def test_which_variables_ask_for_traces(env: dict[str, str], wanted: bool) -> None:
    assert tracing.is_wanted(env) is wanted


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: "),
        ({"OTEL_TRACES_EXPORTER": "otlp,console"}, "OTEL_TRACES_EXPORTER: "),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL: "),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT: it must be"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:99999/a"}, "OTEL_EXPORTER_OTLP_ENDPOINT: it must be"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http:///a"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: it must be"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[::1/a"}, "OTEL_EXPORTER_OTLP_ENDPOINT: it must be"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_BSP_MAX_QUEUE_SIZE": "1"}, "max_export_batch_size"),
        *(
            (
                {"OTEL_TRACES_EXPORTER": "otlp", name: f"authorization=Basic%20abc{end}a-secret"},
                f"{name}: there is a",
            )
            for name in tracing.HEADERS
            for end in ("%0A", "\n", "%0d")
        ),
        ({"OTEL_TRACES_EXPORTER": "otlp", tracing.HEADERS[0]: "a=b,c=d\te"}, f"{tracing.HEADERS[0]}: there is a"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_them_off(
    env: dict[str, str], reason: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(env, monkeypatch)

    (record,) = caplog.records
    assert (record.message, record.levelno) == ("traces are off", logging.WARNING)
    assert reason in record.__dict__["reason"]
    assert make_span() is None


@pytest.mark.parametrize(
    "headers",
    [
        {tracing.HEADERS[1]: "authorization=Bearer%20abc\n"},
        {tracing.HEADERS[1]: "authorization=Bearer%20abc,\n\tx=y\n"},
        {tracing.HEADERS[1]: "authorization=Bearer%20abc%0A"},
        {tracing.HEADERS[0]: "authorization=Bearer%20abc", tracing.HEADERS[1]: "a=b%0Ac"},
    ],
)
def test_headers_are_sent_as_opentelemetry_reads_them(
    headers: dict[str, str], collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    start({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url} | headers, monkeypatch)
    make_span()

    tracing.stop()

    assert collector.authorization == "Bearer abc"


def test_a_malformed_header_is_warned_of_and_not_shown(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = {"OTEL_EXPORTER_OTLP_HEADERS": "authorization: Bearer a-secret"}

    start({"OTEL_TRACES_EXPORTER": "otlp"} | headers, monkeypatch)

    assert "Header format invalid" in caplog.text
    assert "a-secret" not in caplog.text


@pytest.mark.parametrize("is_there", [True, False])
def test_a_token_in_the_collectors_address_is_not_shown(
    is_there: bool, collector: Collector, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither when it cannot be reached nor in the lines of `debug`."""
    monkeypatch.setattr(tracing, "FLUSH_TIME", 0.3)
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "4")  # until it says that it tries again
    url = collector.url if is_there else f"http://{LOOPBACK}:{free_port()}"
    start({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{url}/a-secret/v1/traces?api-key=a-secret"}, monkeypatch)
    make_span()

    tracing.stop()

    assert any(HIDDEN in record.getMessage() for record in caplog.records)
    assert "a-secret" not in caplog.text


@pytest.mark.parametrize("path", ["/a-secret", "/v1/traces?key=a-secret&b=c", "/otlp/a%2fsecret/", "/a|secret"])
@pytest.mark.parametrize("in_words", [unquote, str.upper, lambda asked: asked.replace("/", " "), lambda asked: asked])
def test_a_token_that_the_collector_repeats_in_its_own_words_is_not_shown(
    path: str,
    in_words: Callable[[str], str],
    collector: Collector,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collector.refuse = lambda asked: f"The URL {in_words(asked)} was not found"
    start({"OTEL_EXPORTER_OTLP_ENDPOINT": f"{collector.url}{path}"}, monkeypatch)
    make_span()

    tracing.stop()

    assert "code: 404" in caplog.text
    assert "secret" not in caplog.text.lower()


def test_a_token_in_a_traceback_about_a_collector_is_not_shown(
    collector: Collector, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As urllib3 logs one for an answer whose headers cannot be read."""
    collector.malformed = "broken /a-secret"
    start({"OTEL_EXPORTER_OTLP_ENDPOINT": f"{collector.url}/a-secret"}, monkeypatch)
    make_span()

    tracing.stop()

    assert "Failed to parse headers" in caplog.text
    assert "HeaderParsingError" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("message", "given", "shown"),
    [
        ("Resetting %s", ("a-secret",), "Resetting ***"),
        ("certificate %s of %s", ({"a-secret": 1}, ["a-secret"]), "certificate *** of ***"),
        ("%(host)s is gone", ({"host": "a-secret"},), "%(host)s is gone"),
        ("100% of it", (), "100% of it"),
        (OSError("a-secret"), (), "OSError"),
        ("%d spans of %s after %.1f s", (3, None, 0.5), "3 spans of None after 0.5 s"),
    ],
)
@pytest.mark.parametrize("error", [None, OSError("a-secret")])
def test_a_token_in_a_line_of_a_library_that_comes_late_is_not_shown(
    message: object,
    given: tuple[object, ...],
    shown: str,
    error: Exception | None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start({"OTEL_TRACES_EXPORTER": "otlp"}, monkeypatch)
    caplog.clear()

    logging.getLogger(f"urllib3.{uuid.uuid4()}").warning(message, *given, exc_info=error, extra={"host": "a-secret"})

    (line,) = caplog.records
    assert line.getMessage() == (f"{shown}: OSError" if error else shown)
    assert "a-secret" not in repr(vars(line))


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999/a-secret", "http:///a-secret", "http://u:a-secret@/x"])
def test_a_token_in_an_address_that_is_none_is_not_shown(
    url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it comes to be asked for."""
    start({"OTEL_EXPORTER_OTLP_ENDPOINT": url}, monkeypatch)
    start({"OTEL_TRACES_EXPORTER": "otlp"}, monkeypatch)
    logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter").error("Failed to parse: %s", url)

    assert caplog.records
    assert "a-secret" not in " ".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)


def test_without_the_extra_they_are_off_and_that_is_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "timemachine.otel", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)

    start({"OTEL_TRACES_EXPORTER": "otlp"}, monkeypatch)

    assert "the extra `otel` of timemachine is not installed" in caplog.records[0].__dict__["reason"]
    assert make_span() is None


def test_what_was_recorded_is_exported_at_the_end(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    start({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}, monkeypatch)
    traceparent = make_span()

    tracing.stop()

    (span,) = collector.spans
    assert (collector.resource["service.name"], collector.resource["service.version"]) == ("a-program", VERSION)
    assert traceparent is not None
    assert traceparent.split("-")[1:3] == [span.trace_id.hex(), span.span_id.hex()]
    assert span.parent_span_id == b""
    assert [(link.trace_id.hex(), link.span_id.hex()) for link in span.links] == [(TRACE_ID, SPAN_ID)]
    assert make_span() is None


def test_the_name_of_the_service_is_that_of_the_variables(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    start({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "ours"}, monkeypatch)
    make_span()

    tracing.stop()

    assert collector.resource["service.name"] == "ours"


def test_the_sampler_is_that_of_the_variables(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    start({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_TRACES_SAMPLER": "always_off"}, monkeypatch)

    traceparent = make_span()

    assert traceparent is not None
    assert int(traceparent[-2:], 16) & 1 == 0
    tracing.stop()
    assert collector.received == []


@contextmanager
def silent() -> Iterator[str]:
    """A collector that takes connections and never answers."""
    with socket.create_server((LOOPBACK, 0)) as server:
        yield f"http://{LOOPBACK}:{server.getsockname()[1]}"


@pytest.mark.parametrize("answers", [True, False])
def test_a_collector_that_fails_delays_neither_a_request_nor_the_end(
    answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that refuses connections, and one that says nothing. What the queue has no room for is dropped."""
    monkeypatch.setattr(tracing, "FLUSH_TIME", 0.3)
    queue = {"OTEL_BSP_MAX_QUEUE_SIZE": "8", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4"}
    with silent() as url:
        refusing = f"http://{LOOPBACK}:{free_port()}"
        start({"OTEL_EXPORTER_OTLP_ENDPOINT": refusing if answers else url} | queue, monkeypatch)
        began = time.monotonic()
        for _ in range(100):
            make_span()
        made = time.monotonic()
        tracing.stop()
        ended = time.monotonic()

    assert made - began < 5
    assert ended - made < 5


def test_a_program_ends_whatever_becomes_of_its_last_spans(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Tracer):
        def close(self, timeout: float) -> None:
            raise RuntimeError("can't start new thread")

    tracing.use(Failing())

    tracing.stop()

    assert caplog.messages == ["last spans not exported"]


def test_a_span_that_is_left_by_an_exception_has_failed_and_does_not_tell_its_message(spans: Spans) -> None:
    with pytest.raises(ValueError, match="secret"), tracing.client_span("POST", {}, links=[]):
        raise ValueError("secret")

    span = spans.one()
    assert (told(span), span.status.is_ok, span.events) == ({"error.type": "ValueError"}, False, ())
    assert "secret" not in span.to_json()

"""Spans by OpenTelemetry. Imported only once traces are asked for: its libraries are the optional extra `otel`."""

import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from timemachine import VERSION
from timemachine.domain.routes import HIDDEN
from timemachine.tracing import Attributes, Span, Tracer

_W3C = TraceContextTextMapPropagator()

_PATH = re.compile(r"(url: |POST )\S+|\b\w{1,20}:/\S+")
"""Of a request, as urllib3 tells it, and a whole URL, as it tells one that it cannot read."""


class OpenTelemetrySpan(Span):
    """A span of OpenTelemetry's."""

    def __init__(self, span: trace.Span) -> None:
        """Take the span, which has begun."""
        self._span = span
        self.is_recorded = span.is_recording()
        carrier = dict[str, str]()
        _W3C.inject(carrier, trace.set_span_in_context(span, Context()))
        self.traceparent = carrier.get("traceparent")

    def set(self, attributes: Attributes) -> None:
        """Add attributes."""
        self._span.set_attributes(attributes)

    def rename(self, name: str) -> None:
        """Give it another name."""
        self._span.update_name(name)

    def fail(self, error_type: str) -> None:
        """Say that the request failed."""
        self._span.set_attribute("error.type", error_type)
        self._span.set_status(StatusCode.ERROR)


class OpenTelemetryTracer(Tracer):
    """Makes spans of OpenTelemetry's, none of which is another's current one: each has what it needs handed to it."""

    def __init__(self, provider: TracerProvider) -> None:
        """Take what samples and exports them."""
        self._provider = provider
        self._tracer = provider.get_tracer("timemachine", VERSION)

    @contextmanager
    def server_span(self, name: str, attributes: Attributes, parent: str | None) -> Iterator[Span]:
        """Span a request that comes in."""
        context = _context_of(parent) if parent else Context()
        with _ended(self._tracer.start_span(name, context, SpanKind.SERVER, attributes)) as span:
            yield span

    @contextmanager
    def client_span(self, name: str, attributes: Attributes, links: Iterable[str]) -> Iterator[Span]:
        """Span a request that goes out, as the first one of a trace."""
        linked = [trace.Link(trace.get_current_span(_context_of(link)).get_span_context()) for link in links]
        with _ended(self._tracer.start_span(name, Context(), SpanKind.CLIENT, attributes, linked)) as span:
            yield span

    def close(self, timeout: float) -> None:
        """Export what was not exported yet. It goes on beside, and ends with the process, if it takes longer."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(timeout)


def exporting_tracer(service: str, *, hidden: Iterable[str]) -> Tracer:
    """Return a tracer that exports as the variables of OpenTelemetry say: in a thread, from a queue that is bounded.

    Args:
        service: Name of the program, if the variables give none.
        hidden: Parts of the collector's address that no log line may have.

    Raises:
        ValueError: They are wrong.
    """
    logging.getLogger("opentelemetry.util.re").addFilter(_hide_header)
    hide = _hiding(hidden)
    for name in ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "urllib3.connectionpool"):
        logging.getLogger(name).addFilter(hide)
    given = OTELResourceDetector().detect().attributes
    resource = Resource.create({SERVICE_NAME: service, SERVICE_VERSION: VERSION, **given})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OpenTelemetryTracer(provider)


def _hide_header(record: logging.LogRecord) -> bool:
    """Let the warning about a malformed header pass, without the header: its value is often a secret."""
    record.args = (HIDDEN,) * len(record.args or ())
    return True


def _hiding(paths: Iterable[str]) -> Callable[[logging.LogRecord], bool]:
    """Return what lets a line about the collector pass without the path that was asked for: it may have a token in it.

    Args:
        paths: Those that are known, which the collector may repeat in words of its own.
    """
    known = list(paths)

    def hide(record: logging.LogRecord) -> bool:
        told = _PATH.sub(rf"\1{HIDDEN}", record.getMessage())
        for path in known:
            told = told.replace(path, HIDDEN)
        record.msg, record.args = told, ()
        return True

    return hide


@contextmanager
def _ended(span: trace.Span) -> Iterator[Span]:
    """End a span, and say of one that is left by an exception that it failed: never by the message, as that is told."""
    ours = OpenTelemetrySpan(span)
    try:
        yield ours
    except BaseException as error:
        ours.fail(type(error).__qualname__)
        raise
    finally:
        span.end()


def _context_of(traceparent: str) -> Context:
    return _W3C.extract({"traceparent": traceparent}, Context())

"""Spans by OpenTelemetry. Imported only once traces are asked for: its libraries are the optional extra `otel`."""

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus

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

_LIBRARIES = ("opentelemetry", "requests", "urllib3")
"""Those whose loggers tell of a collector's address, its headers and its answers. Many are made late."""

_HARMLESS = {"spans", *(status.phrase for status in HTTPStatus)}


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


def exporting_tracer(service: str) -> Tracer:
    """Return a tracer that exports as the variables of OpenTelemetry say: in a thread, from a queue that is bounded.

    Args:
        service: Name of the program, if the variables give none.

    Raises:
        ValueError: They are wrong.
    """
    for name in _LIBRARIES:
        logger = logging.getLogger(name)
        logger.propagate, logger.handlers = False, [_WordsHidden()]
    given = OTELResourceDetector().detect().attributes
    resource = Resource.create({SERVICE_NAME: service, SERVICE_VERSION: VERSION, **given})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OpenTelemetryTracer(provider)


class _WordsHidden(logging.Handler):
    """Hands on what a library logs about the collector, with numbers and the kinds of errors, and with no other word.

    Its address and headers often have a token in them. It comes back in more forms than anybody can list: in errors, in
    what the collector answers, and in malformed headers.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a line on to the program's own handlers, as another one: whatever else is in this one is left out."""
        message = str(record.msg if isinstance(record.msg, str) else _without_words(record.msg))
        given = record.args if isinstance(record.args, tuple) else ()
        if record.exc_info and record.exc_info[1]:
            message = f"{message if given else message.replace('%', '%%')}: %s"
            given = (*given, record.exc_info[1])
        place, hidden = (record.pathname, record.lineno), tuple(_without_words(argument) for argument in given)
        logging.getLogger().handle(logging.LogRecord(record.name, record.levelno, *place, message, hidden, None))


def _without_words(argument: object) -> object:
    if isinstance(argument, BaseException):
        return type(argument).__qualname__
    is_harmless = isinstance(argument, str) and argument in _HARMLESS
    return argument if argument is None or is_harmless or isinstance(argument, int | float) else HIDDEN


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

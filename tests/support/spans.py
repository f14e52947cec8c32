"""The spans that are made, kept in memory in place of being exported."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.trace import SpanContext

from timemachine import tracing
from timemachine.otel import OpenTelemetryTracer
from timemachine.tracing import Tracer

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"
"""The example of W3C Trace Context."""


class Spans:
    """What has been recorded since this was made."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()

    @property
    def all(self) -> tuple[ReadableSpan, ...]:
        """The spans that have ended, in this order."""
        return tuple(self.exporter.get_finished_spans())

    def one(self) -> ReadableSpan:
        (span,) = self.all
        return span

    def having(self, **attributes: Any) -> list[ReadableSpan]:
        """Return the spans with these attributes; a double underscore in a name stands for a dot."""
        wanted = {name.replace("__", "."): value for name, value in attributes.items()}.items()
        return [span for span in self.all if wanted <= told(span).items()]


@contextmanager
def recording(sampler: Sampler | None = None) -> Iterator[Spans]:
    """Turn traces on, and record all of them unless the sampler says otherwise."""
    spans = Spans()
    provider = TracerProvider(sampler, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans.exporter))
    tracing.use(OpenTelemetryTracer(provider))
    try:
        yield spans
    finally:
        tracing.use(Tracer())


def told(span: ReadableSpan) -> dict[str, Any]:
    """Return the attributes of a span."""
    return dict(span.attributes or {})


def header_of(context: SpanContext | None) -> str:
    """Return the `traceparent` by which others know a span."""
    assert context is not None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def links_of(span: ReadableSpan) -> list[str]:
    """Return the `traceparent` of each request that a span is linked to."""
    return [header_of(link.context) for link in span.links]

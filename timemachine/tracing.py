"""Traces of the requests to the API and to receivers, off until `start` (decision 35).

While they are off, nothing of OpenTelemetry is imported, and a span does nothing.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from urllib.parse import unquote, urlsplit

from timemachine.domain.traces import trace_id_of

Attributes = Mapping[str, str | int]

EXPORTER = "OTEL_TRACES_EXPORTER"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
HEADERS = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")

FLUSH_TIME = 3.0
"""Seconds that the last spans get to be exported when a program ends."""

log = logging.getLogger(__name__)


class Span:
    """A request as a part of a trace. This one is of no trace, and does nothing."""

    traceparent: str | None = None
    """The header that names the span to others; None while traces are off."""

    is_recorded = False
    """Whether it will be exported: traces are on, and the sampler has taken it."""

    @property
    def headers(self) -> dict[str, str]:
        """The headers by which a receiver goes on with the trace."""
        return {"traceparent": self.traceparent} if self.traceparent else {}

    @property
    def log_fields(self) -> dict[str, str]:
        """The fields of a log line by which operators find the trace."""
        return {"trace_id": trace_id_of(self.traceparent)} if self.traceparent else {}

    def set(self, attributes: Attributes) -> None:
        """Add attributes."""

    def rename(self, name: str) -> None:
        """Give it another name."""

    def fail(self, error_type: str) -> None:
        """Say that the request failed, in a word of few, such as a status."""


class Tracer:
    """Makes spans. This one makes those that do nothing."""

    @contextmanager
    def server_span(self, name: str, attributes: Attributes, parent: str | None) -> Iterator[Span]:
        """Span a request that comes in.

        Args:
            parent: Its `traceparent`, if it has a valid one; else it begins a trace.
        """
        yield Span()

    @contextmanager
    def client_span(self, name: str, attributes: Attributes, links: Iterable[str]) -> Iterator[Span]:
        """Span a request that goes out, as the first one of a trace.

        Args:
            links: The `traceparent` of each request that led to it.
        """
        yield Span()

    def close(self, timeout: float) -> None:
        """Export what was not exported yet, for as many seconds at the most."""


_tracer = Tracer()


def server_span(name: str, attributes: Attributes, *, parent: str | None) -> AbstractContextManager[Span]:
    """Span a request that comes in; see `Tracer.server_span`. It fails by an exception, whose message is not kept."""
    return _tracer.server_span(name, attributes, parent)


def client_span(name: str, attributes: Attributes, *, links: Iterable[str]) -> AbstractContextManager[Span]:
    """Span a request that goes out; see `Tracer.client_span`. It fails by an exception, whose message is not kept."""
    return _tracer.client_span(name, attributes, links)


def start(env: Mapping[str, str], *, service: str) -> None:
    """Make spans from now on, and export them, if variables of OpenTelemetry ask for that.

    What is wrong with them is logged, and traces stay off. They are often set for all programs of a machine, and no
    program may fail for want of its traces.

    Args:
        env: The environment, which OpenTelemetry reads by itself, too.
        service: Name of the program in its traces, if the variables give none.
    """
    if not is_wanted(env):
        return
    try:
        check(env)
        from timemachine.otel import exporting_tracer

        use(exporting_tracer(service))
    except ImportError as error:
        reason = f"the extra `otel` of timemachine is not installed: {error}"
        log.warning("traces are off", extra={"reason": reason})
    except Exception as error:
        log.warning("traces are off", extra={"reason": str(error)})


def stop() -> None:
    """Export the last spans, and make no more. Raises nothing: a program has to end all the same."""
    tracer = _tracer
    use(Tracer())
    try:
        tracer.close(FLUSH_TIME)
    except Exception:
        log.exception("last spans not exported")


def use(tracer: Tracer) -> None:
    """Have spans made by this one from now on."""
    global _tracer
    _tracer = tracer


def is_wanted(env: Mapping[str, str]) -> bool:
    """Return whether variables of OpenTelemetry ask for traces: by naming an exporter, or where to export to.

    OpenTelemetry's own default is to export to this machine whenever a program can.
    """
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if exporter := env.get(EXPORTER, "").strip():
        return exporter != "none"
    return any(env.get(name) for name in ENDPOINTS)


def check(env: Mapping[str, str]) -> None:
    """Refuse what the extra cannot do.

    Raises:
        ValueError: Another exporter than `otlp`, another protocol than `http/protobuf`, an endpoint that is no URL, or
            a header that cannot be sent. Its value is a secret, and whoever tries to send it would tell it.
    """
    exporter = env.get(EXPORTER, "").strip() or "otlp"
    if exporter != "otlp":
        raise ValueError(f"{EXPORTER}: it must be `otlp` or `none`")
    name, protocol = next(((name, env[name]) for name in PROTOCOLS if env.get(name)), ("", "http/protobuf"))
    if protocol != "http/protobuf":
        raise ValueError(f"{name}: it must be `http/protobuf`")
    for name in ENDPOINTS:
        if env.get(name) and not _is_url(env[name]):
            raise ValueError(f"{name}: it must be `http://` or `https://`, and a host, with a port where it needs one")

    name, headers = next(((name, env[name]) for name in HEADERS if env.get(name)), ("", ""))
    if any(ord(character) < ord(" ") for part in _parts_of(headers) for character in part):
        raise ValueError(f"{name}: there is a control character in it")


def _parts_of(headers: str) -> Iterator[str]:
    """Return names and values as OpenTelemetry reads them: decoded, and without the space around them."""
    for header in headers.split(","):
        for part in header.partition("="):
            yield unquote(part).strip()


def _is_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        return False

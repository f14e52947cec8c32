"""A collector of OpenTelemetry, to which spans are exported over HTTP."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from devstack.ports import LOOPBACK


class Collector(ThreadingHTTPServer):
    """Keeps what is exported to it."""

    def __init__(self) -> None:
        self.received: list[ExportTraceServiceRequest] = []
        self.authorization: str | None = None
        """What the last request was let in by."""
        self.refuse: Callable[[str], str] | None = None
        """Returns the words in which a path is refused, if all are."""
        self.malformed: str | None = None
        """A line among the headers of its answers that is none."""
        super().__init__((LOOPBACK, 0), Handler)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.server_port}"

    @property
    def spans(self) -> list[Span]:
        """The spans that have come, of all programs."""
        scopes = (scope for request in self.received for part in request.resource_spans for scope in part.scope_spans)
        return [span for scope in scopes for span in scope.spans]

    @property
    def resource(self) -> dict[str, str]:
        """What the last program says of itself."""
        (part,) = self.received[-1].resource_spans
        return {attribute.key: attribute.value.string_value for attribute in part.resource.attributes}


class Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.authorization = self.headers["authorization"]
        self.server.received.append(ExportTraceServiceRequest.FromString(body))
        if self.server.refuse:
            self.send_response(404, self.server.refuse(self.path))
            self.send_header("content-length", "0")
        else:
            self.send_response(200)
        if self.server.malformed:
            self.flush_headers()
            self.wfile.write(f"{self.server.malformed}\r\n\r\n".encode())
        else:
            self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        """Log nothing."""


@contextmanager
def collecting() -> Iterator[Collector]:
    """Listen on a free loopback port."""
    with Collector() as collector:
        threading.Thread(target=collector.serve_forever, args=(0.05,)).start()
        try:
            yield collector
        finally:
            collector.shutdown()

"""The span of a request to the API, and what the jobs are linked to that it creates or changes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from litestar.types import HTTPScope, Scope

from api.concurrency_limit import EXEMPT
from timemachine import tracing
from timemachine.domain.keys import holds_key
from timemachine.domain.traces import read_traceparent
from timemachine.tracing import Attributes, Span

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"})
"""Methods that spans tell apart: a client may send any."""

NAMES = {
    "db": "timemachine.db",
    "collection": "timemachine.collection",
    "job_id": "timemachine.job_id",
    "route_id": "timemachine.route",
}
"""What the names in a path are called in a span."""

MAX_PATH = 512
"""Characters of a path that is told. The API has none as long; a client may send 64 KiB, and spans wait in memory."""

SERVER_ERROR = 500
"""The least status that is the service's own fault."""

_LINKS = "timemachine_trace_links"
"""Where the links stand in the scope's state, which all copies of the scope share."""


def trace_links_of(scope: Scope) -> tuple[str, ...]:
    """Return the `traceparent` of a request, if it has one: its span's, or else the one that its client sent."""
    found: tuple[str, ...] = scope["state"].get(_LINKS, ())
    return found


@contextmanager
def request_span(scope: HTTPScope, request_id: str) -> Iterator[Span]:
    """Span a request, as a part of its client's trace. Health checks have no span."""
    if scope["path"] in EXEMPT:
        yield Span()
        return
    traceparent = _given_traceparent(scope)
    with tracing.server_span(_method(scope), _attributes(scope, request_id), parent=traceparent) as span:
        link = span.traceparent if span.is_recorded else traceparent
        scope["state"][_LINKS] = (link,) if link else ()
        yield span


def note_answer(
    span: Span, scope: HTTPScope, *, route: str | None, names: Mapping[str, object], status: int | None
) -> None:
    """Tell what is known of a request once it is answered.

    Args:
        route: The path of its handler, with braces; None where it came to none.
        names: What stands for the braces.
        status: None where there was no answer.
    """
    if not span.is_recorded:
        return
    if route:
        span.rename(f"{_method(scope)} {route}")
        span.set({"http.route": route})
    if _may_be_told(scope["path"]):
        span.set({"url.path": scope["path"]})
        span.set({NAMES[name]: str(value) for name, value in names.items() if name in NAMES})
    if status:
        span.set({"http.response.status_code": status})
        if status >= SERVER_ERROR:
            span.fail(str(status))


def _attributes(scope: HTTPScope, request_id: str) -> Attributes:
    """Return what is told of any request. Its path is not known yet: it may come as a whole URL, as for a proxy."""
    return {
        "http.request.method": _method(scope, other="_OTHER"),
        "url.scheme": scope["scheme"],
        "timemachine.request_id": request_id,
    }


def _may_be_told(path: str) -> bool:
    """Return whether a path is told: none with a key in it, which is there by mistake, and none unlike the API's."""
    return path.startswith("/") and len(path) <= MAX_PATH and not holds_key(path)


def _method(scope: HTTPScope, *, other: str = "HTTP") -> str:
    return scope["method"] if scope["method"] in METHODS else other


def _given_traceparent(scope: HTTPScope) -> str | None:
    """Return the client's `traceparent`, if it is valid; of two none is.

    Its `tracestate` is passed over: it would go along with requests of the same trace, and the API makes none.
    """
    given = [value for name, value in scope["headers"] if name == b"traceparent"]
    return read_traceparent(given[0].decode("latin-1")) if len(given) == 1 else None

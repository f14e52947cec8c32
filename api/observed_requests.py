"""What is seen of each request from outside: an id, which its answer and its lines in the log have, metrics, a span."""

import re
import secrets
import time
from http import HTTPStatus

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from api.request_span import note_answer, request_span
from timemachine import metrics
from timemachine.domain.keys import holds_key
from timemachine.telemetry import log_context
from timemachine.tracing import Span

HEADER = b"x-request-id"

NONE = "none"
"""Label of the route of a request that no handler got, and of the status of one that was not answered."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"})
"""Methods that metrics tell apart: a client may send any."""

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_ID, _ROUTE, _NAMES = "timemachine_request_id", "timemachine_route", "timemachine_names"
"""Where what is known of a request stands in the scope's state, which all copies of the scope share."""


class ObservedRequests:
    """Gives each request its id and its span, and counts it with the time that it took."""

    def __init__(self, app: ASGIApp) -> None:
        """Take the application behind, which is to have `noting_route` at its other end."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have a request answered."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        request_id = _given_id(scope) or new_request_id()
        scope["state"][_ID] = request_id
        with request_span(scope, request_id) as span, log_context(request_id=request_id, **span.log_fields):
            await self._observe(scope, receive, send, request_id, span)

    async def _observe(self, scope: HTTPScope, receive: Receive, send: Send, request_id: str, span: Span) -> None:
        method, state = scope["method"], scope["state"]
        status, began = NONE, time.monotonic()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
                message["headers"] = [*message["headers"], (HEADER, request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except OSError:  # the client went away
            raise
        except Exception:
            status = str(HTTPStatus.INTERNAL_SERVER_ERROR.value) if status == NONE else status  # as the server answers
            raise
        finally:
            known_method, route = method if method in METHODS else metrics.OTHER, state.get(_ROUTE, NONE)
            metrics.HTTP_REQUESTS.add(known_method, route, status)
            metrics.HTTP_REQUEST_DURATION.record(time.monotonic() - began, known_method, route)
            answered = None if status == NONE else int(status)
            matched = None if route == NONE else route
            note_answer(span, scope, route=matched, names=state.get(_NAMES, {}), status=answered)


def noting_route(app: ASGIApp) -> ASGIApp:
    """Note which handler's path a request has, and the names in it, as the framework finds out."""

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        finally:
            scope["state"][_ROUTE] = scope.get("path_template", NONE)
            scope["state"][_NAMES] = scope.get("path_params", {})

    return handle


def request_id_of(scope: Scope) -> str | None:
    """Return the id of a request, which it has unless it came past `ObservedRequests`."""
    found: str | None = scope["state"].get(_ID)
    return found


def new_request_id() -> str:
    """Return an id for a request that has none."""
    return secrets.token_hex(16)


def _given_id(scope: Scope) -> str | None:
    given = next((value for name, value in scope["headers"] if name == HEADER), b"")
    text = given.decode("ascii") if _REQUEST_ID.fullmatch(given) else None
    # It is kept and shown to others, and who mistakes one header for another must not lose a key by that.
    return None if text is None or holds_key(text) else text

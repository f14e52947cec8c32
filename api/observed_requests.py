"""What is seen of each request from outside: an id, which its answer and its lines in the log have."""

import re
import uuid

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from timemachine.domain.keys import holds_key
from timemachine.telemetry import log_context

HEADER = b"x-request-id"

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_ID = "timemachine_request_id"
"""Where the id of a request stands in the scope's state, which all copies of the scope share."""


class ObservedRequests:
    """Gives each request its id."""

    def __init__(self, app: ASGIApp) -> None:
        """Take the application behind."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have a request answered."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        request_id = _given_id(scope) or new_request_id()
        scope["state"][_ID] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (HEADER, request_id.encode())]
            await send(message)

        with log_context(request_id=request_id):
            await self._app(scope, receive, send_with_id)


def request_id_of(scope: Scope) -> str | None:
    """Return the id of a request, which it has unless it came past `ObservedRequests`."""
    found: str | None = scope["state"].get(_ID)
    return found


def new_request_id() -> str:
    """Return an id for a request that has none."""
    return uuid.uuid4().hex


def _given_id(scope: Scope) -> str | None:
    given = next((value for name, value in scope["headers"] if name == HEADER), b"")
    text = given.decode("ascii") if _REQUEST_ID.fullmatch(given) else None
    # It is kept and shown to others, and who mistakes one header for another must not lose a key by that.
    return None if text is None or holds_key(text) else text

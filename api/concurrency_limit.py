"""How many requests are in flight at a time: what comes on top is refused at once, so that no queue grows."""

import asyncio
from typing import cast

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPDisconnectEvent, HTTPReceiveMessage, Receive, Scope, Send

from api.errors import refuse
from timemachine.domain.errors import BusyError

EXEMPT = frozenset({"/livez", "/healthz", "/readyz"})
"""Paths that are always answered: a process that is full is well, and must not be taken for a dead one."""

STREAMED = "/batch/"
"""How the paths begin whose bodies are worked on while they come, and may take longer."""

MAX_STREAMED = 16
"""Requests of these that are let in at a time: each may take minutes."""

BODY_LIMIT = 10.0
"""Seconds within which the body of a request has to be there; of one that is streamed, within which more has to come
once it is waited for."""


class ConcurrencyLimit:
    """Lets so many requests into the application at a time, and refuses the others."""

    def __init__(self, app: ASGIApp, limit: int, *, body_limit: float = BODY_LIMIT) -> None:
        """Take the application, and how many requests may be in it at a time."""
        self._app = app
        self._free = limit
        self._free_streamed = MAX_STREAMED
        self._body_limit = body_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it with E014 and its body unread."""
        if scope["type"] != ScopeType.HTTP or scope["path"] in EXEMPT:
            await self._app(scope, receive, send)
            return
        streamed = scope["path"].startswith(STREAMED)
        if self._free == 0 or (streamed and self._free_streamed == 0):
            error = BusyError("the API has as many requests in flight as it takes; repeat this one in a moment")
            await refuse(error, scope, receive, send)
            return
        self._free -= 1
        self._free_streamed -= streamed
        try:
            in_time = _piece_in_time if streamed else _in_time
            await self._app(scope, in_time(receive, self._body_limit), send)
        finally:
            self._free += 1
            self._free_streamed += streamed


def _in_time(receive: Receive, limit: float) -> Receive:
    """Take a client that is slow with its body for one that went away, or a few of them would hold every slot."""
    until = asyncio.get_running_loop().time() + limit

    async def receive_in_time() -> HTTPReceiveMessage:
        return await _received(receive, until)

    return receive_in_time


def _piece_in_time(receive: Receive, limit: float) -> Receive:
    """The same of a client that is slow with any piece of its body."""

    async def receive_in_time() -> HTTPReceiveMessage:
        return await _received(receive, asyncio.get_running_loop().time() + limit)

    return receive_in_time


async def _received(receive: Receive, until: float) -> HTTPReceiveMessage:
    try:
        async with asyncio.timeout_at(until):
            return cast("HTTPReceiveMessage", await receive())
    except TimeoutError:
        return HTTPDisconnectEvent(type="http.disconnect")

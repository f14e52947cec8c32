"""Who sends a request, and whether its key allows it: known before anything is read of what it asks for."""

import ipaddress
import logging
import math
import re
from typing import Any

import msgspec
from litestar import Request
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.handlers import BaseRouteHandler
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult
from litestar.openapi.spec import Components, SecurityScheme
from litestar.types import Scope

from api.key_cache import KeyCache
from api.observed_requests import request_id_of
from api.rate_limit import RateLimits
from api.request_span import trace_links_of
from timemachine.domain.audit import Caller
from timemachine.domain.errors import BusyError, ForbiddenError, UnauthorizedError, UnavailableError
from timemachine.domain.keys import ApiKey, PresentedKey, Role, mistaken_for_key, parse_key
from timemachine.settings import Auth, Settings

log = logging.getLogger(__name__)

OPEN = {"exclude_from_auth": True}
"""The `opt` of a handler, or of all of a router's, that needs no key."""

SCHEME = "ApiKey"
SECURITY: list[dict[str, list[str]]] = [{SCHEME: []}]
NO_SECURITY: list[dict[str, list[str]]] = [{}]
COMPONENTS = Components(
    security_schemes={
        SCHEME: SecurityScheme(
            type="http", scheme="bearer", bearer_format="tm_…", description="A key, as `POST /key` returns it once."
        )
    }
)

FAILURES_PER_SECOND = 5.0
"""Requests without a valid key that an address may send, on the average, before it is told to wait."""

FAILURES_AT_ONCE = 50.0
ADDRESSES_REMEMBERED = 10_000
KEYS_REMEMBERED = 10_000

_HOW = "a key is needed, in one header: `Authorization: Bearer tm_…`"
_NOT_VALID = "this key is not valid"
_BEARER = re.compile(rb"bearer +([\x21-\x7e]+)", re.IGNORECASE)


AuthenticatedRequest = Request[Caller, Any, State]
"""A request whose `user` is who sends it."""


class Requires(msgspec.Struct, frozen=True):
    """A guard that lets keys of a role pass which open the db in the path. Every handler has one, or is `OPEN`."""

    role: Role

    async def __call__(self, connection: ASGIConnection[Any, Caller, Any, Any], _: BaseRouteHandler) -> None:
        """Let pass or refuse.

        Raises:
            ForbiddenError: The key does not open the db, or its role does not suffice.
        """
        key = connection.user.key
        if key is None:
            return
        db = connection.path_params.get("db")
        try:
            key.check(self.role, db)
        except ForbiddenError as error:
            log.warning("refused for its key", extra={"key": key.id, "db": db, "reason": str(error)})
            raise


def requires(role: Role) -> Requires:
    """Return the guard of a handler that needs a role."""
    return Requires(role)


class Authentication:
    """Finds out who sends a request."""

    def __init__(self, cache: KeyCache, settings: Settings) -> None:
        """Take what knows the keys, and whether there is a need for one."""
        self._cache = cache
        self._needs_key = settings.auth is Auth.KEYS
        self._per_second = settings.requests_per_second_per_key
        self._failures = RateLimits(remembered=ADDRESSES_REMEMBERED)
        self._requests = RateLimits(remembered=KEYS_REMEMBERED)

    async def caller(self, scope: Scope) -> Caller:
        """Return who sends a request.

        Raises:
            UnauthorizedError: It has no valid key. The message says no more than that of one that has the right form.
            BusyError: Too many came with this key, or without a valid one from this address.
            UnavailableError: Whether the key is valid cannot be told, because Postgres does not answer.
        """
        address, request_id, links = _address(scope), request_id_of(scope), trace_links_of(scope)
        if not self._needs_key:
            return Caller(key=None, address=address, request_id=request_id, trace_links=links)
        try:
            key, secret_hash = await self._valid_key(scope, address)
        except UnauthorizedError:
            wait = self._failures.acquire(_network(address), per_second=FAILURES_PER_SECOND, burst=FAILURES_AT_ONCE)
            if wait:
                raise _busy("too many requests without a valid key came from this address", wait) from None
            raise
        self._check_rate(key)
        return Caller(key=key, secret_hash=secret_hash, address=address, request_id=request_id, trace_links=links)

    async def is_admin(self, scope: Scope) -> bool:
        """Return whether a request, to a handler that needs no key, comes from who may know everything."""
        try:
            key = (await self.caller(scope)).key
        except (UnauthorizedError, BusyError, UnavailableError):
            return False
        return key is None or (key.role is Role.ADMIN and key.dbs is None)

    async def check_again(self, caller: Caller) -> None:
        """Refuse to go on with what takes long, once the key that asked for it is valid no more.

        Raises:
            UnauthorizedError: It was revoked or rotated some seconds ago, or has expired.
            UnavailableError: As `caller`.
        """
        if caller.key is None or caller.secret_hash is None:
            return
        key, _ = await self._cache.check(PresentedKey(caller.key.id, caller.secret_hash))
        if key is None:
            raise UnauthorizedError(_NOT_VALID)

    async def _valid_key(self, scope: Scope, address: str) -> tuple[ApiKey, bytes]:
        presented = _presented(scope)
        key, reason = await self._cache.check(presented)
        if key is None:
            log.warning("no valid key", extra={"key": presented.id, "address": address, "reason": reason})
            raise UnauthorizedError(_NOT_VALID)
        return key, presented.hash

    def _check_rate(self, key: ApiKey) -> None:
        per_second = key.requests_per_second or self._per_second
        if per_second is None:
            return
        wait = self._requests.acquire(key.id, per_second=per_second, burst=max(1.0, per_second))
        if wait:
            raise _busy(f"this key may send {per_second:g} requests a second", wait)


class KeyMiddleware(AbstractAuthenticationMiddleware):
    """Puts who sends a request into it, as `request.user`."""

    async def authenticate_request(self, connection: ASGIConnection[Any, Any, Any, Any]) -> AuthenticationResult:
        """Return who it is, or refuse the request; see `Authentication.caller`."""
        authentication: Authentication = connection.app.state.authentication
        return AuthenticationResult(user=await authentication.caller(connection.scope), auth=None)


def _presented(scope: Scope) -> PresentedKey:
    """Return the key that a request has.

    Raises:
        UnauthorizedError: It has none, or more than one, or one of another form.
    """
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    found = _BEARER.fullmatch(given[0]) if len(given) == 1 else None
    if found is None:
        raise UnauthorizedError(_HOW)
    text = found[1].decode("ascii")
    if presented := parse_key(text):
        return presented
    raise UnauthorizedError(mistaken_for_key(text) or _NOT_VALID)


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else "unknown"


def _network(address: str) -> str:
    """Return what counts as one address: of IPv6, the network that one customer has."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    return address if ip.version == 4 else str(ipaddress.ip_network((ip, 64), strict=False))


def _busy(reason: str, wait: float) -> BusyError:
    return BusyError(f"{reason}; repeat this one in a moment", retry_after=math.ceil(wait))

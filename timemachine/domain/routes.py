"""Routes: where the jobs of a database are delivered."""

import ipaddress
import re
from datetime import datetime
from enum import StrEnum
from typing import Literal
from urllib.parse import SplitResult, urlsplit

import msgspec

from timemachine.domain.errors import MalformedError, WebhookUrlError
from timemachine.domain.retry import Retry

MAX_URL = 2048
MAX_HEADERS = 20
HIDDEN = "***"
"""What is shown in place of a header's value."""
MAX_HEADER_CHARACTERS = 8192

Scheme = Literal["https", "http"]

HEADER_NAME_PATTERN = r"^[a-z0-9!#$%&'*+.^_`|~-]{1,128}$"
HEADER_VALUE_PATTERN = r"^(?:[!-~](?:[ -~]*[!-~])?)?$"
OUR_HEADERS = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)

OUR_HEADER_PREFIXES = ("webhook-", "timemachine-")

_HEADER_NAME = re.compile(HEADER_NAME_PATTERN.removesuffix("$") + r"\Z")
_HEADER_VALUE = re.compile(HEADER_VALUE_PATTERN.removesuffix("$") + r"\Z")
_SCHEME = re.compile(r"^([^/?#]*)://")
_PRINTABLE = re.compile(r"^[!-~]+\Z")
_HOST = re.compile(r"^(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_][a-z0-9_-]{0,62})*\.?\Z", re.IGNORECASE)
# A whole netloc: an IPv6 address in brackets or a name, then at most a port. Parsers differ on what is neither.
_NETLOC = re.compile(r"^(?:\[[0-9a-f:.]+\]|[^\[\]:@]*)(?::[0-9]*)?\Z", re.IGNORECASE)
# What ends in a number is an address to resolvers, which also take shortened, octal and hexadecimal ones: `127.1`.
_NUMERIC = re.compile(r"(?:^|\.)(?:[0-9]+|0x[0-9a-f]*)\.?\Z", re.IGNORECASE)


class RestRoute(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="REST"):
    """A webhook: jobs are delivered by HTTP POST.

    Stored in Postgres as JSON: fields may only be added, with defaults.
    """

    id: str
    webhook_url: str
    """As the client gave it; see `target_url`."""
    retry: Retry = Retry()
    timeout: float | None = None
    """Seconds that one attempt may take; None for the worker's setting."""
    max_in_flight: int | None = None
    """Requests at a time, over all workers; None for no limit."""
    header_names: tuple[str, ...] = ()
    """Names of the extra headers; their values are kept apart, encrypted."""


# Stored: names are not to be changed.
class RouteState(StrEnum):
    """Whether deliveries may go to a route."""

    ACTIVE = "active"
    PAUSED = "paused"
    """By a client, until it resumes it."""
    DISABLED = "disabled"
    """By its failures, until a client resumes it."""


class RouteStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Whether deliveries may go to a route, since when and why."""

    state: RouteState = RouteState.ACTIVE
    since: datetime
    reason: str | None = None


class RouteNews(StrEnum):
    """What the answer to an attempt means for its route, other than one failure more."""

    GONE = "gone"
    """It is disabled: its receiver wants nothing any more."""
    RECOVERED = "recovered"
    """It fails no longer."""


# Another kind of route is another struct with a tag of its own, joined here with `|`.
Route = RestRoute


def target_url(webhook_url: str, *, default_scheme: str) -> str:
    """Return the URL to call for a `webhook_url`, which may lack its scheme as in `example.org/hook?x=1`.

    Raises:
        WebhookUrlError: Not a plain http or https URL with a host; the message says what is wrong.
    """
    if len(webhook_url) > MAX_URL:
        raise WebhookUrlError(f"webhook_url: at most {MAX_URL} characters are allowed")
    if not _PRINTABLE.match(webhook_url) or "\\" in webhook_url:
        raise WebhookUrlError("webhook_url: only printable ASCII without spaces and backslashes is allowed")
    url = webhook_url if has_scheme(webhook_url) else f"{default_scheme}://{webhook_url}"
    try:
        _check_parts(urlsplit(url))
    except ValueError as error:
        raise WebhookUrlError(f"webhook_url: {error}") from error
    return url


def has_scheme(webhook_url: str) -> bool:
    """Return whether a `webhook_url` says itself how it is called."""
    return _SCHEME.match(webhook_url) is not None


def _check_parts(parts: SplitResult) -> None:
    """Raise ValueError for a URL that is not to be called, whatever it points to."""
    if parts.scheme not in ("https", "http"):
        raise ValueError("only https and http are allowed")
    if "@" in parts.netloc:
        raise ValueError("user names and passwords are not allowed")
    if not _NETLOC.match(parts.netloc):
        raise ValueError("the host or the port is malformed")
    if parts.fragment:
        raise ValueError("a fragment (#…) would never reach the receiver")
    if parts.netloc.endswith(":") or parts.port == 0:
        raise ValueError("the port must be between 1 and 65535")
    _check_host(parts)


def _check_host(parts: SplitResult) -> None:
    """Raise ValueError unless the host is a name or an address."""
    host = parts.hostname or ""
    if parts.netloc.startswith("["):
        ipaddress.IPv6Address(host)
    elif not _HOST.match(host):
        raise ValueError("the host is missing or malformed")
    elif _NUMERIC.search(host):
        ipaddress.IPv4Address(host)


def check_headers(headers: dict[str, str]) -> None:
    """Refuse extra headers that could not be sent, or that would change what we say ourselves.

    Raises:
        MalformedError: The message names the header, and never shows its value.
    """
    if len(headers) > MAX_HEADERS or sum(map(len, (*headers, *headers.values()))) > MAX_HEADER_CHARACTERS:
        raise MalformedError(f"headers: at most {MAX_HEADERS}, and {MAX_HEADER_CHARACTERS} characters in all")
    for name, value in headers.items():
        if not _HEADER_NAME.match(name):
            raise MalformedError("headers: a name must be lower case and of the characters of an HTTP token")
        if name in OUR_HEADERS or name.startswith(OUR_HEADER_PREFIXES):
            raise MalformedError(f"headers: {name} is set by the service itself")
        if value == HIDDEN:
            raise MalformedError(f"headers: {HIDDEN} is what is shown in place of {name}, not its value")
        if not _HEADER_VALUE.match(value):
            raise MalformedError(f"headers: the value of {name} must be printable ASCII, without spaces at its ends")

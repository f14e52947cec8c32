"""The door to receivers: one POST with one limit on its time, and its answer or the reason why there is none.

The only file that imports httpx.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import lru_cache, partial
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

import httpcore
import httpx
import msgspec

from timemachine.connections import Connector, Resolve, SystemResolver
from timemachine.delivery import Kind
from timemachine.errors import BlockedTargetError, NoAnswerError
from timemachine.keep_alive import KeepAlive
from timemachine.targets import Targets, literal_address

MAX_ANSWER_BYTES = 64 * 1024
"""Bytes of an answer that are read; a longer one costs its connection."""

LAST_LOOK = 0.05
"""Seconds in which an answer may still be read, when the process was stopped while the time ran out."""

BODY_TIME = 1.0
"""Seconds that the body of an answer may take once its head is there; a slower one costs its connection."""

URLS_KEPT = 1000
"""URLs that are kept as they were found to be callable."""

IDLE_TIME = 5.0
"""Seconds that a connection is kept for the next delivery to the same receiver."""

# An answer is read to its first bytes only, and a compressed one would need all of them to be readable.
_OURS = {"accept": "*/*", "accept-encoding": "identity", "connection": "keep-alive", "user-agent": "timemachine"}
_BROKEN = (
    httpcore.ProtocolError,
    httpcore.NetworkError,
    httpcore.UnsupportedProtocol,
    httpx.HTTPError,
    httpx.InvalidURL,
    OSError,
    ValueError,
)
_REASON_LENGTH = 200


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a receiver answered."""

    status: int
    body: bytes = b""
    """The first bytes of the answer's body, up to `MAX_ANSWER_BYTES`."""
    retry_after: str | None = None
    """The `Retry-After` header as it came."""

    @property
    def taken(self) -> bool:
        """Whether the receiver took the delivery: any 2xx. A redirect is not followed and counts as a failure."""
        return 200 <= self.status < 300


class WebhookClient:
    """Makes deliveries. Open it once per process with `async with`.

    Each connection goes to an address that `targets` lets be called, or else to the egress proxy. Redirects are not
    followed, and nothing is taken from the process's proxy variables or netrc file.
    """

    def __init__(
        self,
        *,
        timeout: float,
        max_connections: int,
        targets: Targets,
        egress_proxy: str | None = None,
        resolve: Resolve | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """Set the limits.

        Args:
            timeout: Seconds for one POST in all, from look-up to the answer's head.
            max_connections: Connections at a time; no fewer than there are attempts at a time.
            targets: Where deliveries may go.
            egress_proxy: `http://[user:password@]host[:port]` that all deliveries go through. It looks the names up,
                and must do so with rules of its own; only addresses in the URL itself are then checked here.
            resolve: Looks names up, if not the system.
            ssl_context: Whom to trust, if not the system's and Mozilla's authorities.
        """
        self._timeout = timeout
        self._places = asyncio.Semaphore(max_connections)
        # Depends on nothing else, and many deliveries go to the same URL.
        self._called = lru_cache(URLS_KEPT)(partial(_called, targets))
        self._system = SystemResolver()
        look_up = resolve or self._system
        self._connector = (
            Connector(look_up, lambda _: True, peer="the egress proxy")
            if egress_proxy
            else Connector(look_up, targets.may_call)
        )
        # Only makes connections: of each kind that a proxy may need, too.
        pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context or httpcore.default_ssl_context(),
            keepalive_expiry=IDLE_TIME,
            proxy=_proxy(egress_proxy) if egress_proxy else None,
            network_backend=self._connector,
        )
        # Used without `httpx.AsyncClient`, which would keep cookies, read where a redirect goes, and log each URL.
        self._transport = _Transport(
            KeepAlive(pool.create_connection, max_connections), proxied=egress_proxy is not None
        )

    async def __aenter__(self) -> Self:
        """Open the client."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close every connection."""
        await self._transport.aclose()
        self._system.close()

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], *, timeout: float | None = None) -> Answer:  # noqa: ASYNC109 - a limit on all of it but the answer's body
        """POST `body` once.

        The answer's head decides; its body cannot take that back, however slowly it comes.

        Args:
            url: As `routes.target_url` returned it.
            body: The request's body.
            headers: Headers beyond those that HTTP needs.
            timeout: Seconds for this POST, if not the client's.

        Raises:
            BlockedTargetError: The URL points where deliveries may not go.
            NoAnswerError: No answer in time, or none at all; the message tells why, for a person to read.
        """
        limit = timeout or self._timeout
        deadline = asyncio.get_running_loop().time() + limit
        with _told_apart(limit):
            request = self._request(url, body, headers, limit)
            async with self._place(deadline):
                return await self._answer(request, deadline)

    @asynccontextmanager
    async def _place(self, deadline: float) -> AsyncIterator[None]:
        """Hold one of the places for connections."""
        async with asyncio.timeout_at(deadline):
            await self._places.acquire()
        try:
            yield
        finally:
            self._places.release()

    async def _answer(self, request: httpx.Request, deadline: float) -> Answer:
        async with self._connector.none_left_behind(), _until(deadline):
            response = await self._transport.handle_async_request(request)
        try:
            return Answer(
                status=response.status_code,
                body=await _first_bytes(response, deadline),
                retry_after=next(iter(response.headers.get_list("retry-after")), None),
            )
        finally:
            await response.aclose()

    def _request(self, url: str, body: bytes, headers: Mapping[str, str], limit: float) -> httpx.Request:
        called = self._called(url)
        host = called.netloc.decode("ascii")  # httpx itself would decode the name for it, and not every one can be
        return httpx.Request(
            "POST",
            called,
            content=body,
            headers={**_OURS, "host": host, **headers},
            extensions={
                "timeout": {"connect": limit},
                "sni_hostname": called.raw_host.decode("ascii").removesuffix("."),
            },
        )


class _Transport(httpx.AsyncBaseTransport):
    """Sends what httpx asks for through our own connections, which are checked."""

    def __init__(self, connections: KeepAlive, *, proxied: bool) -> None:
        self._connections = connections
        self._proxied = proxied

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return as soon as the answer's head is there. Failures are those of httpcore."""
        sent = self._for_httpcore(request)
        connection = await self._connections.borrow(sent.url.origin)
        try:
            response = await connection.handle_async_request(sent)
        except BaseException:
            await self._connections.give_back(connection, sent.url.origin)
            raise
        give_back = partial(self._connections.give_back, connection, sent.url.origin)
        return httpx.Response(response.status, headers=response.headers, stream=_Body(response, give_back))

    def _for_httpcore(self, request: httpx.Request) -> httpcore.Request:
        url, host = request.url, request.url.raw_host
        if self._proxied and b":" in host:
            host = b"[%b]" % host  # httpcore writes it into what it tells a proxy, without the brackets
        return httpcore.Request(
            request.method,
            httpcore.URL(scheme=url.raw_scheme, host=host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.content,
            extensions=request.extensions,
        )

    async def aclose(self) -> None:
        """Close every connection that is kept."""
        await self._connections.aclose()


class _Body(httpx.AsyncByteStream):
    """The body of an answer, as it comes."""

    def __init__(self, response: httpcore.Response, give_back: Callable[[], Awaitable[None]]) -> None:
        self._response = response
        self._give_back = give_back

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._response.aiter_stream()

    async def aclose(self) -> None:
        try:
            await self._response.aclose()
        finally:
            await self._give_back()


def _called(targets: Targets, url: str) -> httpx.URL:
    """Return the URL to call, made of the parts that are checked here: httpx does not read its text again.

    Raises:
        BlockedTargetError: Its host is an address that may not be called.
        ValueError: Its host would be another one to httpx.
    """
    parts = urlsplit(url)
    host = _host(targets, parts.hostname or "")
    if not host:
        raise ValueError("no host")
    query = parts.query.encode("ascii") or None
    called = httpx.URL(scheme=parts.scheme, host=host, port=parts.port, path=parts.path, query=query)
    if called.raw_host != host.encode("ascii"):
        raise ValueError("another host")
    return called


def _host(targets: Targets, name: str) -> str:
    """Return the host, and an address in its usual spelling, which nobody down the line reads otherwise.

    Raises:
        BlockedTargetError: It is an address that may not be called.
    """
    literal = literal_address(name)
    if literal and not targets.may_call(literal):
        raise BlockedTargetError(kind=Kind.BLOCKED, detail=f"{name} is {literal}")
    return str(literal or name)


def _proxy(url: str) -> httpcore.Proxy:
    parts = urlsplit(url)
    auth = (unquote(parts.username or "").encode(), unquote(parts.password or "").encode()) if parts.username else None
    return httpcore.Proxy(httpcore.URL(scheme="http", host=parts.hostname or "", port=parts.port, target="/"), auth)


@contextmanager
def _told_apart(limit: float) -> Iterator[None]:
    """Turn what can go wrong into `NoAnswerError`s. The connector has its own; so what cannot connect here is TLS."""
    try:
        yield
    except (TimeoutError, httpcore.TimeoutException) as error:
        raise NoAnswerError(f"no answer within {limit:g} s", kind=Kind.TIMEOUT) from error
    except httpcore.ProxyError as error:
        raise NoAnswerError(f"the egress proxy refused: {str(error)[:_REASON_LENGTH]}", kind=Kind.CONNECT) from error
    except (httpcore.ConnectError, ssl.SSLError) as error:
        raise NoAnswerError(f"TLS failed: {_tls_reason(error)}", kind=Kind.TLS) from error
    except httpcore.RemoteProtocolError as error:
        raise NoAnswerError(f"no HTTP answer: {str(error)[:_REASON_LENGTH]}", kind=Kind.PROTOCOL) from error
    except (httpcore.NetworkError, OSError) as error:
        raise NoAnswerError("the connection broke before the answer", kind=Kind.PROTOCOL) from error
    except _BROKEN as error:
        # Its message may hold a header's value.
        raise NoAnswerError("the request cannot be put into HTTP", kind=Kind.PROTOCOL) from error


def _tls_reason(error: Exception) -> str:
    cause = error if isinstance(error, ssl.SSLError) else error.__context__  # the pool has cleared its cause
    if isinstance(cause, ssl.SSLCertVerificationError):
        return cause.verify_message
    reason = getattr(cause, "reason", None)
    return str(reason).replace("_", " ").lower() if reason else "the receiver hung up"


@asynccontextmanager
async def _until(deadline: float) -> AsyncIterator[None]:
    """Limit the time of what is inside, but let it see what had arrived by then.

    When all of the process was stopped meanwhile, as by a move of its machine, the limit is over before an answer that
    lies in the socket could be read; to throw that away would deliver the job once more.
    """
    loop = asyncio.get_running_loop()

    def over() -> None:
        stopped = loop.time() - deadline > LAST_LOOK
        limit.reschedule(loop.time() + (LAST_LOOK if stopped else 0.0))

    async with asyncio.timeout(None) as limit:
        timer = loop.call_at(deadline, over)
        try:
            yield
        finally:
            timer.cancel()


async def _first_bytes(response: httpx.Response, deadline: float) -> bytes:
    """Read the answer's body as far as time and the cap allow: it is for people to read, and decides nothing.

    A body that is read to its end also lets the connection be used again.
    """
    body = bytearray()
    with suppress(TimeoutError, httpcore.TimeoutException, *_BROKEN):
        async with asyncio.timeout_at(min(deadline, asyncio.get_running_loop().time() + BODY_TIME)):
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    break
    return bytes(body[:MAX_ANSWER_BYTES])

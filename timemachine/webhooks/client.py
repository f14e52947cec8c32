"""Deliveries over HTTP: one POST with one limit on its time, and its answer or the reason why there is none.

The only file that imports httpx.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from functools import cache, lru_cache, partial
from types import TracebackType
from typing import Self

import certifi
import httpx
import msgspec

from timemachine.domain.address_guard import AddressGuard
from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.delivery import longest_retry_after
from timemachine.domain.errors import NoAnswerError, NotSentError, OwnFaultError
from timemachine.webhooks.connection_pool import ConnectionPool
from timemachine.webhooks.dns import Resolve, SystemResolver
from timemachine.webhooks.egress_proxy import EgressProxy, proxy_failed
from timemachine.webhooks.endpoint import Endpoint
from timemachine.webhooks.exchange import Exchange, HungUpError, NoHttpError
from timemachine.webhooks.network import Connector, Stream

MAX_ANSWER_BYTES = 64 * 1024
"""Bytes of an answer that are read; a longer one costs its connection."""

LAST_LOOK = 0.05
"""Seconds in which an answer may still be read, when the process was stopped while the time ran out."""

BODY_TIME = 1.0
"""Seconds that the body of an answer may take once its head is there; a slower one costs its connection."""

URLS_KEPT = 1000
"""URLs that are kept as they were found to be callable."""

# An answer is read to its first bytes only, and a compressed one would need all of them to be readable.
_OURS = {"accept": "*/*", "accept-encoding": "identity", "connection": "keep-alive", "user-agent": "timemachine"}
_PROXY_AUTHENTICATION = 407
_RECEIVER, _PROXY, _NAME_SERVER = "the receiver", "the egress proxy", "a name server"


class WebhookResponse(msgspec.Struct, frozen=True, kw_only=True):
    """What a receiver answered."""

    status: int
    body: bytes = b""
    """The first bytes of the answer's body, up to `MAX_ANSWER_BYTES`."""
    retry_after: str | None = None
    """What the `Retry-After` headers say, see `delivery.longest_retry_after`."""

    @property
    def taken(self) -> bool:
        """Whether the receiver took the delivery: any 2xx. A redirect is not followed and counts as a failure."""
        return 200 <= self.status < 300


class WebhookClient:
    """Makes deliveries. Open it once per process with `async with`.

    Each connection goes to an address that the guard lets be called, or else to the egress proxy. Redirects are not
    followed, and nothing is taken from the process's proxy variables or netrc file.
    """

    def __init__(
        self,
        *,
        timeout: float,
        max_connections: int,
        address_guard: AddressGuard,
        egress_proxy: str | None = None,
        resolve: Resolve | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """Set the limits.

        Args:
            timeout: Seconds for one POST in all, from look-up to the answer's head.
            max_connections: Connections at a time; no fewer than there are attempts at a time.
            address_guard: Where deliveries may go.
            egress_proxy: `http://[user:password@]host[:port]` that all deliveries go through. It looks the names up,
                and must do so with rules of its own; only addresses in the URL itself are then checked here.
            resolve: Looks names up, if not the system.
            ssl_context: Whom to trust, if not the system's and Mozilla's authorities.
        """
        self._timeout = timeout
        # Depends on nothing else, and many deliveries go to the same URL.
        self._endpoint = lru_cache(URLS_KEPT)(partial(Endpoint.of, address_guard))
        # Used without `httpx.AsyncClient`, which would keep cookies, read where a redirect goes, and log each URL.
        self._transport = WebhookTransport(max_connections, address_guard, egress_proxy, resolve, ssl_context)

    async def __aenter__(self) -> Self:
        """Open the client."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close every connection."""
        await self._transport.aclose()

    async def post(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - a limit on all of it but the answer's body
        may_send: Callable[[], bool] | None = None,
    ) -> WebhookResponse:
        """POST `body` once.

        The first line of the answer's head decides; its body cannot take that back, however slowly it comes. Where a
        connection that was kept turns out to be closed before any answer, the request is made on a new one.

        Args:
            url: As `routes.target_url` returned it.
            body: The request's body.
            headers: Headers beyond those that HTTP needs.
            timeout: Seconds for this POST, if not the client's.
            may_send: Asked when the connection stands, in the same step in which the first byte is written.

        Raises:
            BlockedAddressError: The URL points where deliveries may not go.
            NoAnswerError: No answer in time, or none at all; the message tells why, for a person to read.
            NotSentError: `may_send` returned False, and nothing was written.
            OwnFaultError: This machine lacks what it takes, and nothing was written.
        """
        try:
            endpoint = self._endpoint(url)
            request = httpx.Request(
                "POST",
                f"{endpoint.scheme}://{endpoint.authority}",  # what is called, and how it is spelled, is the endpoint's
                content=body,
                headers={**_OURS, "host": endpoint.authority, **headers},
                extensions={"endpoint": endpoint, "limit": timeout or self._timeout, "may_send": may_send},
            )
            response = await self._transport.handle_async_request(request)
        except (ValueError, httpx.InvalidURL) as error:  # its message may hold a header's value
            raise NoAnswerError("the request cannot be put into HTTP", kind=AttemptKind.PROTOCOL) from error
        retry_after = longest_retry_after(response.headers.get_list("retry-after"), datetime.now(UTC))
        return WebhookResponse(status=response.status_code, body=response.content, retry_after=retry_after)


class WebhookTransport(httpx.AsyncBaseTransport):
    """Sends httpx's requests over connections of ours, to addresses that were checked (decision 0018)."""

    def __init__(
        self,
        max_connections: int,
        address_guard: AddressGuard,
        egress_proxy: str | None,
        resolve: Resolve | None,
        ssl_context: ssl.SSLContext | None,
    ) -> None:
        """Set the limits; see `WebhookClient`."""
        self._slots = asyncio.Semaphore(max_connections)
        self._pool = ConnectionPool(max_connections)
        self._system = SystemResolver()
        look_up = resolve or self._system
        self._proxy = EgressProxy.at(egress_proxy) if egress_proxy else None
        self._connector = (
            Connector(look_up, lambda _: True, peer=_PROXY)
            if egress_proxy
            else Connector(look_up, address_guard.may_call)
        )
        self._tls = ssl_context or _trusting()
        self._tls.set_alpn_protocols(["http/1.1"])

    async def aclose(self) -> None:
        """Close every connection."""
        self._pool.close()
        await self._system.aclose()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Make a request, and return its answer with the first bytes of its body.

        Args:
            request: With the extensions `endpoint`, `limit` (seconds) and `may_send`, as `WebhookClient.post` has them.

        Raises:
            ValueError: The request cannot be put into HTTP.
            BlockedAddressError, NoAnswerError, NotSentError, OwnFaultError: As `WebhookClient.post` raises them.
        """
        endpoint, limit = request.extensions["endpoint"], request.extensions["limit"]
        exchange = self._exchange(endpoint, request)
        deadline = asyncio.get_running_loop().time() + limit
        post = _Post(endpoint, exchange, request.extensions["may_send"], deadline, forwarded=self._forwards(endpoint))
        with _told_apart(post, limit):
            async with self._connection_slot(post.deadline):
                return await self._answer(post)

    def _forwards(self, endpoint: Endpoint) -> bool:
        """Return whether the egress proxy reads the request and answers it itself."""
        return self._proxy is not None and not endpoint.tls

    def _exchange(self, endpoint: Endpoint, request: httpx.Request) -> Exchange:
        target, headers = endpoint.target, request.headers.raw
        if self._proxy and self._forwards(endpoint):
            target = f"http://{endpoint.authority}{target}"
            headers = [*headers, *self._proxy.headers]
        return Exchange(request.method, target, headers, request.content)

    @asynccontextmanager
    async def _connection_slot(self, deadline: float) -> AsyncIterator[None]:
        """Hold one of the slots for connections."""
        try:
            async with asyncio.timeout_at(deadline):
                await self._slots.acquire()
        except TimeoutError as error:
            raise OwnFaultError("no slot for another connection") from error
        try:
            yield
        finally:
            self._slots.release()

    async def _answer(self, post: "_Post") -> httpx.Response:
        """Make the request on a kept connection, or on a new one if that was closed meanwhile."""
        if kept := self._pool.acquire(post.endpoint.receiver):
            with suppress(HungUpError):
                return await self._answer_over(kept, post)
        try:
            async with _until(post.deadline):
                stream = await self._open(post)
        except OwnFaultError as error:
            if post.is_sent:  # who closed the connection that was kept may have read it
                raise HungUpError from error
            raise
        return await self._answer_over(stream, post)

    async def _answer_over(self, stream: Stream, post: "_Post") -> httpx.Response:
        exchange = post.exchange
        try:
            async with _until(post.deadline):
                post.send(stream)
                status = await exchange.read_head(stream)
            await _read_body(exchange, stream, post.deadline)
        finally:
            if exchange.complete:
                self._pool.release(post.endpoint.receiver, stream)
            else:
                stream.close()
        if status == _PROXY_AUTHENTICATION and post.forwarded:
            raise proxy_failed(f"refused: {status}")
        headers = [(b"retry-after", value) for value in exchange.retry_afters]
        return httpx.Response(status, headers=headers, content=bytes(exchange.body[:MAX_ANSWER_BYTES]))

    async def _open(self, post: "_Post") -> Stream:
        """Open a connection that leads to the receiver, or to a proxy that forwards to it."""
        endpoint, proxy = post.endpoint, self._proxy
        host, port = (proxy.host, proxy.port) if proxy else (endpoint.host, endpoint.port)
        post.waits_for = _NAME_SERVER  # connecting has limits of its own
        stream = await self._connector.connect(host, port, post.deadline)
        post.waits_for = _RECEIVER
        try:
            if proxy and endpoint.tls:
                post.waits_for = _PROXY
                await proxy.tunnel(stream, endpoint.with_port)
                post.waits_for = _RECEIVER
            if endpoint.tls:
                await self._secure(stream, endpoint)
        except BaseException:
            stream.close()
            raise
        return stream

    async def _secure(self, stream: Stream, endpoint: Endpoint) -> None:
        try:
            await stream.start_tls(self._tls, endpoint.host.removesuffix("."))
        except ssl.SSLError as error:
            raise NoAnswerError(f"TLS failed: {_tls_reason(error)}", kind=AttemptKind.TLS) from error
        except OSError as error:
            if self._proxy:
                raise proxy_failed("closed the tunnel before TLS stood") from error
            raise NoAnswerError("TLS failed: the receiver hung up", kind=AttemptKind.TLS) from error


class _Post:
    """A POST under way."""

    def __init__(
        self,
        endpoint: Endpoint,
        exchange: Exchange,
        may_send: Callable[[], bool] | None,
        deadline: float,
        *,
        forwarded: bool,
    ) -> None:
        self.endpoint = endpoint
        self.exchange = exchange
        self.deadline = deadline
        self.forwarded = forwarded
        """Whether the egress proxy reads the request, and answers it."""
        self.waits_for = _RECEIVER
        self._may_send = may_send
        self.is_sent = False

    def send(self, stream: Stream) -> None:
        """Write the request, if it may still be sent.

        Raises:
            NotSentError: It may not be, and nothing was written.
            HungUpError: It may not be, after it was written to a connection that gave no answer.
        """
        if self._may_send and not self._may_send():
            raise HungUpError if self.is_sent else NotSentError
        self.is_sent = True
        stream.write(self.exchange.request)


@cache
def _trusting() -> ssl.SSLContext:
    """Return the context that trusts the authorities of the system and those of Mozilla, which takes long to make."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


@contextmanager
def _told_apart(post: _Post, limit: float) -> Iterator[None]:
    """Turn what can go wrong with an answer into `NoAnswerError`s; what connects has its own."""
    try:
        yield
    except TimeoutError as error:
        through = f" through {_PROXY}" if post.forwarded else ""
        whose = through if post.waits_for == _RECEIVER else f" from {post.waits_for}"
        raise NoAnswerError(f"no answer{whose} within {limit:g} s", kind=AttemptKind.TIMEOUT) from error
    except NoHttpError as error:
        whose = f" from {_PROXY}" if post.forwarded else ""
        raise NoAnswerError(f"no HTTP answer{whose}: {error}", kind=AttemptKind.PROTOCOL) from error
    except OSError as error:
        whose = f" to {_PROXY}" if post.forwarded else ""
        raise NoAnswerError(f"the connection{whose} broke before the answer", kind=AttemptKind.PROTOCOL) from error


def _tls_reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (getattr(error, "reason", None) or error.strerror or "it failed").replace("_", " ").lower()


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


async def _read_body(exchange: Exchange, stream: Stream, deadline: float) -> None:
    """Read the answer's body as far as time and the cap allow: it is for people to read, and decides nothing.

    A body that is read to its end also lets the connection be used again.
    """
    with suppress(OSError):  # a TimeoutError is one, too
        async with asyncio.timeout_at(min(deadline, asyncio.get_running_loop().time() + BODY_TIME)):
            await exchange.read_body(stream, MAX_ANSWER_BYTES)

"""The egress proxy that deliveries may have to go through: forwarding for http, a tunnel for https."""

from base64 import b64encode
from urllib.parse import unquote, urlsplit

import msgspec

from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.errors import NoAnswerError
from timemachine.webhooks.exchange import Exchange, NoHttpError, read_head
from timemachine.webhooks.network import Stream

_REASON_LENGTH = 200


class EgressProxy(msgspec.Struct, frozen=True, kw_only=True):
    """Where the proxy is, and what it is to be told with each request."""

    host: str
    port: int
    headers: tuple[tuple[bytes, bytes], ...]
    secrets: tuple[str, ...]
    """What its own words must not hold to be shown: the password, and what is sent of it."""

    @classmethod
    def at(cls, url: str) -> "EgressProxy":
        """Read `http://[user:password@]host[:port]`."""
        parts = urlsplit(url)
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        known = b64encode(f"{user}:{password}".encode())
        headers = ((b"Proxy-Authorization", b"Basic " + known),) if user else ()
        secrets = tuple(secret.lower() for secret in (password, known.decode()) if password)
        return cls(host=parts.hostname or "", port=parts.port or 80, headers=headers, secrets=secrets)

    async def tunnel(self, stream: Stream, to: str) -> None:
        """Have the proxy connect to a `host:port`; from then on the stream leads there.

        Raises:
            NoAnswerError: The proxy does not.
        """
        stream.write(Exchange("CONNECT", to, [(b"Host", to.encode()), *self.headers]).request)
        try:
            head = await read_head(stream)
        except NoHttpError as error:
            raise proxy_failed(f"gave no HTTP answer: {error}") from error
        except OSError as error:
            raise proxy_failed("hung up") from error
        if not 200 <= head.status < 300:
            reason = head.lines.partition(b"\n")[0].decode("latin-1").strip().partition(" ")[2]
            hidden = any(secret in unquote(reason).lower() for secret in self.secrets)
            raise proxy_failed(f"refused: {head.status if hidden else reason[:_REASON_LENGTH]}")
        # Whoever is on the way to the proxy could have put it there: it is no answer of the receiver's.
        if head.rest or not stream.at_rest():
            raise proxy_failed("hung up, or sent more than its answer")


def proxy_failed(reason: str) -> NoAnswerError:
    """Return the error that blames the proxy."""
    return NoAnswerError(f"the egress proxy {reason}", kind=AttemptKind.CONNECT)

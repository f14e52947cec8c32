"""Endpoint: the parts of a URL that a delivery goes to."""

import re
from urllib.parse import quote, urlsplit

import msgspec

from timemachine.domain.address_guard import AddressGuard, literal_address
from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.errors import BlockedAddressError

_PORTS = {"http": 80, "https": 443}
_HOST_NAME = re.compile(r"[a-z0-9._-]+")
_QUERY_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"#<>')
_PATH_SAFE = "".join(character for character in _QUERY_SAFE if character not in "?`{}")


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What is called: a URL, taken apart and checked. Nothing down the line reads its text again."""

    scheme: str
    host: str
    port: int
    target: str
    """Path and query."""

    @classmethod
    def of(cls, address_guard: AddressGuard, url: str) -> "Endpoint":
        """Take a URL apart.

        Raises:
            BlockedAddressError: Its host is an address that may not be called.
            ValueError: Its scheme is not known, or its host is neither an address nor a name.
        """
        parts = urlsplit(url)
        if parts.scheme not in _PORTS:
            raise ValueError("neither http nor https")
        path, query = quote(parts.path or "/", safe=_PATH_SAFE), quote(parts.query, safe=_QUERY_SAFE)
        return cls(
            scheme=parts.scheme,
            host=_host(address_guard, parts.hostname or ""),
            port=parts.port or _PORTS[parts.scheme],
            target=f"{path}?{query}" if query else path,
        )

    @property
    def tls(self) -> bool:
        """Whether it is spoken to in TLS."""
        return self.scheme == "https"

    @property
    def authority(self) -> str:
        """Host and port as they stand in a URL; no port where it is the scheme's own."""
        return self._bracketed if self.port == _PORTS[self.scheme] else self.with_port

    @property
    def with_port(self) -> str:
        """Host and port."""
        return f"{self._bracketed}:{self.port}"

    @property
    def receiver(self) -> tuple[str, str, int]:
        """What has to be the same for a connection to be used again."""
        return (self.scheme, self.host, self.port)

    @property
    def _bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


def _host(address_guard: AddressGuard, name: str) -> str:
    """Return the host, and an address in its usual spelling, which nobody down the line reads otherwise.

    Raises:
        BlockedAddressError: It is an address that may not be called.
        ValueError: It is neither an address nor a name.
    """
    literal = literal_address(name)
    if literal and not address_guard.may_call(literal):
        raise BlockedAddressError(kind=AttemptKind.BLOCKED, detail=f"{name} is {literal}")
    if not literal and not _HOST_NAME.fullmatch(name):
        raise ValueError("no host name")
    return str(literal or name)

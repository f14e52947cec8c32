"""The address guard: the addresses that deliveries may go to.

Without this, whoever may create a route could have our machines call the ones next to them: a metadata service, a
database, the API itself. What counts is the address that is connected to, so the webhook client asks here each time
that it opens a connection; a name says nothing, because its owner decides what it stands for, and when.

Any port may be called. A list of ports would guard what a request could do to a server of another protocol. But all
that a client can have us say is a POST line, lines that start with a header's name and a colon, and JSON, and no such
server takes one of these for a command of its own; and receivers do listen on odd ports.
"""

import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import msgspec

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

RECOMMENDED: tuple[Network, ...] = tuple(
    ip_network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared with a provider
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's wire server
        "169.254.0.0/16",  # link-local, and metadata services
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays, as were
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
        "::1/128",  # loopback
        "::/128",  # unspecified
        "64:ff9b::/96",  # NAT64
        "64:ff9b:1::/48",  # NAT64 of one's own
        "100::/64",  # discard
        "100:0:0:1::/64",  # dummy
        "2001::/23",  # protocol assignments, and Teredo
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
        "fc00::/7",  # unique local
        "fe80::/10",  # link-local
        "fec0::/10",  # site-local, as was
        "ff00::/8",  # multicast
    )
)
"""Ranges that are refused: `IPAddressRanges.recommended_v1` of Microsoft's AntiSSRF (PyPI `microsoft-antissrf` 1.0.0).

Not `is_global` of the standard library, which takes 6to4, NAT64, multicast and more for global.
"""

UNASSIGNED: tuple[Network, ...] = (IPv6Network("::/3"), IPv6Network("4000::/2"), IPv6Network("8000::/1"))
"""Refused as well: all that is not global unicast, 2000::/3 (RFC 4291, 2.4), and with it forms that nobody lists."""

REFUSED = RECOMMENDED + UNASSIGNED

_IPV4_AT_THE_END = (
    IPv6Network("::/96"),  # IPv4-compatible (RFC 4291, 2.5.5.1)
    IPv6Network("::ffff:0:0:0/96"),  # IPv4-translated (RFC 2765)
    IPv6Network("64:ff9b::/96"),  # NAT64 (RFC 6052)
    IPv6Network("64:ff9b:1::/48"),  # NAT64 of one's own (RFC 8215), with a prefix of 96 bits, as is usual
)
_NUMERIC = re.compile(r"(?:^|\.)(?:[0-9]+|0[xX][0-9a-fA-F]*)\.?\Z")
_PART = re.compile(r"0[xX][0-9a-fA-F]+|[0-9]+")


class AddressGuard(msgspec.Struct, frozen=True, kw_only=True):
    """Where deliveries may go: the deny-list counts before the allow-list, and that before the ranges."""

    allowed: tuple[Network, ...] = ()
    denied: tuple[Network, ...] = ()
    allow_private: bool = False
    """Refuse nothing but what is denied."""

    def may_call(self, address: Address) -> bool:
        """Return whether an address may be called: it, and each IPv4 address that a gateway would make of it."""
        return not getattr(address, "scope_id", None) and all(self._open(form) for form in _forms(address))

    def may_point_to(self, host: str) -> bool:
        """Return whether a URL's host is an address that may be called, or a name: those are looked up at the attempt.

        Raises:
            ValueError: It is neither; see `literal_address`.
        """
        address = literal_address(host)
        return address is None or self.may_call(address)

    def _open(self, form: Address) -> bool:
        if _within(form, self.denied):
            return False
        return self.allow_private or _within(form, self.allowed) or not _within(form, REFUSED)


def networks(text: str) -> tuple[Network, ...]:
    """Return the networks of a list with commas, such as `10.1.0.0/16, 2001:db8::1`.

    Raises:
        ValueError: One of them is none; the message says why.
    """
    return tuple(_network(part.strip()) for part in text.split(",") if part.strip())


def _network(text: str) -> Network:
    network = ip_network(text)
    if isinstance(network, IPv6Network) and network.subnet_of(IPv6Network("::ffff:0:0/96")):
        raise ValueError(f"{text}: write it as IPv4")
    return network


def literal_address(host: str) -> Address | None:
    """Return the address that a URL's host spells out, or None for a name.

    IPv4 is read as `inet_aton` does: one to four numbers, each decimal, octal (`0177`) or hex (`0x7f`), the last one
    filling what is left.

    Raises:
        ValueError: Neither an address nor a name.
    """
    if ":" in host:
        address = IPv6Address(host.removeprefix("[").removesuffix("]"))
        if address.scope_id:
            raise ValueError("an address must not have a zone")
        return address
    return _spelled(host) if _NUMERIC.search(host) else None


def _spelled(host: str) -> IPv4Address:
    """Return the address of a host whose last part is a number: no name ends like this."""
    parts = host.removesuffix(".").split(".")
    try:
        *head, last = (_number(part) for part in parts)
    except ValueError:
        raise ValueError("the host ends in a number and is no IPv4 address") from None
    if len(head) > 3 or max(head, default=0) > 255 or last >= 256 ** (4 - len(head)):
        raise ValueError("the host ends in a number and is no IPv4 address")
    return IPv4Address(last + sum(number << 24 - 8 * place for place, number in enumerate(head)))


def _number(part: str) -> int:
    if not _PART.fullmatch(part):
        raise ValueError
    if part[:2] in ("0x", "0X"):
        return int(part, 16)
    return int(part, 8 if part.startswith("0") else 10)


def _forms(address: Address) -> tuple[Address, ...]:
    """Return what an address can mean: itself, unless it is IPv4 in IPv6 clothes, and what is within it."""
    if isinstance(address, IPv4Address):
        return (address,)
    if address.ipv4_mapped:
        return (address.ipv4_mapped,)
    return (address, *_embedded(address))


def _embedded(address: IPv6Address) -> Iterator[IPv4Address]:
    if address.sixtofour:
        yield address.sixtofour
    yield from address.teredo or ()
    if int(address) > 1 and _within(address, _IPV4_AT_THE_END):
        yield IPv4Address(int(address) & 0xFFFF_FFFF)


def _within(address: Address, ranges: Iterable[Network]) -> bool:
    return any(address in network for network in ranges)

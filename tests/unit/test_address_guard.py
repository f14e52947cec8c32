"""Every refused range, in every spelling."""

import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.cases import each_case
from timemachine.domain.address_guard import (
    RECOMMENDED,
    UNASSIGNED,
    Address,
    AddressGuard,
    Network,
    literal_address,
    networks,
)
from timemachine.domain.errors import SettingsError
from timemachine.settings import Settings

# research/systems.md, part D; written out once more, so that a range lost in the code is missed here.
LIST = """
0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 168.63.129.16/32 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24
192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24
203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 ::1/128 ::/128 64:ff9b::/96 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23
2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20 5f00::/16 fc00::/7 fe80::/10 fec0::/10 ff00::/8
""".split()  # noqa: SIM905
NEITHER = """
1.2.3.4.5 256.1.1.1 1.2.3.256 1.2.65536 1.16777216 4294967296 08.1.1.1 0x 1..2 a.1 .1 1.0xg.1 0x7f.0x
[::g] [fe80::1%25eth0] fe80::1%1 [1::2::3] [127.0.0.1:80]
""".split()  # noqa: SIM905
REFUSED = [ip_network(text) for text in LIST]
V4 = [network for network in REFUSED if isinstance(network, IPv4Network)]

Spelling = Callable[[int], str]
IN_IPV6: dict[str, Spelling] = {
    "mapped": lambda ipv4: f"::ffff:{IPv4Address(ipv4)}",
    "mapped in hex": lambda ipv4: f"::ffff:{ipv4 >> 16:x}:{ipv4 & 0xFFFF:x}",
    "compatible": lambda ipv4: f"::{IPv4Address(ipv4)}",
    "translated": lambda ipv4: f"::ffff:0:{IPv4Address(ipv4)}",
    "6to4": lambda ipv4: f"2002:{ipv4 >> 16:x}:{ipv4 & 0xFFFF:x}::1",
    "NAT64": lambda ipv4: f"64:ff9b::{IPv4Address(ipv4)}",
    "NAT64 of one's own": lambda ipv4: f"64:ff9b:1::{IPv4Address(ipv4)}",
    "Teredo": lambda ipv4: f"2001:0:808:808::{ipv4 >> 16 ^ 0xFFFF:x}:{ipv4 & 0xFFFF ^ 0xFFFF:x}",
}
IN_BRACKETS: dict[str, Spelling] = {
    name: lambda ipv4, spell=spell: f"[{spell(ipv4)}]"  # type: ignore[misc]
    for name, spell in IN_IPV6.items()
}
IN_A_URL: dict[str, Spelling] = {
    **IN_BRACKETS,
    "dotted": lambda ipv4: str(IPv4Address(ipv4)),
    "dotted with a dot at the end": lambda ipv4: f"{IPv4Address(ipv4)}.",
    "decimal": str,
    "octal": lambda ipv4: f"0{ipv4:o}",
    "hex": lambda ipv4: f"0x{ipv4:x}",
    "HEX": lambda ipv4: f"0X{ipv4:08X}",
    "dotted octal": lambda ipv4: ".".join(f"0{part:o}" for part in ipv4.to_bytes(4)),
    "dotted hex": lambda ipv4: ".".join(f"0x{part:x}" for part in ipv4.to_bytes(4)),
    "long octal": lambda ipv4: ".".join(f"{part:011o}" for part in ipv4.to_bytes(4)),
    "two parts": lambda ipv4: f"{ipv4 >> 24}.{ipv4 & 0xFFFFFF}",
    "three parts": lambda ipv4: f"{ipv4 >> 24}.0x{ipv4 >> 16 & 0xFF:x}.0{ipv4 & 0xFFFF:o}",
}

PUBLIC = int(IPv4Address("93.184.215.14"))
spelled_in_ipv6 = each_case("spelling", IN_IPV6)
spelled_in_a_url = each_case("spelling", IN_A_URL)
each_range = pytest.mark.parametrize("network", REFUSED, ids=str)
each_v4_range = pytest.mark.parametrize("network", V4, ids=str)


def edges(network: Network) -> list[Address]:
    return [network[0], network[-1]]


def just_outside(network: Network) -> list[Address]:
    """The neighbours of a range, where there are any and no other range has them."""
    last = 2**network.max_prefixlen - 1
    beside = [number for number in (int(network[0]) - 1, int(network[-1]) + 1) if 0 <= number <= last]
    found = [type(network[0])(number) for number in beside]
    return [address for address in found if not any(address in other for other in (*REFUSED, *UNASSIGNED))]


def test_the_list_is_the_one_of_its_source() -> None:
    assert list(map(str, RECOMMENDED)) == LIST


@each_range
def test_a_range_is_refused_from_its_first_to_its_last_address(network: Network) -> None:
    assert not any(AddressGuard().may_call(address) for address in edges(network))


@each_range
def test_what_is_beside_a_range_may_be_called(network: Network) -> None:
    assert all(AddressGuard().may_call(address) for address in just_outside(network))


def test_there_is_something_beside_most_ranges() -> None:
    beside = {str(address) for network in REFUSED for address in just_outside(network)}
    assert {"1.0.0.0", "9.255.255.255", "11.0.0.0", "126.255.255.255", "169.253.255.255", "172.32.0.0"} <= beside
    assert {"2001:200::", "2001:db9::", "2003::", "2620:4f:8001::", "3fff:1000::"} <= beside
    assert len(beside) > 40


@pytest.mark.parametrize("address", ["::2:0:0", "200::1", "1fff::", "4000::", "6000::1", "8000::", "fbff::1"])
def test_what_is_no_global_unicast_is_refused(address: str) -> None:
    assert not AddressGuard().may_call(ip_address(address))


@each_v4_range
@spelled_in_ipv6
def test_a_range_is_refused_within_ipv6(network: IPv4Network, spelling: str) -> None:
    # What surrounds it is allowed, as on a network that reaches IPv4 by NAT64, or it would be refused anyway.
    address_guard = AddressGuard(
        allowed=networks("::ffff:0:0:0/96, 64:ff9b::/96, 64:ff9b:1::/48, 2002::/16, ::/96, 2001::/32")
    )
    for address in edges(network):
        form = ip_address(IN_IPV6[spelling](int(address)))
        assert not AddressGuard().may_call(form)
        # Above 1: `::` and `::1` are no IPv4 addresses but the unspecified one and loopback.
        assert int(form) <= 1 or not address_guard.may_call(form)
    for address in just_outside(network):
        assert address_guard.may_call(ip_address(IN_IPV6[spelling](int(address))))


@each_v4_range
@spelled_in_a_url
def test_a_range_is_refused_in_a_url(network: IPv4Network, spelling: str) -> None:
    for address in edges(network):
        assert not AddressGuard().may_point_to(IN_A_URL[spelling](int(address)))


@each_case("spelling", [name for name in IN_A_URL if name not in IN_IPV6 or "mapped" in name])
@each_v4_range
def test_what_is_beside_a_range_may_stand_in_a_url(network: IPv4Network, spelling: str) -> None:
    for address in just_outside(network):
        host = IN_A_URL[spelling](int(address))
        literal = literal_address(host)
        assert literal
        assert getattr(literal, "ipv4_mapped", None) or literal == address
        assert AddressGuard().may_point_to(host)


@given(data=st.data(), network=st.sampled_from(REFUSED), spelling=st.sampled_from(sorted(IN_A_URL)))
def test_no_address_of_a_range_is_let_through(data: st.DataObject, network: Network, spelling: str) -> None:
    number = data.draw(st.integers(int(network[0]), int(network[-1])))
    address = type(network[0])(number)
    host = IN_A_URL[spelling](number) if isinstance(address, IPv4Address) else f"[{address.exploded}]"

    assert not AddressGuard().may_call(address)
    assert not AddressGuard().may_point_to(host)


@given(number=st.integers(0, 2**32 - 1), spelling=st.sampled_from([name for name in IN_A_URL if name not in IN_IPV6]))
def test_every_spelling_is_read_as_the_same_address(number: int, spelling: str) -> None:
    assert literal_address(IN_A_URL[spelling](number)) == IPv4Address(number)


@given(st.from_regex(r"\A[0-9a-fxX]{1,12}(\.[0-9a-fxX]{0,6}){0,4}\Z"))
def test_what_the_system_takes_for_an_address_is_one(host: str) -> None:
    try:
        expected = socket.inet_aton(host)
    except OSError:
        return
    assert literal_address(host) == IPv4Address(expected)


@pytest.mark.parametrize(
    "host", ["example.org", "1.2.3.4.example", "0x7f.example", "xn--a.org", "a", "1e5", "0b1", "é"]
)
def test_a_name_may_stand_in_a_url_and_is_no_address(host: str) -> None:
    assert literal_address(host) is None
    assert AddressGuard().may_point_to(host)


@pytest.mark.parametrize(
    "host",
    NEITHER,
)
def test_what_only_looks_like_an_address_is_neither(host: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        literal_address(host)


def test_a_zone_is_refused_whatever_is_allowed() -> None:
    assert not AddressGuard(allow_private=True).may_call(IPv6Address("fe80::1%eth0"))


def test_the_allow_list_beats_the_ranges_and_the_deny_list_beats_both() -> None:
    address_guard = AddressGuard(
        allowed=networks("10.1.0.0/16, 127.0.0.2, fd00::/8"), denied=networks("10.1.2.0/24, 9.9.9.9")
    )

    for allowed in ("10.1.0.1", "127.0.0.2", "::ffff:127.0.0.2", "fd00::1", "9.9.9.8", "2606:4700::1111"):
        assert address_guard.may_call(ip_address(allowed))
    for refused in ("10.1.2.3", "::ffff:10.1.2.3", "9.9.9.9", "::ffff:9.9.9.9", "127.0.0.1", "10.2.0.0", "fc00::1"):
        assert not address_guard.may_call(ip_address(refused))


@spelled_in_ipv6
def test_what_is_denied_is_refused_in_every_form_where_all_else_is_allowed(spelling: str) -> None:
    address_guard = AddressGuard(allow_private=True, denied=networks("169.254.169.254"))

    assert not address_guard.may_call(ip_address(IN_IPV6[spelling](0xA9FEA9FE)))
    assert address_guard.may_call(ip_address(IN_IPV6[spelling](0xA9FEA9FD)))


def test_everything_else_is_allowed_where_private_addresses_are() -> None:
    assert all(AddressGuard(allow_private=True).may_call(address) for network in REFUSED for address in edges(network))


def test_nat64_can_be_allowed_without_what_it_would_reach_inside() -> None:
    address_guard = AddressGuard(allowed=networks("64:ff9b::/96"))

    assert address_guard.may_call(ip_address(IN_IPV6["NAT64"](PUBLIC)))
    assert not address_guard.may_call(ip_address("64:ff9b::10.0.0.1"))


def test_the_settings_allow_nothing_private() -> None:
    assert Settings().address_guard == AddressGuard()


def test_the_settings_take_lists_of_networks() -> None:
    settings = Settings.from_env({"TIMEMACHINE_ALLOWED_TARGETS": "10.0.0.0/8, ::1,", "TIMEMACHINE_DENIED_TARGETS": ""})

    assert settings.address_guard == AddressGuard(allowed=(ip_network("10.0.0.0/8"), ip_network("::1/128")))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("allowed_targets", "10.0.0.1/8", "TIMEMACHINE_ALLOWED_TARGETS: 10.0.0.1/8 has host bits set"),
        (
            "allowed_targets",
            "10.0.0.0/8;fd00::/8",
            "TIMEMACHINE_ALLOWED_TARGETS: '10.0.0.0/8;fd00::/8' does not appear to be",
        ),
        ("denied_targets", "example.org", "TIMEMACHINE_DENIED_TARGETS: 'example.org' does not appear to be"),
        ("denied_targets", "::ffff:10.0.0.0/104", "TIMEMACHINE_DENIED_TARGETS: ::ffff:10.0.0.0/104: write it as IPv4"),
    ],
)
def test_the_settings_name_what_is_no_network(name: str, value: str, reason: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({f"TIMEMACHINE_{name.upper()}": value})
    assert reason in str(caught.value)


@pytest.mark.parametrize("url", ["http://proxy", "http://u:p%40ss@proxy.local:3128/", "http://[fd00::1]:3128"])
def test_the_settings_take_a_proxy(url: str) -> None:
    assert Settings.from_env({"TIMEMACHINE_EGRESS_PROXY": url}).egress_proxy == url


@pytest.mark.parametrize("url", ["proxy:3128", "socks5://u:hidden@p", "http://u:hidden@", "http://p/x", "http://p:0"])
def test_the_settings_refuse_what_is_no_proxy_and_do_not_repeat_it(url: str) -> None:
    with pytest.raises(SettingsError, match="TIMEMACHINE_EGRESS_PROXY: ") as caught:
        Settings.from_env({"TIMEMACHINE_EGRESS_PROXY": url})
    assert "hidden" not in str(caught.value)

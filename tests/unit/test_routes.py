import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.urls import target, urls
from timemachine.domain.address_guard import AddressGuard, literal_address
from timemachine.domain.errors import WebhookUrlError
from timemachine.domain.routes import MAX_URL, RestRoute, target_url
from timemachine.webhooks.endpoint import Endpoint

HOSTS = ["example.org", "a", "A_b-c.org.", "127.0.0.1", "[::1]", "[2001:db8::ff]", "xn--bcher-kva.example", "1.a"]
# What URLs are made of, and what makes parsers disagree.

paths = st.from_regex(r"(/[A-Za-z0-9._~%-]{0,8}){0,3}(\?[a-z=&@:/?%]{0,9})?", fullmatch=True)


@settings(max_examples=300)
@given(urls)
def test_the_url_that_was_checked_is_the_one_that_is_called(webhook_url: str) -> None:
    """Scheme, host and port are read as another parser reads them, or another host than the checked one is called."""
    if (url := target(webhook_url)) is None:
        return
    called, other = Endpoint.of(AddressGuard(allow_private=True), url), httpx.URL(url)

    assert called.scheme == other.scheme in ("http", "https")
    assert called.host == str(literal_address(other.raw_host.decode()) or other.raw_host.decode()) != ""
    assert called.port == (other.port or {"http": 80, "https": 443}[other.scheme])
    assert (other.userinfo, other.fragment) == (b"", "")


@given(paths)
def test_what_comes_after_the_host_is_sent_as_it_was_given(path: str) -> None:
    sent = Endpoint.of(AddressGuard(), f"https://example.org{path}").target

    before, _, query = path.partition("?")
    assert sent == (before or "/") + (f"?{query}" if query else "")


@given(
    st.sampled_from(["", "http://", "https://", "HTTPS://"]),
    st.sampled_from(HOSTS),
    st.none() | st.integers(1, 65535),
    paths,
)
def test_a_plain_url_is_called_as_it_was_given(scheme: str, host: str, port: int | None, path: str) -> None:
    webhook_url = f"{scheme}{host}{f':{port}' if port else ''}{path}"

    assert target(webhook_url) == (webhook_url if scheme else f"https://{webhook_url}")


@given(urls, st.sampled_from(["https", "http"]))
def test_what_is_refused_does_not_depend_on_the_default_scheme(webhook_url: str, scheme: str) -> None:
    url = target(webhook_url)

    if url is None:
        with pytest.raises(WebhookUrlError, match=r"^webhook_url: "):
            target_url(webhook_url, default_scheme=scheme)
    else:
        assert target_url(webhook_url, default_scheme=scheme) in (url, f"{scheme}://{webhook_url}")


@given(st.integers(0, 255).flatmap(lambda first: st.tuples(st.just(first), *[st.integers(0, 255)] * 3)))
def test_an_ipv4_address_is_written_in_one_way(octets: tuple[int, ...]) -> None:
    """Resolvers also take shortened, octal and hexadecimal ones, which a check of addresses would not see."""
    a, b, c, d = octets
    number = int.from_bytes(bytes(octets), "big")

    assert target(f"{a}.{b}.{c}.{d}") == f"https://{a}.{b}.{c}.{d}"
    for other in (
        f"{a}.{b}.{c * 256 + d}",
        f"{a}.{d}",
        str(number),
        hex(number),
        f"0{a}.{b}.{c}.{d}",
        f"{a}.{b}.{c}.0x1",
    ):
        assert target(other) is None


def test_the_longest_url() -> None:
    assert target("example.org/".ljust(MAX_URL, "a"))
    assert target("example.org/".ljust(MAX_URL + 1, "a")) is None


@given(st.text(), st.text())
def test_a_route_survives_its_storage(route_id: str, webhook_url: str) -> None:
    route = RestRoute(id=route_id, webhook_url=webhook_url)

    stored = msgspec.json.encode(route)

    assert msgspec.json.decode(stored, type=RestRoute) == route
    assert msgspec.json.decode(stored)["type"] == "REST"

import ssl
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings

from tests.unit.urls import target, urls
from timemachine.domain.address_guard import AddressGuard, literal_address, networks
from timemachine.domain.errors import BlockedAddressError, NoAnswerError
from timemachine.webhooks.client import WebhookClient

NOWHERE = AddressGuard(denied=networks("0.0.0.0/0, ::/0"))


async def nothing(host: str) -> list[str]:
    raise OSError(f"{host} is nobody")


@pytest.mark.parametrize(
    "host",
    ["xn--a", "xn--", "256.1.1.1", "[v1.a]", "[::1]a", "", "a" * 70, "é", "127。0。0。1", "[::1%25lo]", "a b", "a/\0"],
)
async def test_a_host_that_the_client_cannot_read_is_no_answer(host: str) -> None:
    """Any other error would be no attempt that counts, and the job would be tried for ever."""
    async with WebhookClient(timeout=1, max_connections=1, address_guard=AddressGuard(), resolve=nothing) as webhooks:
        with pytest.raises(NoAnswerError):
            await webhooks.post(f"http://{host}/hook", b"", {})


@settings(max_examples=300)
@given(urls)
async def test_the_host_that_was_checked_is_the_one_that_is_looked_up(webhook_url: str) -> None:
    if (url := target(webhook_url)) is None:
        return
    looked_up = []

    async def look_up(host: str) -> list[str]:
        looked_up.append(host)
        raise OSError

    client = WebhookClient(
        timeout=1,
        max_connections=1,
        address_guard=NOWHERE,
        resolve=look_up,
        ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
    )
    async with client as webhooks:
        with pytest.raises(NoAnswerError) as caught:
            await webhooks.post(url, b"", {})

    host = urlsplit(url).hostname or ""
    assert looked_up == ([] if literal_address(host) else [host])
    assert isinstance(caught.value, BlockedAddressError) == (looked_up == [])

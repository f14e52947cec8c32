"""The address guard, on real sockets and with a DNS server of the tests' own.

Nothing public is called: 127.0.0.2 and 127.0.0.3 stand for the internet, because the allow-list says so, and 127.0.0.1
for what is to be guarded.
"""

import asyncio
import logging
import random
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import aiodns
import psutil
import pytest
import trustme
from msgspec.structs import replace
from temporalio.client import Client

from api.app import create_app
from devstack.ports import free_port
from devstack.temporal import Temporal
from tests.conftest import serving
from tests.support.dns_server import DnsServer, dns_serving
from tests.support.refusals import BAD_URL
from tests.support.service import ROUTE, Service, refused
from timemachine.domain.address_guard import AddressGuard, networks
from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.errors import BlockedAddressError, NoAnswerError, OwnFaultError
from timemachine.postgres.pool import open_pool
from timemachine.settings import Settings
from timemachine.webhooks import dns
from timemachine.webhooks.client import WebhookClient, WebhookResponse
from timemachine.webhooks.dns import ALONE, SystemResolver
from timemachine.webhooks.network import Connector
from worker import create_worker

INSIDE, PUBLIC, ALSO_PUBLIC = "127.0.0.1", "127.0.0.2", "127.0.0.3"
TARGETS = AddressGuard(allowed=networks(f"{PUBLIC}, {ALSO_PUBLIC}"))
ALL_OF_THEM = AddressGuard(allow_private=True)
TIMEOUT = 2.0
NAME = "hook.test"
ROOT = "."
REFUSED = """
127.0.0.1 127.0.0.1. 127.1 2130706433 017700000001 0x7f000001 0x7f.1 0177.0.0.01 0 0.0.0.0
[::1] [::] [::ffff:127.0.0.1] [::ffff:7f00:1] [::127.0.0.1] [2002:7f00:1::] [64:ff9b::7f00:1]
""".split()  # noqa: SIM905


class Listener:
    """A receiver that keeps what it is sent, and answers 200."""

    def __init__(self) -> None:
        self.address, self.port = "", 0
        self.connections = 0
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.names: list[str | None] = []
        """The names that TLS was begun for."""
        self.answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
        self.keep_alive = True

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                line, *fields = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                pairs = [field.split(": ", 1) for field in fields if field]
                headers = {name.lower(): value for name, value in pairs}
                await reader.readexactly(int(headers.get("content-length", 0)))
                self.requests.append((line, headers))
                writer.write(self.answer)
                await writer.drain()
                if not self.keep_alive:
                    break
        writer.close()


@asynccontextmanager
async def listening(address: str, port: int = 0, tls: ssl.SSLContext | None = None) -> AsyncIterator[Listener]:
    listener = Listener()
    if tls:
        tls.sni_callback = lambda _, name, __: listener.names.append(name)
    server = await asyncio.start_server(listener.handle, address, port, ssl=tls)
    listener.address, listener.port = server.sockets[0].getsockname()[:2]
    try:
        yield listener
    finally:
        server.close()


@pytest.fixture
async def names() -> AsyncIterator[DnsServer]:
    async with dns_serving() as server:
        yield server


@pytest.fixture
async def public() -> AsyncIterator[Listener]:
    async with listening(PUBLIC, port_of_both()) as listener:
        yield listener


@pytest.fixture
async def inside(public: Listener) -> AsyncIterator[Listener]:
    """What must not be called, on the port of what may."""
    async with listening(INSIDE, public.port) as listener:
        yield listener


@pytest.fixture
async def webhooks(names: DnsServer) -> AsyncIterator[WebhookClient]:
    async with make_client(names) as webhooks:
        yield webhooks


def make_client(
    names: DnsServer,
    address_guard: AddressGuard = TARGETS,
    *,
    proxy: str | None = None,
    trust: trustme.CA | None = None,
) -> WebhookClient:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if trust:
        trust.configure_trust(context)
    return WebhookClient(
        timeout=TIMEOUT,
        max_connections=4,
        address_guard=address_guard,
        egress_proxy=proxy,
        resolve=names.resolve,
        ssl_context=context,
    )


async def post(webhooks: WebhookClient, url: str) -> WebhookResponse:
    async with asyncio.timeout(TIMEOUT + 10):
        return await webhooks.post(url, b"{}", {"content-type": "application/json"})


async def failure(webhooks: WebhookClient, url: str) -> NoAnswerError:
    with pytest.raises(NoAnswerError) as caught:
        await post(webhooks, url)
    return caught.value


async def assert_blocked(webhooks: WebhookClient, url: str) -> None:
    """The message is the same whatever is behind it."""
    error = await failure(webhooks, url)
    assert isinstance(error, BlockedAddressError)
    assert (str(error), error.kind) == ("The webhook_url points where deliveries may not go.", AttemptKind.BLOCKED)


def port_of_both() -> int:
    """A port that is free inside and in public."""
    while True:
        port = free_port(INSIDE)
        with socket.socket() as public, suppress(OSError):
            public.bind((PUBLIC, port))
            return port


def closed_port(address: str) -> int:
    with socket.socket() as taken:
        taken.bind((address, 0))
        return int(taken.getsockname()[1])


# Names


async def test_a_name_of_a_public_address_is_called(
    webhooks: WebhookClient, names: DnsServer, public: Listener
) -> None:
    names.says(NAME, [PUBLIC])

    assert (await post(webhooks, f"http://{NAME}:{public.port}/a?b=1")).taken

    ((line, headers),) = public.requests
    assert line == "POST /a?b=1 HTTP/1.1"
    assert headers["host"] == f"{NAME}:{public.port}"


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("", "/"),
        ("?a=b", "/?a=b"),
        ("//a/%2F%25?b=%20&c?", "//a/%2F%25?b=%20&c?"),
        ('/<"`{}>?<">', "/%3C%22%60%7B%7D%3E?%3C%22%3E"),
    ],
)
async def test_what_comes_after_the_host(webhooks: WebhookClient, public: Listener, given: str, sent: str) -> None:
    assert (await post(webhooks, f"http://{PUBLIC}:{public.port}{given}")).taken

    assert public.requests[0][0] == f"POST {sent} HTTP/1.1"


async def test_a_name_that_only_looks_like_idna_is_called(
    webhooks: WebhookClient, names: DnsServer, public: Listener
) -> None:
    name = "xn--i-7iq.test"  # "i❤", which no standard allows and registries sell
    names.says(name, [PUBLIC])

    assert (await post(webhooks, f"http://{name}:{public.port}/")).taken
    assert public.requests[0][1]["host"] == f"{name}:{public.port}"


@pytest.mark.parametrize("answers", [[PUBLIC, INSIDE], [INSIDE, PUBLIC], [PUBLIC, "::1"], [PUBLIC, "10.0.0.1"]])
async def test_one_refused_address_of_several_is_enough(
    webhooks: WebhookClient, names: DnsServer, public: Listener, inside: Listener, answers: list[str]
) -> None:
    names.says(NAME, answers)

    await assert_blocked(webhooks, f"http://{NAME}:{public.port}/")

    assert (public.connections, inside.connections) == (0, 0)


async def test_a_refused_address_is_seen_behind_many_others(
    webhooks: WebhookClient, names: DnsServer, public: Listener, inside: Listener
) -> None:
    names.says(NAME, [PUBLIC, ALSO_PUBLIC, *[f"93.184.215.{last}" for last in range(9)], INSIDE])

    await assert_blocked(webhooks, f"http://{NAME}:{public.port}/")

    assert public.connections == 0


async def test_a_name_that_answers_public_first_and_loopback_second_is_refused_at_the_attempt(
    webhooks: WebhookClient, names: DnsServer, public: Listener, inside: Listener
) -> None:
    public.keep_alive = False
    names.says(NAME, [PUBLIC], [INSIDE])
    url = f"http://{NAME}:{public.port}/"

    assert (await post(webhooks, url)).taken
    await assert_blocked(webhooks, url)

    assert (len(public.requests), inside.connections, names.looked_up(NAME)) == (1, 0, 2)


async def test_a_name_is_not_looked_up_again_between_check_and_call(
    webhooks: WebhookClient, names: DnsServer, public: Listener, inside: Listener
) -> None:
    names.says(NAME, [PUBLIC], [INSIDE], [INSIDE])

    assert (await post(webhooks, f"http://{NAME}:{public.port}/")).taken

    assert names.looked_up(NAME) == 1
    assert inside.connections == 0


async def test_a_kept_connection_stays_where_it_was_checked_and_the_next_one_is_checked_anew(
    webhooks: WebhookClient, names: DnsServer, public: Listener, inside: Listener
) -> None:
    names.says(NAME, [PUBLIC], [INSIDE])
    url = f"http://{NAME}:{public.port}/"

    for _ in range(2):
        assert (await post(webhooks, url)).taken
    assert (public.connections, names.looked_up(NAME)) == (1, 1)
    public.keep_alive = False
    assert (await post(webhooks, url)).taken

    await assert_blocked(webhooks, url)
    assert (len(public.requests), inside.connections) == (3, 0)


async def test_a_kept_connection_serves_no_other_name(
    webhooks: WebhookClient, names: DnsServer, public: Listener, inside: Listener
) -> None:
    names.says(NAME, [PUBLIC])
    names.says("other.test", [INSIDE])

    assert (await post(webhooks, f"http://{NAME}:{public.port}/")).taken

    await assert_blocked(webhooks, f"http://other.test:{public.port}/")
    await assert_blocked(webhooks, f"http://{INSIDE}:{public.port}/")


async def test_a_redirect_to_the_inside_is_not_followed(
    webhooks: WebhookClient, names: DnsServer, public: Listener, inside: Listener
) -> None:
    names.says(NAME, [PUBLIC])
    public.answer = f"HTTP/1.1 307 -\r\nlocation: http://{INSIDE}:{public.port}/\r\ncontent-length: 0\r\n\r\n".encode()

    assert (await post(webhooks, f"http://{NAME}:{public.port}/")).status == 307
    assert inside.connections == 0


async def test_the_next_address_is_tried_when_one_does_not_answer(
    webhooks: WebhookClient, names: DnsServer, public: Listener
) -> None:
    names.says(NAME, [ALSO_PUBLIC, PUBLIC])

    assert (await post(webhooks, f"http://{NAME}:{public.port}/")).taken


@pytest.mark.parametrize("answer", ["::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "fd00::1"])
async def test_a_name_of_a_refused_ipv6_address(
    webhooks: WebhookClient, names: DnsServer, public: Listener, inside: Listener, answer: str
) -> None:
    names.says(NAME, [answer])

    await assert_blocked(webhooks, f"http://{NAME}:{public.port}/")

    assert inside.connections == 0


@pytest.mark.parametrize("host", [NAME, "[::1]", "[0:0::0:1]"])
async def test_an_allowed_ipv6_address_is_called(names: DnsServer, host: str) -> None:
    names.says(NAME, ["::1"])
    async with listening("::1") as listener, make_client(names, AddressGuard(allowed=networks("::1"))) as webhooks:
        assert (await post(webhooks, f"http://{host}:{listener.port}/")).taken

        ((_, headers),) = listener.requests
        assert headers["host"] == f"{NAME if host == NAME else '[::1]'}:{listener.port}"


async def test_the_system_looks_up_too_and_is_checked(inside: Listener) -> None:
    async with WebhookClient(timeout=TIMEOUT, max_connections=1, address_guard=AddressGuard()) as webhooks:
        await assert_blocked(webhooks, f"http://localhost:{inside.port}/")
    async with WebhookClient(timeout=TIMEOUT, max_connections=1, address_guard=ALL_OF_THEM) as webhooks:
        assert (await post(webhooks, f"http://localhost:{inside.port}/")).taken


async def test_many_who_wait_for_one_name_look_it_up_once(names: DnsServer) -> None:
    names.says(NAME, [PUBLIC])
    async with resolving(names) as resolve:
        answers = await asyncio.gather(*[resolve(NAME) for _ in range(500)])

    assert answers == [[PUBLIC]] * 500
    assert names.looked_up(NAME) == 1


async def test_names_that_nobody_answers_for_hold_up_no_other(names: DnsServer) -> None:
    """More than any pool of threads would have."""
    names.says(NAME, [PUBLIC])
    names.silent_about = "dead.test"
    async with resolving(names) as resolve:
        waiting = [asyncio.create_task(resolve(f"{number}.dead.test")) for number in range(600)]
        while len(names.queries) < len(waiting):
            await asyncio.sleep(0)
        assert await resolve(NAME) == [PUBLIC]
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()


async def test_a_slow_name_is_found_where_others_are_answered_fast(
    names: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns, "SLOW", 0.5)
    names.says(NAME, [PUBLIC])
    names.says("slow.test", [PUBLIC])
    names.delays = {"slow.test": 2.0}
    async with resolving(names) as resolve:
        for _ in range(20):
            await resolve(NAME)
        assert await resolve("slow.test") == [PUBLIC]


async def test_a_malformed_answer_costs_no_other_name_its_own(names: DnsServer) -> None:
    names.says(NAME, [PUBLIC])
    names.delays = {NAME: 0.2}
    names.malformed_about = "malformed.test"
    async with resolving(names) as resolve:
        others = [asyncio.create_task(resolve(f"{number}.malformed.test")) for number in range(5)]
        assert await resolve(NAME) == [PUBLIC]
        assert names.looked_up(NAME) > 1
        for task in others:
            task.cancel()


async def test_malformed_answers_that_do_not_cease_cost_a_slow_name_nothing(names: DnsServer) -> None:
    """They come more often than it can be answered for in between."""
    names.says(NAME, [PUBLIC])
    names.delays = {NAME: 0.4}
    names.malformed_about = "malformed.test"

    async def ask_again_and_again(resolve: SystemResolver, name: str) -> None:
        while True:
            with suppress(OSError):
                await resolve(name)
            await asyncio.sleep(random.uniform(0, 0.2))

    async with resolving(names) as resolve:
        others = [asyncio.create_task(ask_again_and_again(resolve, f"{number}.malformed.test")) for number in range(20)]
        for _ in range(3):
            assert await resolve(NAME) == [PUBLIC]
        for task in others:
            task.cancel()


async def test_of_many_names_that_a_malformed_answer_breaks_off_not_all_get_a_thread(
    names: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is not asked whether the name servers answer at all, which takes one more thread.
    monkeypatch.setattr(dns, "SLOW", 60)
    monkeypatch.setattr(dns, "PAUSES", (0.01,) * 3)
    names.silent_about = "dead.test"
    names.malformed_about = "malformed.test"
    async with resolving(names) as resolve:
        threads = psutil.Process().num_threads()
        waiting = [asyncio.create_task(resolve(f"{number}.dead.test")) for number in range(100)]
        while len(names.queries) < len(waiting):
            await asyncio.sleep(0)
        with pytest.raises(OSError, match=r"."):
            await resolve("malformed.test")
        # Besides, that of what they share, and the one in which pycares closes what it has.
        assert psutil.Process().num_threads() <= threads + 2 + ALONE
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_an_answer_that_is_too_long_to_be_had_is_a_failed_look_up(names: DnsServer) -> None:
    """And no fault of ours, or a job for such a name would be put off for ever."""
    names.says("long.test", [PUBLIC])
    names.truncated = "long.test"
    async with resolving(names) as resolve:
        with pytest.raises(OSError, match=r"."):
            await resolve("long.test")


@pytest.mark.parametrize("name", ["unknown.test", "a..test", "a" * 64 + ".test", "xn--.test", "-.test"])
async def test_a_name_that_the_system_does_not_find(names: DnsServer, name: str) -> None:
    async with resolving(names) as resolve:
        with pytest.raises(OSError, match=r"."):
            await resolve(name)


async def test_no_name_server_is_our_own_fault() -> None:
    resolve = SystemResolver([f"127.0.0.1:{closed_port(INSIDE)}"])
    with pytest.raises(OwnFaultError):
        await resolve(NAME)
    await resolve.aclose()


@pytest.mark.parametrize("code", [aiodns.error.ARES_ECONNREFUSED, aiodns.error.ARES_ETIMEOUT])
async def test_name_servers_without_a_route_to_them_are_our_own_fault(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look-up and the question whether they answer anything end in different ways then."""

    async def query(*_: object) -> None:
        raise aiodns.error.DNSError(code, "it says")

    monkeypatch.setattr(aiodns.DNSResolver, "query_dns", query)
    resolve = SystemResolver([f"127.0.0.1:{closed_port(INSIDE)}"])
    with pytest.raises(OwnFaultError):
        await resolve(NAME)
    await resolve.aclose()


async def test_what_a_name_server_answered_once_is_no_answer_now(
    names: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns, "SLOW", 0.3)
    names.lifetime = 300
    names.truncated = "long.test"
    names.says("long.test", [PUBLIC])
    async with resolving(names) as resolve:
        with pytest.raises(OSError, match=r"."):
            await resolve("long.test")
        names.silent_about = ROOT
        with pytest.raises(OwnFaultError):
            await resolve("long.test")


async def test_name_servers_that_answer_nothing_are_our_own_fault(
    names: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns, "SLOW", 0.3)
    names.silent = True
    async with resolving(names) as resolve:
        with pytest.raises(OwnFaultError):
            await resolve(NAME)
        names.silent = False
        names.says(NAME, [PUBLIC])
        assert await resolve(NAME) == [PUBLIC]


async def test_a_name_that_is_answered_for_again_waits_for_no_look_up_from_before(
    names: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tries would be up to minutes apart by now."""
    monkeypatch.setattr(dns, "SLOW", 0.1)
    monkeypatch.setattr(dns, "LONGEST", 0.7)
    names.says(NAME, [PUBLIC])
    names.silent_about = NAME
    async with resolving(names) as resolve:
        first = asyncio.create_task(resolve(NAME))
        while not names.queries:
            await asyncio.sleep(0)
        late = asyncio.create_task(resolve(NAME))
        await asyncio.sleep(0)
        names.silent_about = None

        with pytest.raises(OSError, match=r"no name server has answered for it within 0\.7 s"):
            await first
        assert await late == [PUBLIC]
        assert await resolve(NAME) == [PUBLIC]


async def test_name_servers_that_fall_silent_during_a_look_up_are_our_own_fault(
    names: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns, "SLOW", 0.3)
    monkeypatch.setattr(dns, "LONGEST", 1.0)
    names.silent_about = NAME
    async with resolving(names) as resolve:
        looking = asyncio.create_task(resolve(NAME))
        while (ROOT, "NS") not in names.queries:
            await asyncio.sleep(0)
        names.silent = True

        with pytest.raises(OwnFaultError):
            await looking


async def test_a_late_answer_is_not_held_back_by_the_question_whether_any_comes(
    names: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns, "SLOW", 0.5)
    names.says(NAME, [PUBLIC])
    names.delays[NAME] = 0.7
    names.silent_about = ROOT
    async with resolving(names) as resolve:
        assert await resolve(NAME) == [PUBLIC]
        assert resolve._answering
        assert not resolve._answering.done()


async def test_an_answer_that_is_too_long_shows_that_a_name_server_answers(
    names: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns, "SLOW", 0.3)
    monkeypatch.setattr(dns, "TRIES", 1)
    names.silent_about, names.truncated = "dead.test", ROOT
    async with resolving(names) as resolve:
        with pytest.raises(OSError, match=r"."):
            await resolve("long.dead.test")


async def test_a_name_server_that_is_slow_answers(names: DnsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns, "ONE_TURN", 0.2)
    names.delays[ROOT] = 0.6
    async with resolving(names) as resolve:
        assert await resolve._answers()


async def test_a_second_name_server_is_asked_whether_it_answers(
    names: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns, "SLOW", 1.0)
    monkeypatch.setattr(dns, "ONE_TURN", 0.3)
    monkeypatch.setattr(dns, "TRIES", 1)
    names.silent_about = "dead.test"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        resolve = SystemResolver([f"127.0.0.1:{port}" for port in (silent.getsockname()[1], names.port)])
        with pytest.raises(OSError, match=r"."):
            await resolve("some.dead.test")
        await resolve.aclose()


async def test_a_name_that_nobody_answers_for_is_none(names: DnsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or its job would be put off for ever."""
    monkeypatch.setattr(dns, "SLOW", 0.3)
    monkeypatch.setattr(dns, "TRIES", 1)
    names.silent_about = "dead.test"
    async with resolving(names) as resolve:
        outcomes = await asyncio.gather(*[resolve(f"{n}.dead.test") for n in range(50)], return_exceptions=True)

    assert {type(outcome) for outcome in outcomes} == {OSError}
    assert names.queries.count((ROOT, "NS")) < 25


@asynccontextmanager
async def resolving(names: DnsServer) -> AsyncIterator[SystemResolver]:
    """The system's resolver, but that it asks the server of the test."""
    resolve = SystemResolver([f"127.0.0.1:{names.port}"])
    try:
        yield resolve
    finally:
        await resolve.aclose()


# Addresses in URLs


@pytest.mark.parametrize(
    "host",
    REFUSED,
)
async def test_a_refused_address_is_not_called_however_it_is_spelled(
    webhooks: WebhookClient, public: Listener, inside: Listener, host: str
) -> None:
    await assert_blocked(webhooks, f"http://{host}:{public.port}/")

    assert inside.connections == 0


@pytest.mark.parametrize("host", [PUBLIC, "2130706434", "0x7f.2", "[::ffff:127.0.0.2]"])
async def test_an_allowed_address_is_called_however_it_is_spelled(
    webhooks: WebhookClient, names: DnsServer, public: Listener, host: str
) -> None:
    assert (await post(webhooks, f"http://{host}:{public.port}/")).taken

    assert names.queries == []


async def test_every_connection_is_refused_and_not_only_its_url(names: DnsServer, inside: Listener) -> None:
    connector = Connector(names.resolve, TARGETS.may_call)
    deadline = asyncio.get_running_loop().time() + TIMEOUT

    with pytest.raises(BlockedAddressError):
        await connector.connect(INSIDE, inside.port, deadline)
    with pytest.raises(NoAnswerError):
        await connector.connect("1.2.3.4.5", inside.port, deadline)
    assert (inside.connections, names.queries) == (0, [])


# What goes wrong, told apart


async def test_an_unknown_host(webhooks: WebhookClient) -> None:
    error = await failure(webhooks, "http://unknown.test/")

    assert error.kind is AttemptKind.DNS
    assert str(error) == "the host name of the receiver is not found: DNS says NXDOMAIN"


async def test_a_name_without_an_address(webhooks: WebhookClient, names: DnsServer) -> None:
    names.says(NAME, [])

    assert (await failure(webhooks, f"http://{NAME}/")).kind is AttemptKind.DNS


async def test_a_look_up_that_answers_no_address_reaches_nothing(names: DnsServer) -> None:
    async def resolve(host: str) -> list[str]:
        return ["localhost"]

    async with WebhookClient(
        timeout=TIMEOUT, max_connections=1, address_guard=ALL_OF_THEM, resolve=resolve
    ) as webhooks:
        assert (await failure(webhooks, f"http://{NAME}/")).kind is AttemptKind.DNS


async def test_a_name_server_that_does_not_answer(webhooks: WebhookClient, names: DnsServer) -> None:
    names.silent = True
    error = await failure(webhooks, f"http://{NAME}/")

    assert (str(error), error.kind) == (f"no answer from a name server within {TIMEOUT:g} s", AttemptKind.TIMEOUT)


async def test_a_closed_port(webhooks: WebhookClient, names: DnsServer) -> None:
    names.says(NAME, [PUBLIC, ALSO_PUBLIC])

    error = await failure(webhooks, f"http://{NAME}:{closed_port(PUBLIC)}/")

    assert (str(error), error.kind) == ("no connection to the receiver: connection refused", AttemptKind.CONNECT)


async def test_an_address_that_does_not_take_the_connection(webhooks: WebhookClient, names: DnsServer) -> None:
    with socket.socket() as full:
        full.bind((PUBLIC, 0))
        full.listen(0)
        waiting = [socket.create_connection(full.getsockname()), socket.socket()]
        waiting[1].setblocking(False)
        waiting[1].connect_ex(full.getsockname())
        try:
            error = await failure(webhooks, f"http://{PUBLIC}:{full.getsockname()[1]}/")
        finally:
            for one in waiting:
                one.close()

    assert (str(error), error.kind) == ("no connection to the receiver in time", AttemptKind.TIMEOUT)


async def test_a_receiver_that_hangs_up(webhooks: WebhookClient, public: Listener) -> None:
    public.answer, public.keep_alive = b"", False

    assert (await failure(webhooks, f"http://{PUBLIC}:{public.port}/")).kind is AttemptKind.PROTOCOL


async def test_an_answer_that_is_no_http(webhooks: WebhookClient, public: Listener) -> None:
    public.answer = b"220 mail.test ESMTP" + b"x" * 9_000 + b"\r\n\r\n"

    error = await failure(webhooks, f"http://{PUBLIC}:{public.port}/")

    assert error.kind is AttemptKind.PROTOCOL
    assert str(error).startswith("no HTTP answer: ")
    assert len(str(error)) < 250


async def test_a_header_that_cannot_be_sent_is_not_repeated(webhooks: WebhookClient, public: Listener) -> None:
    with pytest.raises(NoAnswerError) as caught:
        await webhooks.post(f"http://{PUBLIC}:{public.port}/", b"", {"x-secret": "hidden\r\nx-other: 1"})

    assert (str(caught.value), caught.value.kind) == ("the request cannot be put into HTTP", AttemptKind.PROTOCOL)
    assert public.requests == []


# TLS


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


def certified(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names).configure_cert(context)
    return context


@pytest.mark.parametrize("url", ["https://hook.test:{port}/", "https://HOOK.test.:{port}/"])
async def test_tls_and_host_keep_the_name(names: DnsServer, authority: trustme.CA, url: str) -> None:
    names.says(NAME, [PUBLIC])
    names.says("hook.test.", [PUBLIC])
    async with (
        listening(PUBLIC, tls=certified(authority, NAME)) as listener,
        make_client(names, trust=authority) as webhooks,
    ):
        assert (await post(webhooks, url.format(port=listener.port))).taken

        assert listener.names == [NAME]
        assert listener.requests[0][1]["host"].rstrip(".") in (f"{NAME}:{listener.port}", f"{NAME}.:{listener.port}")


@pytest.mark.parametrize(("address", "host"), [(PUBLIC, PUBLIC), (PUBLIC, "0x7f.2"), ("::1", "[::1]")])
async def test_tls_for_an_address(names: DnsServer, authority: trustme.CA, address: str, host: str) -> None:
    async with (
        listening(address, tls=certified(authority, address)) as listener,
        make_client(names, ALL_OF_THEM, trust=authority) as webhooks,
    ):
        assert (await post(webhooks, f"https://{host}:{listener.port}/")).taken


async def test_tls_with_a_wrong_name(names: DnsServer, authority: trustme.CA) -> None:
    names.says(NAME, [PUBLIC])
    async with (
        # The address is not what is to be proven, though it is what is called.
        listening(PUBLIC, tls=certified(authority, "other.test", PUBLIC)) as listener,
        make_client(names, trust=authority) as webhooks,
    ):
        error = await failure(webhooks, f"https://{NAME}:{listener.port}/")

    assert (error.kind, listener.requests) == (AttemptKind.TLS, [])
    assert str(error) == "TLS failed: Hostname mismatch, certificate is not valid for 'hook.test'."


async def test_tls_with_a_certificate_that_nobody_knows(names: DnsServer) -> None:
    names.says(NAME, [PUBLIC])
    async with listening(PUBLIC, tls=certified(trustme.CA(), NAME)) as listener, make_client(names) as webhooks:
        error = await failure(webhooks, f"https://{NAME}:{listener.port}/")

    assert (error.kind, listener.requests) == (AttemptKind.TLS, [])
    assert "certificate" in str(error)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""], ids=["plain HTTP", "hangs up"])
async def test_tls_where_none_is_spoken(webhooks: WebhookClient, answer: bytes) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(16)
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(handle, PUBLIC, 0) as server:
        error = await failure(webhooks, f"https://{PUBLIC}:{server.sockets[0].getsockname()[1]}/")

    assert error.kind is AttemptKind.TLS
    assert str(error) == f"TLS failed: {'wrong version number' if answer else 'the receiver hung up'}"


async def test_tls_that_comes_to_nothing_leaves_no_connection_behind(names: DnsServer) -> None:
    closed = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.read()
        closed.set()
        writer.close()

    async with await asyncio.start_server(handle, PUBLIC, 0) as server, make_client(names) as webhooks:
        url = f"https://{PUBLIC}:{server.sockets[0].getsockname()[1]}/"
        with pytest.raises(NoAnswerError) as caught:
            await webhooks.post(url, b"", {}, timeout=0.3)
        async with asyncio.timeout(10):
            await closed.wait()

    assert caught.value.kind is AttemptKind.TIMEOUT


async def test_tls_that_wants_our_certificate(names: DnsServer, authority: trustme.CA) -> None:
    context = certified(authority, PUBLIC)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    async with listening(PUBLIC, tls=context) as listener, make_client(names, trust=authority) as webhooks:
        error = await failure(webhooks, f"https://{PUBLIC}:{listener.port}/")

    # TLS 1.3 is set up for us before the receiver has seen that ours is missing.
    assert error.kind in (AttemptKind.TLS, AttemptKind.PROTOCOL)
    assert listener.requests == []


async def test_plain_http_where_tls_is_spoken(names: DnsServer, authority: trustme.CA) -> None:
    async with listening(PUBLIC, tls=certified(authority, PUBLIC)) as listener, make_client(names) as webhooks:
        error = await failure(webhooks, f"http://{PUBLIC}:{listener.port}/")

    assert error.kind is AttemptKind.PROTOCOL


# Proxies


class Proxy:
    """A forward proxy that knows all names as one listener."""

    def __init__(self, to: Listener) -> None:
        self.port = 0
        self.refuses = False
        self.heads: list[str] = []
        self._to = to

    @property
    def url(self) -> str:
        return f"http://user:hidden%40@proxy.test:{self.port}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        if self.refuses:
            writer.write(b"HTTP/1.1 403 Not That One\r\ncontent-length: 0\r\n\r\n")
            writer.close()
            return
        up_reader, up_writer = await asyncio.open_connection(self._to.address, self._to.port)
        if head.startswith("CONNECT"):
            writer.write(b"HTTP/1.1 200 -\r\n\r\n")
        else:
            up_writer.write(head.encode())
        async with asyncio.TaskGroup() as both:
            both.create_task(pump(reader, up_writer))
            both.create_task(pump(up_reader, writer))


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def proxying(to: Listener) -> AsyncIterator[Proxy]:
    proxy = Proxy(to)
    server = await asyncio.start_server(proxy.handle, INSIDE, 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_all_goes_through_the_egress_proxy(
    names: DnsServer, authority: trustme.CA, scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    names.says("proxy.test", [INSIDE])
    tls = certified(authority, NAME) if scheme == "https" else None
    async with (
        listening(PUBLIC, tls=tls) as listener,
        proxying(listener) as proxy,
        make_client(names, proxy=proxy.url, trust=authority) as webhooks,
    ):
        assert (await post(webhooks, f"{scheme}://{NAME}/hook?a=1")).taken

    first = {"http": f"POST http://{NAME}/hook?a=1 HTTP/1.1", "https": f"CONNECT {NAME}:443 HTTP/1.1"}[scheme]
    assert proxy.heads[0].startswith(first + "\r\n")
    assert "Proxy-Authorization: Basic dXNlcjpoaWRkZW5A\r\n" in proxy.heads[0]
    assert [headers["host"] for _, headers in listener.requests] == [NAME]
    if scheme == "https":
        assert listener.names == [NAME]
        assert "proxy-authorization" not in listener.requests[0][1]
    assert names.looked_up(NAME) == 0
    assert "hidden" not in caplog.text
    assert "dXNlcjpoaWRkZW5A" not in caplog.text


@pytest.mark.parametrize("host", [INSIDE, "2130706433", "[::1]", "[::ffff:10.0.0.1]"])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_addresses_in_urls_are_checked_before_the_egress_proxy_too(
    names: DnsServer, public: Listener, scheme: str, host: str
) -> None:
    names.says("proxy.test", [INSIDE])
    async with proxying(public) as proxy, make_client(names, proxy=proxy.url) as webhooks:
        await assert_blocked(webhooks, f"{scheme}://{host}/")

    assert proxy.heads == []


@pytest.mark.parametrize("host", ["127。0。0。1", "\uff11\uff12\uff17.0.0.1", "é.test", "a b"])
async def test_the_egress_proxy_is_told_no_other_host_than_was_checked(
    names: DnsServer, public: Listener, host: str
) -> None:
    names.says("proxy.test", [INSIDE])
    async with proxying(public) as proxy, make_client(names, proxy=proxy.url) as webhooks:
        await failure(webhooks, f"http://{host}/")

    assert proxy.heads == []


async def test_an_address_goes_to_the_egress_proxy_in_its_usual_spelling(names: DnsServer, public: Listener) -> None:
    names.says("proxy.test", [INSIDE])
    async with proxying(public) as proxy, make_client(names, proxy=proxy.url) as webhooks:
        assert (await post(webhooks, "http://0x7f000002:81/")).taken

    assert proxy.heads[0].startswith(f"POST http://{PUBLIC}:81/ HTTP/1.1")


async def test_an_ipv6_address_goes_through_the_egress_proxy(names: DnsServer, public: Listener) -> None:
    names.says("proxy.test", [INSIDE])
    async with proxying(public) as proxy, make_client(names, ALL_OF_THEM, proxy=proxy.url) as webhooks:
        assert (await post(webhooks, "http://[fd00::1]:81/")).taken

    assert proxy.heads[0].startswith("POST http://[fd00::1]:81/ HTTP/1.1")


async def test_what_the_egress_proxy_refuses(names: DnsServer, public: Listener) -> None:
    names.says("proxy.test", [INSIDE])
    async with proxying(public) as proxy, make_client(names, proxy=proxy.url) as webhooks:
        proxy.refuses = True
        error = await failure(webhooks, f"https://{NAME}/")

    assert (str(error), error.kind) == ("the egress proxy refused: 403 Not That One", AttemptKind.CONNECT)


async def test_an_egress_proxy_that_is_down(names: DnsServer) -> None:
    names.says("proxy.test", [INSIDE])
    url = f"http://user:hidden@proxy.test:{closed_port(INSIDE)}"
    async with make_client(names, proxy=url) as webhooks:
        error = await failure(webhooks, f"https://{NAME}/")

    assert (str(error), error.kind) == ("no connection to the egress proxy: connection refused", AttemptKind.CONNECT)


async def test_proxy_variables_are_not_used(
    names: DnsServer, public: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    names.says(NAME, [PUBLIC])
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        for spelling in (name, name.upper()):
            monkeypatch.setenv(spelling, f"http://{INSIDE}:{closed_port(INSIDE)}")

    async with make_client(names) as webhooks:
        assert (await post(webhooks, f"http://{NAME}:{public.port}/")).taken


# The service


@pytest.fixture
async def guarded(
    settings: Settings, temporal: Temporal, client: Client, names: DnsServer, db: str
) -> AsyncIterator[Service]:
    """The service as it is outside of tests, but for where names are looked up."""
    settings = replace(settings, allow_private_targets=False, allowed_targets=PUBLIC, task_queue="guarded")
    with pytest.MonkeyPatch.context() as env:
        env.setenv("TEMPORAL_ADDRESS", temporal.address)
        async with (
            serving(create_app(settings)) as api,
            open_pool(settings) as pool,
            make_client(names, settings.address_guard) as webhooks,
            create_worker(client, pool, webhooks, settings),
        ):
            yield Service(api, db)


async def test_a_route_to_a_refused_address_is_not_created_and_nothing_is_called(
    guarded: Service, public: Listener, inside: Listener, names: DnsServer
) -> None:
    await guarded.add_route(f"http://{NAME}:{public.port}/")
    for host in REFUSED:
        route = {"id": "inside", "type": "REST", "webhook_url": f"http://{host}:{public.port}/"}

        created = await guarded.api.post(f"/route/{guarded.db}", json=route)
        changed = await guarded.api.put(f"/route/{guarded.db}/{ROUTE}", json=route | {"id": ROUTE})

        assert refused(created) == refused(changed) == BAD_URL, host
    assert (public.connections, inside.connections, names.queries) == (0, 0, [])


async def test_a_refusal_does_not_tell_why(guarded: Service) -> None:
    answers = []
    for host in ("127.0.0.1", "10.0.0.1", "169.254.169.254", "192.88.99.1", "[ff02::1]", "[2002::1]"):
        route = {"id": "inside", "type": "REST", "webhook_url": f"http://{host}/"}
        answers.append((await guarded.api.post(f"/route/{guarded.db}", json=route)).json())

    assert answers == [answers[0]] * len(answers)
    assert answers[0]["code"] == "E010"
    assert "TIMEMACHINE_ALLOWED_TARGETS" in answers[0]["error"]


async def test_a_job_whose_name_moves_inside_fails_at_once_and_does_not_tell_where_to(
    guarded: Service,
    public: Listener,
    inside: Listener,
    names: DnsServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    public.keep_alive = False
    names.says(NAME, [PUBLIC], [INSIDE])
    await guarded.add_route(f"http://{NAME}:{public.port}/")

    await guarded.wait_for_state(await guarded.create(0), "delivered")
    job = await guarded.wait_for_state(await guarded.create(0), "failed")

    assert job["attempts"] == 1
    assert job["last_error"].endswith("The webhook_url points where deliveries may not go.")
    assert (len(public.requests), inside.connections) == (1, 0)
    (blocked,) = [record for record in caplog.records if record.message.startswith("target blocked")]
    assert vars(blocked)["detail"] == f"{NAME} stands for {INSIDE}"


async def test_a_name_that_is_asked_for_once_look_ups_have_ended_is_one_that_is_not_found() -> None:
    """As one that waited to be asked for once more. It is no fault within an attempt."""
    resolver = SystemResolver(["127.0.0.1:1"])
    assert await resolver("127.0.0.1")
    await resolver.aclose()

    with pytest.raises(OSError, match="destroyed"):
        await resolver("receiver.example")
    await resolver.aclose()

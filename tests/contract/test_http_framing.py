"""One request, one answer: no header makes the API take a body for a request, or a request for a body."""

import asyncio
from collections.abc import Sequence

import httpx
import pytest

from tests.contract.bodies import chunked, job, route
from tests.contract.server import JSON, Server, parse
from tests.support.cases import each_case
from tests.support.refusals import FORBIDDEN_NAME, MALFORMED, NO_SUCH_JOB, NO_SUCH_ROUTE
from tests.support.service import ROUTE, Service, refused

MARKED = b"GET /job/d/c/second HTTP/1.1\r\nhost: x\r\n\r\n"
"""A request that no answer may be seen of when it stands in a body: it is answered E004."""

UPGRADES = [
    pytest.param([b"upgrade: h2c", b"connection: upgrade"], id="h2c"),
    pytest.param([b"upgrade: h2c", b"connection: Upgrade, HTTP2-Settings", b"http2-settings: AAMAAABk"], id="JDK"),
    pytest.param([b"upgrade: websocket", b"connection: upgrade"], id="websocket"),
    pytest.param([b"upgrade: TLS/1.2", b"connection: keep-alive, Upgrade"], id="TLS"),
    pytest.param([b"upgrade: h2c"], id="without connection"),
    pytest.param([b"connection: upgrade"], id="without upgrade"),
    pytest.param([b"UPGRADE: H2C", b"CONNECTION: UPGRADE"], id="upper case"),
    pytest.param([b"upgrade: h2c, websocket", b"upgrade: x", b"connection: upgrade"], id="several"),
    pytest.param([b"connection: keep-alive"], id="keep-alive"),
    pytest.param([b"connection: content-length, transfer-encoding, upgrade", b"upgrade: x"], id="hop-by-hop length"),
    pytest.param([b"upgrade:"], id="empty upgrade"),
    pytest.param([b"proxy-connection: upgrade", b"http2-settings: AAMAAABk"], id="proxy's words"),
]


def request(
    method: str, path: str, body: bytes | None, lines: Sequence[bytes] = (), *, in_chunks: bool = False
) -> bytes:
    """Return the bytes of a request."""
    head = [f"{method} {path} HTTP/1.1".encode(), b"host: x", *lines]
    if body is None:
        return b"\r\n".join(head) + b"\r\n\r\n"
    framing = b"transfer-encoding: chunked" if in_chunks else b"content-length: %d" % len(body)
    whole = chunked(body) + chunked(b"") if in_chunks else body
    return b"\r\n".join([*head, JSON.strip(), framing]) + b"\r\n\r\n" + whole


async def answers(server: Server, pieces: Sequence[bytes]) -> list[httpx.Response]:
    """Send pieces one by one on one connection, each once the one before was read, and return all answers to them.

    A last request of ours, which is answered 200, tells that nothing else comes.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        async with asyncio.timeout(20):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await server.request("GET", "/healthz")  # what the server has read before it answers this
            found: list[httpx.Response] = []
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: last\r\nconnection: close\r\n\r\n")
            everything = await reader.read(-1)
            while everything:
                head, _, rest = everything.partition(b"\r\n\r\n")
                length = int(parse(head + b"\r\n\r\n").headers.get("content-length", 0))
                found.append(parse(head + b"\r\n\r\n" + rest[:length]))
                everything = rest[length:]
            return found
    finally:
        writer.close()


def cut(whole: bytes, pieces: int) -> list[bytes]:
    """Return the bytes in so many pieces, the first one ending with the head where there are two."""
    if pieces == 1:
        return [whole]
    if pieces == 2:
        head, end, body = whole.partition(b"\r\n\r\n")
        return [head + end, body] if body else [head, end]
    step = -(-len(whole) // pieces)
    return [whole[at : at + step] for at in range(0, len(whole), step)]


@each_case("pieces", [1, 2, 9])
@each_case("in_chunks", [False, True])
@each_case("lines", UPGRADES)
async def test_a_body_is_never_read_as_a_request(
    server: Server, lines: list[bytes], in_chunks: bool, pieces: int
) -> None:
    whole = request("POST", "/job/d/c", MARKED, lines, in_chunks=in_chunks)

    first, last = await answers(server, cut(whole, pieces))

    assert refused(first) == MALFORMED
    assert last.json() == {"status": "ok"}


@pytest.mark.parametrize("pieces", [1, 2, 9])
@pytest.mark.parametrize("in_chunks", [False, True], ids=["length", "chunks"])
@pytest.mark.parametrize("lines", UPGRADES)
async def test_a_request_that_offers_another_protocol_takes_effect(
    jobs: Service, server: Server, lines: list[bytes], in_chunks: bool, pieces: int
) -> None:
    whole = request("POST", jobs.jobs, job(), lines, in_chunks=in_chunks)

    first, last = await answers(server, cut(whole, pieces))

    assert first.json() == last.json() == {"status": "ok"}
    assert (await jobs.find("x"))["state"] == "scheduled"


@each_case("lines", UPGRADES)
async def test_a_request_without_a_body_is_one_request(server: Server, lines: list[bytes]) -> None:
    first, second, last = await answers(server, [request("GET", "/job/d/c/x", None, lines), MARKED])

    assert refused(first) == refused(second) == NO_SUCH_JOB
    assert last.json() == {"status": "ok"}


@each_case(
    ("method", "path"),
    [
        ("GET", "/job/d/c/x"),
        ("DELETE", "/job/d/c/x"),
        ("GET", "/healthz"),
        ("PATCH", "/job/d/c/x"),
        ("GET", "/nowhere"),
    ],
)
@each_case("lines", UPGRADES)
async def test_a_body_that_nobody_asked_for_is_not_read_as_a_request(
    server: Server, method: str, path: str, lines: list[bytes]
) -> None:
    assert len(await answers(server, cut(request(method, path, MARKED, lines), 2))) == 2


@pytest.mark.parametrize("lines", UPGRADES)
async def test_an_optional_body_that_is_there_takes_effect(jobs: Service, server: Server, lines: list[bytes]) -> None:
    for in_chunks in (False, True):
        body = b'{"reason": "spring"}'
        whole = request("POST", f"/route/{jobs.db}/{ROUTE}/pause", body, lines, in_chunks=in_chunks)
        assert (await answers(server, cut(whole, 2)))[0].json() == {"status": "ok"}
        assert (await jobs.api.get(f"/route/{jobs.db}/{ROUTE}")).json()["reason"] == "spring"
        await jobs.api.post(f"/route/{jobs.db}/{ROUTE}/resume")


@pytest.mark.parametrize("framing", [b"content-length: 0", b"content-length: 000", b""])
async def test_an_optional_body_may_be_left_out(jobs: Service, server: Server, framing: bytes) -> None:
    head = f"POST /route/{jobs.db}/{ROUTE}/pause HTTP/1.1\r\nhost: x\r\n".encode()

    answer = await server.send(head + framing + (b"\r\n" if framing else b"") + b"\r\n")

    assert answer.json() == {"status": "ok"}


async def test_an_optional_body_that_is_declared_is_not_taken_for_one_left_out(
    refusing: Service, server: Server
) -> None:
    pause = f"/route/{refusing.db}/{ROUTE}/pause"

    assert refused((await answers(server, [request("POST", pause, b"", in_chunks=True)]))[0]) == MALFORMED


@each_case(
    "lines",
    [
        pytest.param([b"content-length: 4", b"transfer-encoding: chunked"], id="length and chunks"),
        pytest.param([b"transfer-encoding: chunked", b"content-length: 4"], id="chunks and length"),
        pytest.param([b"content-length: 0", b"transfer-encoding: chunked"], id="no length and chunks"),
        pytest.param([b"transfer-encoding: chunked, identity"], id="chunked is not last"),
        pytest.param([b"transfer-encoding: identity"], id="identity"),
        pytest.param([b"transfer-encoding: gzip, chunked"], id="gzip"),
        pytest.param([b"transfer-encoding: xchunked"], id="unknown"),
        pytest.param([b"transfer-encoding: chunked", b"transfer-encoding: chunked"], id="twice"),
        pytest.param([b"transfer-encoding: chunked", b"transfer-encoding: identity"], id="two"),
        pytest.param([b"transfer-encoding:"], id="empty"),
        pytest.param([b"transfer-encoding: \x0bchunked"], id="vertical tab"),
        pytest.param([b"transfer-encoding : chunked"], id="blank before the colon"),
        pytest.param([b"transfer_encoding: chunked", b"content-length: x"], id="no length"),
        pytest.param([b"transfer-encoding:\r\n chunked", b"content-length: 4"], id="folded"),
        pytest.param([b"transfer-encoding: chunked\r\n\t, identity"], id="folded list"),
        pytest.param([b"content-length: 4\r\n 4"], id="folded length"),
        pytest.param([b"content-length: 4", b"content-length: 5"], id="two lengths"),
        pytest.param([b"content-length: 4, 5"], id="two lengths in one"),
        pytest.param([b"content-length: +4"], id="plus"),
        pytest.param([b"content-length: 0x4"], id="hexadecimal"),
        pytest.param([b"content-length: 4 4"], id="blank inside"),
        pytest.param([b"content-length:"], id="empty length"),
        pytest.param([b"content-length: 1" + b"0" * 30], id="huge"),
    ],
)
@each_case("upgrade", [[], [b"upgrade: h2c", b"connection: upgrade"]])
async def test_a_length_that_could_be_read_in_two_ways_ends_the_connection(
    refusing: Service, server: Server, lines: list[bytes], upgrade: list[bytes]
) -> None:
    head = b"\r\n".join([f"POST {refusing.jobs} HTTP/1.1".encode(), b"host: x", JSON.strip(), *lines, *upgrade])

    found = await answers(server, [head + b"\r\n\r\n", b"0\r\n\r\n" + MARKED])

    assert [refused(answer) for answer in found] == [MALFORMED]
    assert found[0].headers["connection"] == "close"


async def test_a_folded_header_is_read_as_one(refusing: Service, server: Server) -> None:
    whole = request("POST", refusing.jobs, MARKED, in_chunks=True).replace(
        b"encoding: chunked", b"encoding:\r\n chunked"
    )

    found = await answers(server, [whole])

    assert [answer.status_code for answer in found] == [400, 200]


async def test_a_refusal_before_100_continue_ends_the_connection(refusing: Service, server: Server) -> None:
    head = request("POST", "/job//c", b"{}", [b"expect: 100-continue"])[:-2]

    found = await answers(server, [head, MARKED])

    assert [refused(answer) for answer in found] == [FORBIDDEN_NAME]


async def test_requests_one_behind_the_other_are_answered_in_order(jobs: Service, server: Server) -> None:
    create, pause = request("POST", jobs.jobs, job()), request("PUT", f"/route/{jobs.db}/{ROUTE}", route(id=ROUTE))

    for pieces in (1, 2, 9):
        found = await answers(server, cut(create + MARKED + pause + MARKED, pieces))
        assert [answer.status_code for answer in found] == [200, 400, 200, 400, 200]


@each_case(
    ("target", "expected"),
    [
        ("http://x/healthz", 200),
        ("HTTP://x:80/healthz", 200),
        ("http://x", 404),
        ("http://x/job//c/x", 400),
        ("http://x/http://y/healthz", 400),
        ("http://x/http:/healthz", 404),
        ("http://x/job/d/c/http://y/attempts", 400),
    ],
)
async def test_a_request_line_with_a_whole_url(server: Server, target: str, expected: int) -> None:
    answer = await server.send(f"GET {target} HTTP/1.1\r\nhost: x\r\n\r\n".encode())

    assert answer.status_code == expected
    assert answer.headers["content-type"] == "application/json"


@each_case(
    "late",
    [
        pytest.param(b"zz\r\n", id="chunk size"),
        pytest.param(b"0\r\nno trailer\r\n\r\n", id="trailer"),
        pytest.param(b"4\r\nabcdefg", id="end of a chunk"),
        pytest.param(b"1;a\rb\r\nx\r\n0\r\n\r\n", id="carriage return in an extension"),
    ],
)
@each_case("path", ["/job//c", "/nowhere", "/healthz"])
@each_case("pieces", [1, 2, 9])
async def test_a_body_that_is_malformed_after_its_answer_ends_the_connection(
    server: Server, path: str, late: bytes, pieces: int
) -> None:
    head = request("GET", path, None, [b"transfer-encoding: chunked"])

    found = await answers(server, cut(head + chunked(MARKED) + late, pieces))

    assert len(found) <= 1
    assert all(refused(answer)[1] != "E004" for answer in found if answer.status_code != 200)


@each_case(
    "whole",
    [
        pytest.param(request("GET", "/healthz", None, [b"x:" + b" " * 60_000 + b"\x00"]), id="header"),
        pytest.param(request("GET", "/healthz", None, [b"x:" + b"\r\n " * 20_000 + b"\x00"]), id="folded header"),
        pytest.param(request("GET", "/healthz", None, [b"x:" + b"\t" * 60_000 + b"\x00"]), id="tabs"),
        pytest.param(
            request("POST", "/job/d/c", None, [b"transfer-encoding: chunked"]) + b"1;" + b" " * 60_000 + b"\n\r\n",
            id="chunk extension",
        ),
        pytest.param(
            request("POST", "/job/d/c", None, [b"transfer-encoding: chunked"])
            + b"0\r\nx:"
            + b" " * 60_000
            + b"\x00\r\n\r\n",
            id="trailer",
        ),
    ],
)
async def test_many_blanks_hold_nobody_up(server: Server, whole: bytes) -> None:
    """Read by a pattern that tries each blank in two places, each of these holds the event loop for half a minute."""
    assert refused(await server.send(whole)) == MALFORMED


async def test_http_1_0_has_no_chunks(server: Server) -> None:
    whole = request("POST", "/job/d/c", b"{}", in_chunks=True).replace(b"HTTP/1.1", b"HTTP/1.0")

    assert [refused(answer) for answer in await answers(server, [whole, MARKED])] == [MALFORMED]


@each_case("target", ["healthz", "job/d/c/x", "x:80", "?a=/healthz", "http:healthz"])
async def test_a_path_without_a_slash_is_refused(server: Server, target: str) -> None:
    """A proxy that lets nobody but some to `/route` may see no such path in `route`."""
    assert refused(await server.request("GET", target)) == MALFORMED


async def test_many_chunks_are_read_in_turns(refusing: Service, server: Server) -> None:
    """Read at once, what one packet can hold of them takes the event loop for half a second."""
    body = job(meta=b'"' + b"a" * 30_000 + b'"', route="none")
    whole = request("POST", refusing.jobs, None, [b"transfer-encoding: chunked", JSON.strip()])
    whole += chunked(*(bytes([byte]) for byte in body)) + chunked(b"")

    found = await answers(server, [whole + MARKED, MARKED])

    assert [answer.status_code for answer in found] == [400, 400, 400, 200]
    assert refused(found[0]) == NO_SUCH_ROUTE

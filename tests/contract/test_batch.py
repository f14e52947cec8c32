"""Batches over a socket: cut connections, clients that do not read, and bodies that are far larger than memory."""

import asyncio
import json
import os
import socket
from collections import Counter
from collections.abc import Iterable
from typing import Any

import httpx
import psutil
import pytest
import uvicorn
from temporalio.client import Client

from api import http_protocol
from tests.contract.bodies import chunked, job
from tests.contract.server import Server, parse
from tests.support.service import Service, a_job
from tests.support.waiting import eventually

MOST = 1000
"""Jobs that a batch may have."""
JOBS = int(os.environ.get("BATCH_JOBS", "60"))
"""Jobs of the one that is cut."""
LINES = b"content-type: application/x-ndjson\r\n"
LARGE_LINES = 150
MIB = 1024 * 1024
MEMORY_LIMIT = 40 * MIB
"""Bytes by which the process may grow; the body is as large as that."""


def batch_of(service: Service) -> str:
    return f"/batch/{service.db}/c"


def line(job: Any) -> bytes:
    return json.dumps(job).encode() + b"\n"


def head(service: Service, length: int | None) -> bytes:
    framing = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
    return f"POST {batch_of(service)} HTTP/1.1\r\nhost: x\r\n".encode() + LINES + framing + b"\r\n\r\n"


async def results_of(service: Service, jobs: Iterable[Any]) -> list[dict[str, Any]]:
    answer = await service.api.post(
        batch_of(service),
        content=b"".join(map(line, jobs)),
        headers={"content-type": "application/x-ndjson"},
        timeout=120,
    )
    assert answer.status_code == 200, answer.text
    return [json.loads(each) for each in answer.content.splitlines()]


@pytest.mark.timeout(300)
async def test_a_batch_that_was_cut_and_is_repeated_creates_each_job_once(
    jobs: Service, server: Server, client: Client
) -> None:
    batch = [a_job(3600) for _ in range(JOBS)]
    body = b"".join(map(line, batch))
    half = len(body) // 2

    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head(jobs, len(body)) + body[:half])
    await writer.drain()
    await reader.readuntil(b'"created"')
    writer.transport.abort()
    results = await results_of(jobs, batch)

    while any(result.get("code") == "E015" for result in results):  # on a machine with too much to do
        results = await results_of(jobs, batch)
    assert [result["id"] for result in results] == [each["id"] for each in batch]
    found = Counter(result["status"] for result in results)
    assert found["created"] + found["unchanged"] == JOBS
    assert found["unchanged"] >= 1
    query = f"TimemachineDb = '{jobs.db}'"
    counted = await eventually(lambda: client.count_workflows(query), lambda found: found.count >= JOBS)
    assert counted.count == JOBS


@pytest.mark.parametrize("broken", [b"zz\r\n", b"5\r\nabc", b"5\r\nabcdefgh\r\n"], ids=["no length", "cut", "too long"])
async def test_framing_that_breaks_after_the_answer_has_begun_ends_the_connection(
    jobs: Service, server: Server, broken: bytes
) -> None:
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head(jobs, None) + chunked(job("first") + b"\n"))
        answer = await reader.readuntil(b'"created"')
        writer.write(broken)
        if broken.endswith(b"abc"):
            writer.write_eof()
        rest = await reader.read(-1)
        writer.close()

    assert parse(answer).status_code == 200
    assert b"HTTP/1.1" not in rest
    assert not rest.endswith(b"0\r\n\r\n")
    assert (await jobs.find("first"))["state"] == "scheduled"


async def test_blank_lines_have_no_results_and_keep_nobody_waiting(jobs: Service, server: Server) -> None:
    """However many there are: looked through again at each newline, these would take a minute."""
    blanks = b" \r\n" * 100_000
    body = blanks + job("only") + b"\n" + b" " * MIB + b"\n" + blanks
    headers = {"content-type": "application/x-ndjson"}

    async with httpx.AsyncClient(base_url=server.url, timeout=20) as api:
        answer = await api.post(batch_of(jobs), content=body, headers=headers)

    assert [json.loads(each) for each in answer.content.splitlines()] == [{"id": "only", "status": "created"}]


async def test_after_a_batch_the_connection_is_used_again(jobs: Service, server: Server) -> None:
    """Also when the answer was there before the end of the body."""
    too_many = chunked(line(a_job(1, route="none")) * (MOST + 1)) + chunked(line(a_job(1))) + chunked(b"")
    async with asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head(jobs, None) + too_many + b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        everything = await reader.read(-1)
        writer.close()

    first, _, last = everything.rpartition(b"HTTP/1.1 ")
    assert first.count(b'"E007"') == MOST
    assert first.count(b'"E011"') == 1
    assert last.startswith(b"200")


def memory(server: Server) -> psutil.Process:
    """Return the process of the API."""
    for child in psutil.Process().children(recursive=True):
        if any(
            each.status == psutil.CONN_LISTEN and each.laddr.port == server.port
            for each in child.net_connections(kind="inet")
        ):
            return child
    raise AssertionError("no process listens")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("size", [255 * 1024, 2 * MIB], ids=["as large as allowed", "too long"])
async def test_memory_does_not_grow_with_the_body(jobs: Service, server: Server, size: int) -> None:
    """Nor with a client that reads its answer a few bytes at a time."""
    process = memory(server)
    large = line(a_job(3600, route="none", meta="x" * size))
    await results_of(jobs, [a_job(3600, route="none")])
    before = process.memory_info().rss
    peak = before

    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", server.port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=4096)
    read = bytearray()

    async def send() -> None:
        nonlocal peak
        writer.write(head(jobs, len(large) * LARGE_LINES))
        for _ in range(LARGE_LINES):
            writer.write(large)
            await writer.drain()
            peak = max(peak, process.memory_info().rss)

    async def read_slowly() -> None:
        while b"\r\n0\r\n\r\n" not in read:
            read.extend(await reader.read(100))
            await asyncio.sleep(0.001)

    await asyncio.gather(send(), read_slowly())
    writer.close()

    assert read.count(b'"E011"' if size > MIB else b'"E007"') == LARGE_LINES
    assert peak - before < MEMORY_LIMIT


async def test_a_client_that_reads_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "READ_LIMIT", 0.2)
    ended = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000):
            await send({"type": "http.response.body", "body": b"x" * MIB, "more_body": True})
        ended.set()

    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=http_protocol.JsonErrorProtocol, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    _, writer = await asyncio.open_connection(*listening.getsockname())
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    async with asyncio.timeout(20):
        await ended.wait()
    writer.close()
    server.should_exit = True
    await serving

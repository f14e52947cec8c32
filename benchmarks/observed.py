"""What it costs to look inside: the same load with metrics, with traces and with neither, side by side in one stack."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from itertools import cycle, islice, permutations
from typing import cast

import httpx
import msgspec

from benchmarks import scenarios
from benchmarks.http_load import HttpLoad
from benchmarks.implementations import Ours
from benchmarks.more_programs import another_api, another_worker, with_parts
from benchmarks.results import METRICS, OBSERVED, TRACES, UNOBSERVED, Measurement
from benchmarks.run import ScenarioRun
from benchmarks.sink import receiving
from benchmarks.testbed import Testbed
from devstack.ports import LOOPBACK, free_port

CLIENTS = 21
"""Of each way. Together they are as many as those of the sustained scenario."""

_NAMES = {UNOBSERVED: "unobserved", METRICS: "metrics", TRACES: "traces"}
"""Of each way, for what it has of its own."""

_WARM_UP = 3.0
"""Seconds, for programs that have just begun."""

_METRICS_ADDRESS = "TIMEMACHINE_METRICS_ADDRESS"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_TAKEN = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n"


class _Way(msgspec.Struct, frozen=True):
    """An API with a worker and a receiver of its own."""

    place: Testbed
    scraped: Sequence[str]
    """Where its programs serve metrics."""


async def observed(place: Testbed, n: int, turns: int, seconds: float) -> AsyncIterator[Measurement]:
    """Have as many jobs delivered as can be, by all ways at once, in turns of which each counts as a round.

    A machine's rate, and the CPU that the same work takes on it, vary within seconds by far more than it costs to look
    inside. At once all meet the same. So what tells is the CPU of each way's own API and worker: at once, a way that
    takes more of it does not deliver fewer alone. Each turn has new programs, started in another order: two of the same
    kind differ, too, and the first to be started takes some 2 % more.

    Args:
        n: The round, from 0.
        turns: How many in it.
        seconds: How long each turn is measured.
    """
    async with _collecting() as collector:
        orders = islice(cycle(permutations(_NAMES)), n * turns, (n + 1) * turns)
        for turn, order in enumerate(orders, n * turns):
            await place.quiet()
            async with AsyncExitStack() as opened:
                ways = {way: await opened.enter_async_context(_programs(place, way, collector)) for way in order}
                await _at_once(ways, turn, _WARM_UP)
                for measured in await _at_once(ways, turn, seconds):
                    yield measured


async def _at_once(ways: Mapping[str, _Way], turn: int, seconds: float) -> list[Measurement]:
    async with asyncio.TaskGroup() as together:
        found = [together.create_task(_sustained(way, name, turn, seconds)) for name, way in ways.items()]
    return _with_shared_cpu([one.result() for one in found])


async def _sustained(way: _Way, name: str, turn: int, seconds: float) -> Measurement:
    """Return what was measured, with one scrape within it."""
    run = ScenarioRun(way.place, way.place.ours, f"{OBSERVED}{name}", turn)
    async with asyncio.TaskGroup() as at_once:
        measuring = at_once.create_task(scenarios.sustained(run, seconds=seconds, clients=CLIENTS))
        at_once.create_task(_scrape(way.scraped, after=seconds / 2))
    return measuring.result()


def _with_shared_cpu(measured: Sequence[Measurement]) -> list[Measurement]:
    """Return the same with a share for each job of the CPU of what works for all ways."""
    jobs = sum(one.jobs for one in measured)
    shared = {
        name: round(max(one.cpu_ms_per_job[name] * one.jobs for one in measured) / jobs, 3)
        for name in ("temporal", "postgres", "load")
    }
    return [msgspec.structs.replace(one, cpu_ms_per_job=one.cpu_ms_per_job | shared) for one in measured]


@asynccontextmanager
async def _programs(place: Testbed, way: str, collector: str) -> AsyncIterator[_Way]:
    """Run an API and a worker that export what they are to."""
    name = _NAMES[way]
    for_api, for_worker = (_exports(way, collector) | {"TIMEMACHINE_TASK_QUEUE": name} for _ in range(2))
    async with (
        another_worker(place, name, for_worker) as worker,
        another_api(place, name, for_api) as (api, api_url),
        receiving() as sink,
    ):
        with closing(HttpLoad(api_url)) as http:
            route = f"{name}-{sink.port}"
            ours = Ours(place.client, http, route=route)
            await ours.add_route(sink.url, route)
            own = with_parts(place, api=api, worker=worker)
            scraped = [env[_METRICS_ADDRESS] for env in (for_api, for_worker) if _METRICS_ADDRESS in env]
            yield _Way(msgspec.structs.replace(own, ours=ours, sink=sink), scraped)


def _exports(way: str, collector: str) -> dict[str, str]:
    """Return the variables by which one program exports what it is to."""
    if way == METRICS:
        return {_METRICS_ADDRESS: f"{LOOPBACK}:{free_port()}"}
    if way == TRACES:
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector,
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "0.1",
        }
    return {}


async def _scrape(addresses: Sequence[str], *, after: float) -> None:
    await asyncio.sleep(after)
    async with httpx.AsyncClient() as http:
        for address in addresses:
            (await http.get(f"http://{address}/metrics")).raise_for_status()


@asynccontextmanager
async def _collecting() -> AsyncIterator[str]:
    """Return where traces are taken, and forgotten."""
    server = await asyncio.get_running_loop().create_server(_Collector, LOOPBACK, 0)
    try:
        yield f"http://{LOOPBACK}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


class _Collector(asyncio.Protocol):
    """Answers each export as a collector does. A program sends them one after the other."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._read = b""

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, end, body = self._read.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if end and length and len(body) >= int(length[1]):
            self._read = b""
            self._transport.write(_TAKEN)

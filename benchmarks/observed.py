"""What it costs to look inside: the same load with metrics, with traces and with neither, by turns in one stack."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from itertools import chain, permutations
from typing import cast

import httpx
import msgspec

from benchmarks import scenarios
from benchmarks.http_load import HttpLoad
from benchmarks.implementations import Ours
from benchmarks.more_programs import another_api, another_worker, with_parts
from benchmarks.results import METRICS, OBSERVED, TRACES, UNOBSERVED, Measurement, together
from benchmarks.run import ScenarioRun
from benchmarks.sink import receiving
from benchmarks.testbed import Testbed
from devstack.ports import LOOPBACK, free_port

_NAMES = {UNOBSERVED: "unobserved", METRICS: "metrics", TRACES: "traces"}
"""Of each way, for what it has of its own."""

_ORDERS = tuple(permutations(_NAMES))

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
    """Have as many jobs delivered as can be, each way alone for some seconds, in turns of which each counts as a round.

    A machine's rate varies within seconds, and from one program to the next of its kind, by more than it costs to look
    inside. So each way follows each other as often within a turn, and each turn has new programs.

    Args:
        n: The round, from 0.
        turns: How many in it.
        seconds: How long each way is measured at a time.
    """
    async with _collecting() as collector:
        for turn in range(n * turns, (n + 1) * turns):
            await place.quiet()
            async with AsyncExitStack() as opened:
                started = _ORDERS[turn % len(_ORDERS)]
                ways = {way: await opened.enter_async_context(_programs(place, way, collector)) for way in started}
                for way in started:
                    await _sustained(ways[way], way, turn, _WARM_UP)
                pieces: dict[str, list[Measurement]] = {way: [] for way in _NAMES}
                for way in chain.from_iterable(_ORDERS):
                    pieces[way].append(await _sustained(ways[way], way, turn, seconds))
            for of_way in pieces.values():
                yield together(of_way)


async def _sustained(way: _Way, name: str, turn: int, seconds: float) -> Measurement:
    """Return what was measured, with one scrape within it."""
    run = ScenarioRun(way.place, way.place.ours, f"{OBSERVED}{name}", turn)
    async with asyncio.TaskGroup() as at_once:
        measuring = at_once.create_task(scenarios.sustained(run, seconds=seconds))
        at_once.create_task(_scrape(way.scraped, after=seconds / 2))
    return measuring.result()


@asynccontextmanager
async def _programs(place: Testbed, way: str, collector: str) -> AsyncIterator[_Way]:
    """Run an API and a worker that export what they are to."""
    name = _NAMES[way]
    for_api, for_worker = _exports(way, collector), _exports(way, collector)
    async with (
        another_worker(place, name, for_worker) as worker,
        another_api(place, name, for_api | {"TIMEMACHINE_TASK_QUEUE": name}) as (api, api_url),
        receiving() as sink,
    ):
        with closing(HttpLoad(api_url)) as http:
            # The db has those of the turns before, too.
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

"""What it costs to look inside: the same load with metrics, with traces and with neither, in one stack."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import cycle, islice, permutations
from typing import cast

import httpx

from benchmarks import scenarios
from benchmarks.other_settings import restarted_in
from benchmarks.results import METRICS, OBSERVED, TRACES, UNOBSERVED, Measurement
from benchmarks.run import begun
from benchmarks.testbed import Testbed
from devstack.parts import Part
from devstack.ports import LOOPBACK, free_port

SCRAPED_EVERY = 15.0
"""Seconds, as `deploy/prometheus/prometheus.yml` has it. Prometheus' own default is a minute."""

_WARM_UP = 1.0
"""Seconds, for programs that have just begun."""

_METRICS_ADDRESS = "TIMEMACHINE_METRICS_ADDRESS"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_TAKEN = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n"


async def observed(place: Testbed, n: int, turns: int, seconds: float) -> AsyncIterator[Measurement]:
    """Have as many jobs delivered as can be, each way by turns, of which each counts as a round.

    A machine's rate varies within minutes by far more than it costs to look inside, so short turns are compared, in
    each order of the ways.

    Args:
        n: The round, from 0.
        turns: How many in it.
        seconds: How long each way is measured in a turn.
    """
    orders = permutations((UNOBSERVED, METRICS, TRACES))
    async with _collecting() as collector:
        for turn, order in enumerate(islice(cycle(orders), turns), n * turns):
            for way in order:
                async with _looked_into(place, way, collector):
                    scenario = f"{OBSERVED}{way}"
                    await scenarios.sustained(await begun(place, place.ours, scenario, turn), seconds=_WARM_UP)
                    yield await scenarios.sustained(await begun(place, place.ours, scenario, turn), seconds=seconds)


@asynccontextmanager
async def _looked_into(place: Testbed, way: str, collector: str) -> AsyncIterator[None]:
    """Run API and worker so that they export what they are to, and have somebody take it."""
    parts = [*place.processes("api"), *place.processes("worker")]
    addresses = [f"{LOOPBACK}:{free_port()}" for _ in parts] if way == METRICS else []
    exports = [{_METRICS_ADDRESS: address} for address in addresses] or [_traces(way, collector)] * len(parts)
    environments = [(part, _without_metrics(part) | more) for part, more in zip(parts, exports, strict=True)]
    async with restarted_in(environments):
        scraping = asyncio.create_task(_scrape(addresses))
        try:
            yield
        finally:
            scraping.cancel()
            with suppress(asyncio.CancelledError):
                await scraping  # and fail with it, where it did


def _without_metrics(part: Part) -> dict[str, str]:
    return {name: value for name, value in part.program.env.items() if name != _METRICS_ADDRESS}


def _traces(way: str, collector: str) -> dict[str, str]:
    if way != TRACES:
        return {}
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector,
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.1",
    }


async def _scrape(addresses: list[str]) -> None:
    # A worker opens its metrics a moment after it has started.
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(retries=5)) as http:
        while True:
            for address in addresses:
                (await http.get(f"http://{address}/metrics")).raise_for_status()
            await asyncio.sleep(SCRAPED_EVERY)


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

"""Connections between two requests of a client, or of a load balancer in front."""

import asyncio

from tests.contract.server import Server

HEALTH = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"

UVICORNS_OWN = 5.0
"""Seconds that uvicorn keeps an idle connection where nobody tells it anything else."""


async def test_an_idle_connection_is_kept_for_the_next_request(server: Server) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(HEALTH)
        assert await _answered(reader)

        closed = asyncio.create_task(reader.read(1))
        await asyncio.wait([closed], timeout=UVICORNS_OWN + 2)
        assert not closed.done()

        writer.write(HEALTH)
        assert await closed == b"H"
        assert await _answered(reader)
    finally:
        writer.close()


async def _answered(reader: asyncio.StreamReader) -> bool:
    async with asyncio.timeout(20):
        return (await reader.readuntil(b'{"status":"ok"}')).endswith(b"}")

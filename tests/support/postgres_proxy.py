"""A proxy in front of Postgres that cuts the connection at the two moments that matter to a statement."""

import asyncio
from contextlib import suppress
from enum import StrEnum

_PARSE, _BIND, _EXECUTE, _READY = b"P", b"B", b"E", b"Z"


class Cut(StrEnum):
    BEFORE = "before"
    """Postgres never runs the statement."""
    AFTER = "after"
    """Postgres has committed it, and its answer is lost."""


class PostgresProxy:
    """Speaks enough of Postgres' protocol to know where a statement begins and ends. Without TLS."""

    def __init__(self, host: str, port: int, table: str) -> None:
        """Stand in front of a Postgres, and cut none but statements on a table: a driver has statements of its own."""
        self._upstream = host, port
        self._table = table.encode()
        self._server: asyncio.Server | None = None
        self._cut: Cut | None = None
        self._skipped = 0
        self.has_cut = False

    async def start(self) -> int:
        """Listen on loopback and return the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    def stop(self) -> None:
        if self._server:
            self._server.close()

    def cut(self, cut: Cut | None, skipped: int = 0) -> None:
        """Cut at the next statement, or at one after it; or not at all any more."""
        self._cut, self._skipped, self.has_cut = cut, skipped, False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            up_reader, up_writer = await asyncio.open_connection(*self._upstream)
            try:
                up_writer.write(await _startup(reader))
                await self._pump_both(reader, writer, up_reader, up_writer)
            finally:
                up_writer.close()
        writer.close()

    async def _pump_both(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> None:
        """Pass messages on in both directions until either side, or a cut, ends it."""
        silenced = asyncio.Event()
        pumps = [
            asyncio.create_task(self._requests(reader, up_writer, silenced)),
            asyncio.create_task(_answers(up_reader, writer, silenced)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, silenced: asyncio.Event
    ) -> None:
        ours, is_ours = set[bytes](), False
        while True:
            kind, message = await _message(reader)
            if kind == _PARSE and self._table in message:
                ours.add(message[5:].split(b"\0")[0])
            elif kind == _BIND:
                is_ours = message[5:].split(b"\0")[1] in ours
            elif kind == _EXECUTE and is_ours and self._is_next():
                cut, self._cut, self.has_cut = self._cut, None, True
                if cut is Cut.BEFORE:
                    return
                silenced.set()
            writer.write(message)

    def _is_next(self) -> bool:
        if self._cut is None:
            return False
        self._skipped -= 1
        return self._skipped < 0


async def _answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, silenced: asyncio.Event) -> None:
    while True:
        kind, message = await _message(reader)
        if not silenced.is_set():
            writer.write(message)
        elif kind == _READY:
            return


async def _startup(reader: asyncio.StreamReader) -> bytes:
    length = await reader.readexactly(4)
    return length + await reader.readexactly(int.from_bytes(length) - 4)


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    return head[:1], head + await reader.readexactly(int.from_bytes(head[1:]) - 4)

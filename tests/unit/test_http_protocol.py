"""How a connection's bytes are read: in pieces, so that one connection does not keep the others waiting."""

import asyncio
import sys
from functools import partial
from unittest.mock import Mock

import pytest
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from api.http_protocol import PIECE, JsonErrorProtocol


def connected() -> tuple[JsonErrorProtocol, Mock]:
    """Return a connection of which nothing was read yet, and its transport."""
    config = Config(app=Mock())
    config.load()
    protocol, transport = JsonErrorProtocol(config, ServerState(), {}), Mock()
    transport.is_closing.return_value = False
    transport.get_extra_info.return_value = None
    protocol.connection_made(transport)
    return protocol, transport


@pytest.mark.parametrize("size", [1, PIECE, 5 * PIECE + 1])
async def test_a_connection_is_read_in_pieces_with_others_between(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    monkeypatch.setattr(H11Protocol, "data_received", lambda _, data: read.append(data))
    protocol, transport = connected()
    data = bytes(number % 251 for number in range(size))

    protocol.data_received(data)
    assert read == [data[:PIECE]]
    protocol.data_received(data)
    while sum(map(len, read)) < 2 * size:
        before = len(read)
        await asyncio.sleep(0)
        assert len(read) == before + 1

    assert b"".join(read) == data + data
    assert max(map(len, read)) <= PIECE
    assert transport.pause_reading.called == (size > PIECE)
    assert transport.mock_calls[-1][0] == "resume_reading"


async def test_what_is_left_of_a_connection_that_is_closed_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    monkeypatch.setattr(H11Protocol, "data_received", lambda _, data: read.append(data))
    protocol, transport = connected()

    protocol.data_received(bytes(5 * PIECE))
    transport.is_closing.return_value = True
    await asyncio.sleep(0)

    assert len(read) == 1
    assert not protocol._unread


async def test_what_is_no_http_is_not_kept_by_the_error_that_it_is() -> None:
    protocol, transport = connected()
    transport.close.side_effect = partial(setattr, transport.is_closing, "return_value", True)
    data = b"bad\r\n\r\n" + bytes(5 * PIECE)
    held = sys.getrefcount(data)

    protocol.data_received(data)

    assert transport.close.called
    assert not protocol._unread
    assert sys.getrefcount(data) == held

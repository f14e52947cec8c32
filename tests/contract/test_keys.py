"""Keys over a socket: what two API processes say of one, and what a key is like byte for byte."""

import asyncio
import time

import httpx
import pytest

from tests.contract.server import Server
from tests.support.keys import bearer, id_of, make_key
from tests.support.refusals import MALFORMED, NO_VALID_KEY
from tests.support.service import refused
from timemachine.settings import Settings

ANY = "/failed/arena"


async def status(http: httpx.AsyncClient, server: Server, key: str) -> int:
    return (await http.get(server.url + ANY, headers=bearer(key))).status_code


async def test_a_revocation_holds_in_every_process_within_five_seconds(
    keyed_pair: list[Server], settings: Settings
) -> None:
    """The key is in use all the while, so that each process has just been told that it is valid."""
    key, admin = await make_key(settings), await make_key(settings)
    first, second = keyed_pair
    async with httpx.AsyncClient(timeout=30) as http:
        for _ in range(3):
            assert await status(http, first, key) == await status(http, second, key) == 200

        revoked = await http.delete(f"{first.url}/key/{id_of(key)}", headers=bearer(admin))
        assert revoked.status_code == 200
        ended = time.monotonic() + 5

        seen = {first.url: 200, second.url: 200}
        while time.monotonic() < ended:
            for server in keyed_pair:
                seen[server.url] = await status(http, server, key)
            await asyncio.sleep(0.1)

        assert await status(http, first, key) == await status(http, second, key) == 401


async def test_a_key_that_one_process_has_made_or_rotated_is_valid_in_the_other_at_once(
    keyed_pair: list[Server], settings: Settings
) -> None:
    admin = await make_key(settings)
    first, second = keyed_pair
    async with httpx.AsyncClient(timeout=30) as http:
        body = {"name": "n", "role": "read", "dbs": ["arena"]}
        made = (await http.post(f"{first.url}/key", json=body, headers=bearer(admin))).json()["key"]
        assert await status(http, second, made) == 200
        path = f"/key/{id_of(made)}/rotate"
        rotated = (await http.post(first.url + path, headers=bearer(admin))).json()["key"]
        assert await status(http, second, rotated) == await status(http, second, made) == 200


@pytest.mark.parametrize(
    "header",
    [
        b"authorization: Bearer %s\r\nauthorization: Bearer %s\r\n",
        b"authorization: Bearer %s\r\nAuthorization: Bearer %s\r\n",
        b"authorization : Bearer %s\r\nx: %s\r\n",
        b"authorization: Bearer %s%%0a\r\nx: %s\r\n",
        b"authorization: Bearer \xff%s\r\nx: %s\r\n",
        b"x: %s\r\nx: %s\r\n",
    ],
)
async def test_what_is_no_key_byte_for_byte(keyed: Server, settings: Settings, header: bytes) -> None:
    key = (await make_key(settings)).encode()
    request = b"GET /failed/arena HTTP/1.1\r\nhost: x\r\n" + header % (key, key) + b"\r\n"

    answer = await keyed.send(request)

    assert refused(answer) in (NO_VALID_KEY, MALFORMED)


async def test_a_body_is_not_waited_for_without_a_key(keyed: Server) -> None:
    """Nobody without a key can hold a request open, or have its body read."""
    head = b"POST /job/arena/c HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 200000\r\n\r\n"
    started = time.monotonic()

    answer = await keyed.send(head)

    assert refused(answer) == NO_VALID_KEY
    assert answer.headers["www-authenticate"] == "Bearer"
    assert time.monotonic() - started < 9

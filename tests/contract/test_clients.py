"""HTTP clients that others wrote, as they are by default: what they write has its effect."""

import httpx
import pytest

from tests.soak.client_programs import CLIENT_PROGRAMS, OK, ClientProgram, effects


@pytest.mark.parametrize("client", CLIENT_PROGRAMS, ids=lambda client: client.name)
async def test_what_a_client_writes_has_its_effect(client: ClientProgram, api: httpx.AsyncClient, db: str) -> None:
    if client.missing:
        pytest.skip(client.missing)

    done, printed = await effects(client, api, db)

    assert set(done.values()) == {OK}, (done, printed)

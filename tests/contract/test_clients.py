"""HTTP clients that others wrote, as they are by default: what they write has its effect."""

import httpx
import pytest

from tests.soak.client_programs import CLIENT_PROGRAMS, OK, ClientProgram, effects


@pytest.mark.parametrize("program", CLIENT_PROGRAMS, ids=lambda program: program.name)
async def test_what_a_client_writes_has_its_effect(
    program: ClientProgram, api: httpx.AsyncClient, worker: None, db: str
) -> None:
    if program.missing:
        pytest.skip(program.missing)

    done, printed = await effects(program, api, db)

    assert set(done.values()) == {OK}, (done, printed)

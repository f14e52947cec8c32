"""HTTP clients that others wrote: what they write has its effect."""

import uuid

import pytest

from tests.soak.client_programs import CLIENT_PROGRAMS, OK, effects
from tests.soak.cluster import Cluster
from tests.soak.report import table
from tests.soak.story import Callers


@pytest.mark.timeout(300)
async def test_clients(running: Cluster, callers: Callers) -> None:
    rows: list[dict[str, str]] = []
    for client in CLIENT_PROGRAMS:
        if client.missing:
            rows.append({"client": client.name, "skipped": client.missing})
        else:
            done, _ = await effects(client, callers.clients[0], f"db-{uuid.uuid4().hex}")
            rows.append({"client": client.name} | done)

    print(table("clients: what each write did", rows))
    assert {word for row in rows for name, word in row.items() if name not in ("client", "skipped")} == {OK}

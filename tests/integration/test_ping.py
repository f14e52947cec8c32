"""What is asked of Postgres for `/readyz`."""

import json
from collections.abc import Iterator
from typing import Any

from timemachine.postgres.pool import PING, connection, open_pool
from timemachine.settings import Settings


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


async def test_no_row_is_read_however_large_a_table_is(settings: Settings) -> None:
    """The audit log may have millions, and who asks needs no key."""
    async with open_pool(settings) as pool, connection(pool) as postgres:
        explained = json.loads(await postgres.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {PING}"))

    (root, *others) = nodes(explained[0]["Plan"])
    assert (root["Node Type"], root["Actual Rows"]) == ("Limit", 0)
    assert {node["Relation Name"] for node in others if "Relation Name" in node} == {
        *("routes", "api_keys", "audit", "events")
    }
    assert {node["Actual Loops"] for node in others} == {0}

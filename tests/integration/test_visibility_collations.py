"""What groups a job is in, where Temporal's PostgreSQL compares texts by the rules of a language."""

import re

import pytest

from timemachine.domain.job_filter import JobFilter
from timemachine.postgres.pool import connection, open_pool
from timemachine.settings import Settings
from timemachine.temporal.visibility import status_counts_query

ROWS = [
    ("arena/c/1", "arena", "arena/c"),
    ("arena/zzz/2", "arena", "arena/zzz"),
    ("arena/c/from-before", None, None),
    ("arena/zzz/from-before", None, None),
    ("ARENA/c/3", "ARENA", "ARENA/c"),
    ("ARENA/c/from-before", None, None),
    ("arena0/c/4", "arena0", "arena0/c"),
    ("arena-b/c/from-before", None, None),
    ("arena/c0/from-before", None, None),
]
"""Workflow ids, with their db and collection, which jobs from before there were attributes do not have."""


BYTES, LANGUAGE = "{}", "translate(lower({}), '/-', '')"
"""How texts are compared: as in the locale C, and much as in that of a language, which looks at letters first."""


def as_sql(query: str, compared: str) -> str:
    """Return the condition on the group as the server writes it for PostgreSQL, over `ROWS`."""

    def comparison(found: re.Match[str]) -> str:
        return f"{compared.format('id')} {found[1]} {compared.format(found[2])}"

    (condition,) = re.findall(r"(WorkflowId STARTS_WITH .*) GROUP BY", query)
    condition = re.sub(r"WorkflowId STARTS_WITH '([^']*)'", r"id LIKE '\1%'", condition)
    condition = re.sub(r"WorkflowId (<|>=) ('[^']*')", comparison, condition)
    condition = condition.replace("TimemachineDb", "db").replace("TimemachineCollection", "collection")
    rows = "unnest($1::text[], $2::text[], $3::text[]) AS rows (id, db, collection)"
    return f"SELECT id FROM {rows} WHERE {condition}"  # noqa: S608 - all of it is the test's own


@pytest.mark.parametrize("compared", [BYTES, LANGUAGE], ids=["as bytes", "as a language"])
@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (JobFilter(db="arena"), [0, 1, 2, 3, 8]),
        (JobFilter(db="arena", collection="c"), [0, 2]),
        (JobFilter(db="ARENA"), [4, 5]),
        (JobFilter(db="aren"), []),
    ],
)
async def test_counts_have_the_jobs_of_a_group(
    settings: Settings, wanted: JobFilter, numbers: list[int], compared: str
) -> None:
    statement = as_sql(status_counts_query(wanted), compared)

    async with open_pool(settings) as pool, connection(pool) as postgres:
        found = await postgres.fetch(statement, *map(list, zip(*ROWS, strict=True)))

    assert [row["id"] for row in found] == [ROWS[number][0] for number in numbers]

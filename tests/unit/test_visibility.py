"""Queries of visibility: what they ask, and that they are made in one place."""

import ast
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec.structs import replace

from api.schemas import MAX_TIME
from timemachine.domain.job_filter import JobFilter, ListedJob, ListedState
from timemachine.domain.jobs import to_ms
from timemachine.temporal.visibility import (
    all_due_jobs_query,
    ended_jobs_query,
    held_jobs_query,
    job_query,
    later_runs_query,
    open_jobs_query,
    status_counts_query,
)

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 11, 26, 8, 0, 0, 123456, UTC)
IN_ARENA = "(TimemachineDb = 'arena' OR (TimemachineDb IS NULL AND WorkflowId STARTS_WITH 'arena/'))"
IN_GAMES = (
    "(TimemachineCollection = 'arena/g' OR (TimemachineCollection IS NULL AND WorkflowId STARTS_WITH 'arena/g/'))"
)
RUNNING, NOT_HELD = "ExecutionStatus = 'Running'", "(TimemachineHeld IS NULL OR TimemachineHeld = false)"
NOT_CLOSED = "(CloseTime IS NULL OR NOT CloseTime < '2262-01-01T00:00:00.000+00:00')"

ASKING = {"list_workflows", "count_workflows"}


def made_elsewhere(source: str) -> list[str]:
    """Return the calls that ask visibility for something else than what a function of `visibility` returned."""
    tree = ast.parse(source)
    made = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "timemachine.temporal.visibility"
        for alias in node.names
    }
    # A function of the file that only hands on what one of these returns is as good.
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.FunctionDef)
            and isinstance(node.body[-1], ast.Return)
            and is_made(node.body[-1].value, made)
        ):
            made = made | {node.name}
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ASKING
    ]
    passed_on = {
        argument.arg
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for argument in node.args.args
        if argument.arg == "query"
    }
    return [
        ast.unparse(call)
        for call in calls
        if not (call.args and (is_made(call.args[0], made) or is_query(call.args[0], passed_on)))
    ]


def is_made(node: ast.expr | None, made: set[str]) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in made


def is_query(node: ast.expr, passed_on: set[str]) -> bool:
    return isinstance(node, ast.Name) and node.id in passed_on


def test_no_query_is_made_elsewhere() -> None:
    ours = [
        path for folder in ("activities", "api", "timemachine", "workflows") for path in (ROOT / folder).rglob("*.py")
    ]
    sources = {str(path.relative_to(ROOT)): path.read_text() for path in (*ours, ROOT / "worker.py")}

    assert sum("list_workflows(" in source for source in sources.values()) >= 4
    assert {name: found for name, source in sources.items() if (found := made_elsewhere(source))} == {}
    written_out = re.compile(r"\b(WorkflowType|WorkflowId|ExecutionStatus|CloseTime|StartTime) (=|!=|<|>|IN|STARTS)")
    assert [name for name, source in sources.items() if written_out.search(source)] == [
        "timemachine/temporal/visibility.py"
    ]


@pytest.mark.parametrize(
    "call",
    [
        "client.list_workflows(f\"WorkflowId = '{job}'\")",
        'client.count_workflows("A = 1")',
        "client.list_workflows()",
        "client.count_workflows(query)",
        "client.count_workflows(job_query(wanted) + more)",
    ],
)
def test_a_query_that_is_made_elsewhere_is_seen(call: str) -> None:
    assert made_elsewhere(f"from timemachine.temporal.visibility import job_query\n{call}") != []


@pytest.mark.parametrize(
    ("wanted", "query"),
    [
        (JobFilter(db="arena"), f"WorkflowType = 'Job' AND {IN_ARENA} AND ExecutionStatus != 'ContinuedAsNew'"),
        (
            JobFilter(db="arena", state=ListedState.SCHEDULED),
            f"{NOT_CLOSED} AND WorkflowType = 'Job' AND {IN_ARENA} "
            f"AND NOT TimemachineTriggerTime < '2026-11-26T08:00:00.124+00:00' AND {NOT_HELD} AND {RUNNING}",
        ),
        (
            JobFilter(db="arena", state=ListedState.SCHEDULED, due_from=0, due_to=to_ms(NOW) + 3),
            f"{NOT_CLOSED} AND WorkflowType = 'Job' AND {IN_ARENA} "
            "AND TimemachineTriggerTime >= '2026-11-26T08:00:00.124+00:00' "
            f"AND TimemachineTriggerTime < '2026-11-26T08:00:00.126+00:00' AND {NOT_HELD} AND {RUNNING}",
        ),
        (
            JobFilter(db="arena", state=ListedState.DUE),
            f"{NOT_CLOSED} AND WorkflowType = 'Job' AND {IN_ARENA} "
            f"AND TimemachineTriggerTime < '2026-11-26T08:00:00.124+00:00' AND {NOT_HELD} AND {RUNNING}",
        ),
        (
            JobFilter(db="arena", route="r", state=ListedState.HELD),
            f"{NOT_CLOSED} AND WorkflowType = 'Job' AND TimemachineRoute = 'arena/r' "
            f"AND TimemachineHeld = true AND {RUNNING}",
        ),
        (
            JobFilter(db="arena", collection="g", id_prefix="a_", label="50% é", created_by="k"),
            f"WorkflowType = 'Job' AND {IN_GAMES} AND WorkflowId STARTS_WITH 'arena/g/a_' "
            "AND TimemachineLabels = '50% é' AND TimemachineCreatedBy = 'k' AND ExecutionStatus != 'ContinuedAsNew'",
        ),
        (
            JobFilter(db="arena", route="r", state=ListedState.FAILED, ended_from=0, ended_to=1),
            "WorkflowType = 'Job' AND TimemachineRoute = 'arena/r' AND CloseTime >= '1970-01-01T00:00:00.000+00:00' "
            "AND CloseTime < '1970-01-01T00:00:00.001+00:00' AND ExecutionStatus IN ('Failed', 'TimedOut')",
        ),
    ],
)
def test_a_filter_becomes_a_query(wanted: JobFilter, query: str) -> None:
    assert job_query(wanted, NOW) == query


def test_the_other_queries() -> None:
    arena = JobFilter(db="arena", route="r")
    start = "WorkflowType = 'Job' AND "
    an_open = f"{NOT_CLOSED} AND {start}"

    assert open_jobs_query(arena, NOW) == f"{an_open}TimemachineRoute = 'arena/r' AND {RUNNING}"
    assert open_jobs_query(replace(arena, due_from=0), NOW) == (
        f"{an_open}TimemachineRoute = 'arena/r' AND NOT TimemachineTriggerTime < '1970-01-01T00:00:00.000+00:00' "
        f"AND {RUNNING}"
    )
    assert ended_jobs_query(arena, NOW).endswith("IN ('Completed', 'Failed', 'TimedOut', 'Canceled', 'Terminated')")
    a_job = "(WorkflowType = 'Job' OR TemporalNamespaceDivision = '') AND "
    assert status_counts_query(arena) == f"{a_job}TimemachineRoute = 'arena/r' GROUP BY ExecutionStatus"
    assert status_counts_query(JobFilter(db="arena", due_to=1)) == (
        f"{a_job}WorkflowId STARTS_WITH 'arena/' AND ((NOT WorkflowId < 'arena/' AND NOT WorkflowId >= 'arena0') "
        "OR TimemachineDb = 'arena' OR TimemachineDb IS NULL) "
        "AND TimemachineTriggerTime < '1970-01-01T00:00:00.001+00:00' GROUP BY ExecutionStatus"
    )
    assert held_jobs_query("arena", "r", due_at=None) == (
        f"{an_open}TimemachineRoute = 'arena/r' AND TimemachineHeld = true AND {RUNNING}"
    )
    assert held_jobs_query("arena", "r", due_at=NOW) == (
        f"{an_open}TimemachineRoute = 'arena/r' "
        f"AND (TimemachineHeld = true OR TimemachineTriggerTime < '2026-11-26T08:00:00.124+00:00') AND {RUNNING}"
    )
    assert all_due_jobs_query(NOW) == (
        f"{an_open}TimemachineTriggerTime < '2026-11-26T08:00:00.124+00:00' "
        f"AND (TimemachineHeld IS NULL OR TimemachineHeld = false) AND {RUNNING}"
    )
    assert later_runs_query(["a/b/c", "it's"], NOW) == (
        f"{start}StartTime >= '2026-11-26T08:00:00.123+00:00' AND WorkflowId IN ('a/b/c', 'it\\'s')"
    )


def test_no_query_has_a_time_that_opensearch_refuses() -> None:
    """Its times end on 11 April 2262."""
    before = MAX_TIME - 1
    latest = JobFilter(db="arena", due_from=before, due_to=MAX_TIME, ended_from=before, ended_to=MAX_TIME)

    years = re.findall(r"'(\d{4})-01-01T", open_jobs_query(latest, NOW) + ended_jobs_query(latest, NOW))

    assert years == ["2262"] * 9


def a_job(**fields: object) -> ListedJob:
    told: dict[str, object] = {
        "db": "arena",
        "collection": "g",
        "id": "a_1",
        "run_id": "r",
        "trigger_time": to_ms(NOW),
        "route": "hook",
        "state": ListedState.SCHEDULED,
        "labels": ("x", "y"),
        "created_at": 0,
    }
    return ListedJob(**told | fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [
        {"db": "Arena"},
        {"collection": "G"},
        {"route": "Hook"},
        {"state": ListedState.DUE},
        {"labels": ("X", "xy")},
        {"id": "aX1"},
        {"trigger_time": to_ms(NOW) - 1},
        {"trigger_time": to_ms(NOW) + 10},
        {"created_by": None},
        {"created_by": "K"},
    ],
    ids=str,
)
def test_what_is_found_is_checked_to_the_letter(fields: dict[str, object]) -> None:
    wanted = JobFilter(
        db="arena",
        collection="g",
        route="hook",
        state=ListedState.SCHEDULED,
        label="x",
        id_prefix="a_",
        due_from=to_ms(NOW),
        due_to=to_ms(NOW) + 10,
        created_by="k",
    )

    assert wanted.includes(a_job(created_by="k"))
    assert not wanted.includes(a_job(**{"created_by": "k"} | fields))


def test_only_what_has_ended_has_ended_within_a_window() -> None:
    wanted = JobFilter(db="arena", ended_from=10, ended_to=20)

    assert [wanted.includes(a_job(ended_at=at)) for at in (None, 9, 10, 19, 20)] == [False, False, True, True, False]

"""The pure parts of what is measured on a cluster only: sizes, waiting jobs, restarts, numbers of nodes."""

import asyncio
import re
import time

import msgspec
import pytest

from benchmarks.by_nodes import beyond_idle
from benchmarks.implementations import Ours
from benchmarks.report import report
from benchmarks.restarts import _first_accepted
from benchmarks.results import (
    NODE_COUNTS,
    OURS,
    Measurement,
    Memory,
    Run,
    TableSize,
    bytes_per_job,
    grown,
    nodes_scenario,
    one_of_each_scenario,
)
from benchmarks.targets import Target, targets
from benchmarks.waiting import (
    DUE_WITHIN_MS,
    FILL_BATCH,
    GROUPS,
    Filler,
    check_levels,
    group_of,
    latency_notes,
    waiting_job,
)
from tests.support.measurements import one, run_of


def table(name: str, rows: int, indexes: int, database: str = "temporal") -> TableSize:
    return TableSize(database=database, table=name, rows=rows, indexes=indexes)


def by_nodes(scenario: str, server: float, database: float, n: int = 0, idle: float = 0) -> Measurement:
    """A measurement whose CPU of a job is that of the server and the database, of which some was used for no job."""
    found = one(scenario, OURS, 50, n=n, idle_ms_per_second=60, idle_ms_per_job=idle)
    return msgspec.structs.replace(
        found, cpu_ms_per_job={"temporal": server, "postgres": database, "api": 2.0, "worker": 7.0, "load": 100.0}
    )


def test_what_is_used_without_a_job_counts_for_the_seconds_that_a_turn_took() -> None:
    measured = msgspec.structs.replace(one("nodes", OURS, 50), cpu_seconds=20, jobs=400)

    assert beyond_idle(measured, idle_ms=60).notes == {"idle_ms_per_second": 60, "idle_ms_per_job": 3}


@pytest.fixture
def run() -> Run:
    """A cluster's, with two levels of waiting jobs; the second was cut short before its restarts."""
    few = one(
        "waiting, 100 jobs",
        OURS,
        120,
        waiting=100,
        list_p50_ms=12,
        list_p95_ms=20,
        label_p50_ms=8,
        label_p95_ms=9,
        count_p50_ms=31,
        count_p95_ms=35,
        lists_unavailable=0,
    )
    resident = {"api": 1, "worker": 1, "temporal": 1, "postgres": 1, "temporal-frontend": 2**20}
    tables = (table("executions", 40_000, 30_000), table("visibility", 10_000, 0, "temporal_visibility"))
    found = run_of(
        msgspec.structs.replace(few, memory=Memory(resident=resident, disk={"temporal": 1}, tables=tables)),
        one("among 100 waiting jobs, a burst of 50", OURS, 40, late=(5, 700), waiting=100),
        one("restart of Temporal, 100 waiting jobs", OURS, 0.1, stopped_seconds=4, accepted_seconds=9.5, waiting=100),
        one("waiting, 900 jobs", OURS, 110, waiting=900),
        *(by_nodes(one_of_each_scenario(*counts), 20, 10, idle=1) for counts in NODE_COUNTS),
        *(by_nodes(nodes_scenario(*counts), 20 * counts[0], 10, idle=counts[0]) for counts in NODE_COUNTS),
    )
    return msgspec.structs.replace(found, on_cluster=True)


def section(run: Run, heading: str) -> str:
    return report(run).partition(f"### {heading}\n")[2].partition("###")[0]


def test_tables_have_grown_since_they_were_empty() -> None:
    empty = [table("shards", 100, 50), table("executions", 8, 16)]
    now = [table("shards", 150, 50), table("executions", 1008, 516), table("tasks", 7, 9)]

    assert grown(now, empty) == (table("shards", 50, 0), table("executions", 1000, 500), table("tasks", 7, 9))


def test_tables_of_the_same_name_in_two_databases_are_two() -> None:
    assert grown([table("t", 5, 5), table("t", 9, 9, "ours")], [table("t", 4, 5)])[1] == table("t", 9, 9, "ours")


def test_bytes_per_job_are_summed_by_database() -> None:
    tables = [table("executions", 400, 100), table("nodes", 200, 60), table("runs", 50, 30, "visibility")]

    assert bytes_per_job(tables, 10) == {
        "temporal rows": 60,
        "temporal indexes": 16,
        "visibility rows": 5,
        "visibility indexes": 3,
        "all": 84,
    }
    assert bytes_per_job([], 10) == {}


def test_latencies_are_noted_by_their_parts() -> None:
    took = [float(n) for n in range(100)]

    assert latency_notes("list", took, "p50", "p95") == {"list_p50_ms": 49, "list_p95_ms": 95}
    assert latency_notes("list", [], "p50") == {}


def test_waiting_jobs_are_due_at_times_of_their_own_spread_over_the_whole_window() -> None:
    due = sorted(waiting_job(number, "r", 1_000_000).trigger_time - 1_000_000 for number in range(10_000))

    assert len(set(due)) == len(due)
    assert due[0] >= 0
    assert due[-1] < DUE_WITHIN_MS
    tenths = [sum(DUE_WITHIN_MS * n // 10 <= each < DUE_WITHIN_MS * (n + 1) // 10 for each in due) for n in range(10)]
    assert max(tenths) - min(tenths) <= 2


def test_waiting_jobs_are_in_several_collections_a_batch_in_one() -> None:
    groups = [group_of(number) for number in range(0, 20 * FILL_BATCH, FILL_BATCH)]

    assert len(set(groups)) == GROUPS
    assert {groups.count(group) for group in groups} == {2}


@pytest.mark.parametrize(("levels", "batch"), [((300, 1500), 100), ((150,), 1000), ((1000, 2200), 400)])
def test_levels_that_leave_room_are_fine(levels: tuple[int, ...], batch: int) -> None:
    check_levels(levels, batch)


@pytest.mark.parametrize(("levels", "batch"), [((149,), 1), ((1000, 2199), 400), ((2000, 1000), 1), ((-5,), 1)])
def test_a_level_that_is_reached_already_is_refused(levels: tuple[int, ...], batch: int) -> None:
    with pytest.raises(ValueError, match="already"):
        check_levels(levels, batch)


class Counted(Ours):
    """Our API as far as it fills: each batch is cut once, and refused in part once."""

    def __init__(self) -> None:
        self.jobs: dict[str, set[str]] = {}
        self._tries: dict[str, int] = {}

    async def create_batch(self, batch, *, collection="c"):  # type: ignore[no-untyped-def]
        ids = [job.id for job in batch]
        self._tries[ids[0]] = self._tries.get(ids[0], 0) + 1
        if self._tries[ids[0]] == 1:
            raise ConnectionResetError
        self.jobs.setdefault(collection, set()).update(ids)
        return len(ids) - (self._tries[ids[0]] == 2)


async def test_filling_repeats_what_was_refused_and_stops_at_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.waiting.FILL_PAUSE", 0.0)
    ours = Counted()
    filler = Filler(ours)
    filler.waiting = 150

    await filler.fill(2_500)
    await filler.fill(3_000)

    assert filler.waiting == 3_000
    assert sum(len(ids) for ids in ours.jobs.values()) == len(set().union(*ours.jobs.values())) == 2_850


async def test_filling_ends_where_jobs_are_never_created(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(Counted):
        async def create_batch(self, batch, *, collection="c"):  # type: ignore[no-untyped-def]
            return 0

    monkeypatch.setattr("benchmarks.waiting.FILL_PAUSE", 0.0)

    with pytest.raises(ExceptionGroup):
        await Filler(Refusing()).fill(10)


def test_the_report_of_a_cluster_has_what_waiting_jobs_take_and_slow_down(run: Run) -> None:
    disk, lists = section(run, "Disk of a waiting job"), section(run, "Lists and counts among waiting jobs")

    assert "| temporal rows, bytes | temporal indexes, bytes | temporal_visibility rows, bytes |" in disk
    assert "| waiting, 100 jobs | timemachine | 400 | 300 | 100 | 0 | 800 |" in disk
    assert "| waiting, 100 jobs | timemachine | 12 | 20 | 8 | 9 | 31 | 35 | 0 |" in lists
    assert "| waiting, 100 jobs | timemachine | 1 |" in section(run, "Memory of Temporal's processes")
    assert "| 40 | 5 | 5 | 700 | 700 |" in section(run, "A burst among waiting jobs")
    assert "| restart of Temporal, 100 waiting jobs | timemachine | 4 | 9.50 |" in report(run)


def test_a_run_that_was_cut_is_reported_as_far_as_it_came(run: Run) -> None:
    cut = msgspec.structs.replace(run, measurements=run.measurements[:1])

    assert "waiting, 100 jobs" in report(cut)
    assert "Restarts" not in report(cut)
    assert "by nodes" not in report(cut)


def test_only_what_was_measured_and_drawn_is_linked(run: Run) -> None:
    links = re.findall(r"\(([^)]+\.svg)\)", report(run))

    assert links == ["scale/waiting.svg"]


def test_the_report_has_the_cost_of_a_job_by_nodes(run: Run) -> None:
    rows = section(run, "Cost of a job by nodes")

    assert "| nodes, 1 x history and 2 x worker | timemachine | 20 | 10 | 2 | 7 | 30 | 29 | 60 | 39 |" in rows
    assert rows.count("nodes, ") == 2 * len(NODE_COUNTS)


def test_lists_are_judged_at_the_most_jobs_that_their_target_is_for() -> None:
    few, many = (one(f"waiting, {n} jobs", OURS, 9, waiting=n, list_p95_ms=n / 1000) for n in (90_000, 1_000_000))

    (page, label, count) = (each for each in targets(run_of(many, few)) if " 90,000 waiting, ms" in each.what)

    assert (page.values, page.reached) == ((90,), True)
    assert (label.values, count.values) == ((), ())
    assert msgspec.structs.replace(page, values=(151,)).reached is False


def node_targets(run: Run) -> list[Target]:
    return [each for each in targets(run) if each.what.startswith("nodes, ")]


def test_no_number_of_nodes_may_make_a_job_dearer_for_server_and_database(run: Run) -> None:
    reached = {each.what.partition(",")[2].partition(",")[0].strip(): each for each in node_targets(run)}

    assert [each.reached for each in reached.values()] == [False, True, False]
    assert reached["2 x history and 1 x worker"].middle == pytest.approx(48 / 29)


def test_the_target_of_nodes_is_the_median_over_rounds() -> None:
    costs = [(0, 20.0), (1, 22.0), (2, 90.0)]
    found = run_of(
        *(by_nodes(one_of_each_scenario(1, 2), 10, 10, n) for n, _ in costs),
        *(by_nodes(nodes_scenario(1, 2), cost - 10, 10, n) for n, cost in costs),
    )

    (more_workers,) = (each for each in node_targets(msgspec.structs.replace(found, on_cluster=True)) if each.values)

    assert more_workers.middle == pytest.approx(1.1)
    assert more_workers.reached


class Restarting(Ours):
    """Our API while it starts: it refuses connections, then says that Temporal does not answer, then accepts."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def create(self, job_id: str, trigger_time: int) -> int:
        self.asked.append(job_id)
        if len(self.asked) <= 2:
            raise ConnectionRefusedError
        if len(self.asked) == 3:
            raise asyncio.IncompleteReadError(b"", None)
        return 503 if len(self.asked) == 4 else 200


async def test_a_restart_is_over_with_the_first_job_that_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.restarts._ASK_EVERY", 0.001)
    ours, began = Restarting(), time.time()

    job_id, accepted = await _first_accepted(ours)

    assert job_id == ours.asked[4]
    assert began <= accepted <= time.time()

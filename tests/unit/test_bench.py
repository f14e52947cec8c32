"""The pure parts of the benchmark: how figures are summed up, judged and reported."""

import asyncio
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from benchmarks.__main__ import arguments, everything, write
from benchmarks.load import at_rate, timed_all
from benchmarks.meter import ms_per
from benchmarks.report import BEGIN, END, number, page_of, report, summary, with_report
from benchmarks.results import (
    BUCKETS_MS,
    HALF,
    OURS,
    RAW,
    STRAIGHTFORWARD,
    Measurement,
    Run,
    merged,
    problems,
    spread,
    together,
)
from benchmarks.scenarios import creates_by_turns
from benchmarks.targets import Target, targets
from tests.support.measurements import one, run_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run() -> Run:
    return run_of(
        one("creates, 16 in flight", RAW, 100, n=0),
        one("creates, 16 in flight", OURS, 96, n=0),
        one("creates, 16 in flight", RAW, 100, n=1),
        one("creates, 16 in flight", OURS, 88, n=1),
        one("creates, in a batch", OURS, 144, n=0),
        one("burst of 90", STRAIGHTFORWARD, 20, late=(5, 100), closed_per_second=18),
        one("burst of 90", OURS, 50, late=(3, 40), closed_per_second=45, worker_until_due=0.25),
        one(HALF, STRAIGHTFORWARD, 10, late=(5, 100)),
        one(HALF, OURS, 10, late=(2, 60)),
        one("waiting, 1000 jobs", OURS, 100, waiting=1000),
        one("waiting, 50000 jobs", OURS, 80, waiting=50000),
        one("overload", OURS, 30, late=(7,), lost=0, accepted=90, refused=10),
        rounds=2,
    )


def target(run: Run, what: str) -> Target:
    (found,) = (each for each in targets(run) if each.what.startswith(what))
    return found


def test_a_spread_is_of_all_values() -> None:
    found = spread(float(n) for n in range(1000, 0, -1))

    assert found
    assert (found.count, found.min, found.p50, found.p95, found.p99, found.max) == (1000, 1, 500, 951, 991, 1000)
    assert sum(found.histogram) == 1000


def test_a_spread_of_one_value_and_of_none() -> None:
    found = spread([7.0])

    assert found
    assert {found.min, found.p50, found.p99, found.max} == {7.0}
    assert spread([]) is None


def test_a_bucket_holds_its_bound_and_the_last_one_what_is_above() -> None:
    found = spread([BUCKETS_MS[0], BUCKETS_MS[0] + 0.1, BUCKETS_MS[-1] + 1, -1])

    assert found
    assert found.histogram[:2] == (2, 1)
    assert found.histogram[-1] == 1
    assert len(found.histogram) == len(BUCKETS_MS) + 1


def test_cpu_per_job() -> None:
    assert ms_per(100, {"worker": 1.0}, {"worker": 1.5}) == {"worker": 5.0}


def test_ratios_are_of_the_same_round(run: Run) -> None:
    found = target(run, "creates a second, 16 in flight")

    assert found.values == (0.96, 0.88)
    assert found.middle == pytest.approx(0.92)
    assert found.reached


@pytest.mark.parametrize(
    ("what", "value", "reached"),
    [
        ("creates a second, in a batch", 1.5, True),
        ("burst of 90, arrivals a second", 2.5, True),
        ("burst of 90, jobs closed a second", 2.5, True),
        ("burst of 90, CPU of worker", 0.4, True),
        ("burst of 90, CPU of Temporal", 0.4, True),
        ("p99 lateness", 0.6, True),
        ("smallest lateness", 2, True),
        ("memory of the worker, 50,000 / 1,000", 50, False),
        ("creates a second, 50,000 / 1,000", 0.8, False),
        ("jobs lost", 0, True),
        ("sustained, jobs", None, None),
        ("creates a second, 64", None, None),
    ],
)
def test_targets(run: Run, what: str, value: float | None, reached: bool | None) -> None:
    found = target(run, what)

    assert found.middle == (None if value is None else pytest.approx(value))
    assert found.reached is reached


def test_nothing_measured_reaches_nothing() -> None:
    assert {each.reached for each in targets(run_of())} == {None}
    assert "not measured" in report(run_of())
    assert "### Overload" not in report(run_of())


def test_runs_are_merged_round_after_round() -> None:
    first = run_of(one("burst of 90", OURS, 10, n=0), one("burst of 90", OURS, 15, n=1), rounds=2)
    second = run_of(one("burst of 90", OURS, 20), rounds=1)
    both = merged([first, second])

    assert both.rounds == 3
    assert [(found.round, found.per_second) for found in both.of("burst of 90", OURS)] == [(0, 10), (1, 15), (2, 20)]


def test_a_scenario_with_several_turns_in_a_round_is_merged_without_two_of_the_same_round() -> None:
    first = run_of(*(one("observed, by nobody", OURS, 10 + turn, n=turn) for turn in range(3)), rounds=1)
    second = run_of(one("observed, by nobody", OURS, 20), rounds=1)

    assert [found.round for found in merged([first, second]).of("observed, by nobody", OURS)] == [0, 1, 2, 3]


def test_runs_of_different_scenarios_are_merged_without_more_rounds() -> None:
    bursts = run_of(one("burst of 90", OURS, 10, n=0), one("burst of 90", OURS, 15, n=1), rounds=2)
    waiting = run_of(one("waiting, 1000 jobs", OURS, 20), rounds=2)

    assert merged([bursts, waiting]).rounds == 2


def test_early_and_lost_jobs_are_problems(run: Run) -> None:
    assert problems(run) == []

    found = problems(run_of(one("burst of 90", OURS, 10, late=(-0.5, 3)), one("overload", OURS, 10, lost=2)))

    assert found == [
        "burst of 90, timemachine, round 1: a job was 0.5 ms early",
        "overload, timemachine, round 1: 2 jobs were lost",
    ]


def test_runs_of_a_cluster_and_others_are_not_merged(run: Run) -> None:
    with pytest.raises(ValueError, match="cluster"):
        merged([run, msgspec.structs.replace(run, on_cluster=True)])


def test_results_survive_their_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "results" / "now.json"
    write(run_of(), path)
    write(run, path)

    assert msgspec.json.decode(path.read_bytes(), type=Run) == run
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.256, "0.26"), (12.34, "12.3"), (123.4, "123"), (50_000, "50,000"), (-0.5, "-0.50")],
)
def test_numbers(value: float, shown: str) -> None:
    assert number(value) == shown


def test_the_report_has_medians_targets_and_where_it_was(run: Run) -> None:
    text = report(run)

    assert "2 x Abacus" in text
    assert "temporal CLI 1.5.1, postgres 18.6" in text
    assert "| creates a second, 16 in flight / raw | 0.92 (0.88 to 0.96) | >= 0.9 | yes |" in text
    assert "| creates a second, 50,000 / 1,000 waiting | 0.80 | >= 0.9 | **no** |" in text
    assert re.search(r"\| creates, 16 in flight \| timemachine \| 92 \(88 to 96\) \|", text)
    assert "| burst of 90 | timemachine | 50 | 45 | 3 | 3 | 40 | 40 |" in text


def test_every_row_of_a_table_has_as_many_cells(run: Run) -> None:
    tables = re.findall(r"(?:^\|.*\|\n)+", report(run), re.MULTILINE)

    assert len(tables) >= 7
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


def test_columns_without_a_figure_are_left_out(run: Run) -> None:
    assert "worker until due" in report(run)
    assert "bytes of history" not in report(run)


def test_only_what_is_between_the_markers_changes(run: Run) -> None:
    once = with_report(f"before\n{BEGIN}\nold\n{END}\nafter\n", run)

    assert once.startswith(f"before\n{BEGIN}\n\n2026-01-02")
    assert once.endswith(f"\n{END}\nafter\n")
    assert "old" not in once
    assert with_report(once, run) == once


def test_a_page_without_markers_is_refused(run: Run) -> None:
    with pytest.raises(ValueError, match="marker"):
        with_report(f"{END} {BEGIN}", run)


def test_each_page_has_its_markers(run: Run) -> None:
    pages = {page_of(found): found for found in (run, msgspec.structs.replace(run, on_cluster=True))}

    assert {page.name for page in pages} == {"performance.md", "scale.md"}
    assert all(report(found) in with_report(page.read_text(), found) for page, found in pages.items())


def test_the_summary_has_a_line_for_each_target(run: Run) -> None:
    assert len(summary(run).splitlines()) == len(targets(run))


@pytest.mark.parametrize("on_cluster", [False, True])
def test_the_plots_are_small_and_always_the_same(run: Run, tmp_path: Path, *, on_cluster: bool) -> None:
    pytest.importorskip("matplotlib", reason="only `make bench` installs it")
    from benchmarks.plots import draw

    run = msgspec.structs.replace(run, on_cluster=on_cluster)
    draw(run, tmp_path / "first")
    draw(run, tmp_path / "second")

    drawn = sorted((tmp_path / "first").iterdir())
    folder = page_of(run).stem
    assert {f"{folder}/{path.name}" for path in drawn} == set(re.findall(r"\(([a-z]+/[^)]+\.svg)\)", report(run)))
    for path in drawn:
        assert path.stat().st_size < 60_000
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


def test_creates_with_keys_are_compared_with_those_without_by_turns() -> None:
    turns = [("creates, without keys", (100, 50)), ("creates, with keys", (97, 49))]
    run = run_of(*(one(scenario, OURS, rate, n=n) for scenario, rates in turns for n, rate in enumerate(rates)))

    (found,) = [each for each in targets(run) if "with keys" in each.what]

    assert (found.values, found.at_least) == ((0.97, 0.98), 0.97)
    assert "| creates, with keys | timemachine | 73 (49 to 97) |" in report(run)


def test_what_it_costs_to_look_inside_is_told_by_throughput_and_by_cpu() -> None:
    by_metrics = replace(one("observed, by metrics", OURS, 90), cpu_ms_per_job={"worker": 10.5, "load": 9})
    run = run_of(one("observed, by nobody", OURS, 100), by_metrics)

    found = [target(run, f"observed by metrics, {what} / by nobody") for what in _FIGURES]

    assert [each.values for each in found] == [pytest.approx((0.9,)), pytest.approx((10 / 10.5,))]


_FIGURES = ("jobs a second", "jobs for a second of CPU")


def test_pieces_of_a_round_are_added_up() -> None:
    few, many = one("s", OURS, 10), replace(one("s", OURS, 40), jobs=300)

    found = together([few, many])

    assert (found.jobs, found.seconds) == (400, 12.5)
    assert found.per_second == 32
    # 50 ms for each of a hundred jobs, and 12.5 for each of three hundred.
    assert found.cpu_ms_per_job["worker"] == pytest.approx((50 + 3 * 12.5) / 4)


async def test_creates_by_turns_follow_each_other_in_all_orders() -> None:
    order: list[str] = []

    class Piece:
        def __init__(self, name: str) -> None:
            self.name = name
            order.append(name)

        async def create_in(self, _: float) -> str:
            return ""

        def result(self, jobs: int, *, until: float) -> Measurement:
            return replace(one(self.name, OURS, 100), jobs=jobs)

    ways: Any = [partial(Piece, name) for name in "abc"]
    found = await creates_by_turns(ways, pieces=6, in_flight=2, count=60)

    assert "".join(order) == "abcacbbacbcacabcba"
    assert [(each.scenario, each.jobs) for each in found] == [("a", 60), ("b", 60), ("c", 60)]
    assert [each.answers.count for each in found if each.answers] == [60] * 3


def test_the_command_line() -> None:
    assert arguments([]).only == everything(cluster=False)
    assert arguments(["--cluster"]).only == everything(cluster=False) | {"nodes"}
    assert arguments(["--quick", "--only", "burst,creates"]).only == {"burst", "creates"}
    assert arguments(["--report", "a.json", "b.json"]).report == [Path("a.json"), Path("b.json")]
    for wrong in (["--only", "bursts"], ["--only", "nodes"]):
        with pytest.raises(SystemExit):
            arguments(wrong)


def test_levels_of_waiting_jobs_are_chosen_and_must_grow() -> None:
    assert arguments(["--cluster"]).size.waiting == (10_000, 100_000)
    assert arguments(["--cluster", "--waiting", "20000,1000000"]).size.waiting == (20_000, 1_000_000)
    assert arguments(["--quick", "--waiting", "300,1500"]).size.batch == arguments(["--quick"]).size.batch
    for wrong in ("10000,10000", "100", "many"):
        with pytest.raises(SystemExit):
            arguments(["--waiting", wrong])


def test_what_the_plots_need_is_pinned_with_hashes_and_as_elsewhere() -> None:
    each = [
        dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE))
        for name in ("requirements-bench.txt", "requirements-dev.txt")
    ]
    text = (ROOT / "requirements-bench.txt").read_text()

    assert "matplotlib" in each[0]
    assert {name for name in each[0].keys() & each[1].keys() if each[0][name] != each[1][name]} == set()
    assert re.findall(r".*(?:://|index|find-links|trusted-host|@ |/(?:home|root|tmp|work)\b).*", text) == []
    assert all("--hash=sha256:" in entry for entry in text.replace("\\\n", " ").splitlines() if "==" in entry)


async def test_so_many_calls_at_a_time() -> None:
    running, most = 0, 0

    async def call() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1

    took = await timed_all([call] * 20, 4)

    assert (len(took), most) == (20, 4)


@pytest.mark.parametrize("make", [lambda call: timed_all([call], 2), lambda call: at_rate(1000, 2, call)])
async def test_a_call_that_fails_is_heard_of(make: Callable[..., object]) -> None:
    async def call() -> None:
        raise RuntimeError("refused")

    with pytest.raises(ExceptionGroup):
        await make(call)  # type: ignore[misc]

"""Our metrics: what they are called, that docs/metrics.md lists them, and that to count them harms nothing."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from temporalio.common import MetricMeter

from tests.support.meters import Counted
from tests.unit.test_docs import rows
from timemachine import VERSION, metrics
from timemachine.domain.errors import UnavailableError
from timemachine.metrics import METRICS, Counter, Gauge, Histogram, Metric
from timemachine.postgres.pool import open_pool, ping
from timemachine.settings import Settings


@pytest.fixture
def counted() -> Iterator[Counted]:
    yield Counted("shop/orders")
    metrics.export_to(MetricMeter.noop)


@pytest.fixture
def own() -> Iterator[Counter]:
    """A metric of this test's own, with two labels."""
    yield Counter("timemachine_test_total", "A test", "one", "two")
    del METRICS[-1]


class Broken:
    """A meter whose every instrument raises."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("create_"):
            return lambda *_: self
        raise RuntimeError("the meter is broken")


def test_the_table_in_the_docs_is_what_is_declared() -> None:
    listed = {
        name.strip("`"): (type_, set(re.findall(r"`(\w+)`", labels)))
        for name, type_, labels, *_ in rows("docs/metrics.md", r"`timemachine_\w+`")
    }

    assert listed == {metric.name: (metric.type, set(metric.labels)) for metric in METRICS}
    assert len(listed) == len(METRICS) == 20


def test_every_label_is_explained() -> None:
    explained = {row[0].strip("`") for row in rows("docs/metrics.md", r"`[a-z_]+`") if len(row) == 2}

    assert {label for metric in METRICS for label in metric.labels} - {"version"} == explained - {"service_name"}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_are_prometheuss(metric: Metric[Any]) -> None:
    assert re.fullmatch(r"timemachine(_[a-z]+)+", metric.name)
    assert metric.name.endswith("_total") == isinstance(metric, Counter)
    if isinstance(metric, Histogram):
        assert metric.name.endswith("_seconds")
        assert list(metric.buckets) == sorted(set(metric.buckets))


def test_a_count_has_its_labels(counted: Counted) -> None:
    metrics.ATTEMPTS.add("taken", "other")
    metrics.ATTEMPTS.add("taken", "other")
    metrics.ATTEMPTS.add("refused", "shop/orders")
    metrics.LATENESS.record(1.5, "other")
    metrics.JOBS.set(7, "held")

    assert counted.total("timemachine_attempts_total", kind="taken", webhook_route="other") == 2
    assert counted.total("timemachine_attempts_total", kind="refused", webhook_route="shop/orders") == 1
    assert counted.values("timemachine_lateness_seconds", webhook_route="other") == [1.5]
    assert counted.values("timemachine_jobs", state="held") == [7]
    assert counted.values("timemachine_build_info", version=VERSION) == [1]


async def test_that_postgres_does_not_answer_is_counted(counted: Counted) -> None:
    async with open_pool(Settings(postgres_dsn="postgresql://nobody@127.0.0.1:1/nothing")) as pool:
        for _ in range(2):
            with pytest.raises(UnavailableError):
                await ping(pool)

    assert counted.total("timemachine_postgres_unanswered_total") == 2
    # A service of the tests before may still use its pool in this process.
    assert len(counted.values("timemachine_postgres_pool_wait_seconds")) >= 2


def test_a_time_before_its_time_counts_as_none(counted: Counted) -> None:
    metrics.LATENESS.record(-0.2, "other")

    assert counted.values("timemachine_lateness_seconds", webhook_route="other") == [0]


def test_counters_start_with_zeros_of_all_their_values(counted: Counted) -> None:
    metrics.ATTEMPTS.start(("taken", "dns"), ("other", "shop/orders"))
    metrics.JOBS_CREATED.start()

    assert counted.values("timemachine_jobs_created_total") == [0]
    for kind in ("taken", "dns"):
        for route in ("other", "shop/orders"):
            assert counted.values("timemachine_attempts_total", kind=kind, webhook_route=route) == [0]


@pytest.mark.usefixtures("counted")
def test_only_routes_that_are_named_are_told_apart() -> None:
    assert [metrics.webhook_route(key) for key in ("shop/orders", "shop/Orders", "a/b")] == [
        "shop/orders",
        "other",
        "other",
    ]


def test_before_there_is_a_meter_nothing_is_counted(own: Counter, caplog: pytest.LogCaptureFixture) -> None:
    own.add("a", "b")

    assert caplog.records == []


def test_a_meter_that_fails_fails_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    metrics.export_to(Broken())  # type: ignore[arg-type]  # a meter by its behavior
    try:
        for metric in METRICS:
            labels = ["x"] * len(metric.labels)
            if isinstance(metric, Counter):
                metric.add(*labels)
                metric.start(*[("x",)] * len(labels))
            elif isinstance(metric, Gauge):
                metric.set(1, *labels)
            elif isinstance(metric, Histogram):
                metric.record(1, *labels)
    finally:
        metrics.export_to(MetricMeter.noop)

    assert {record.message for record in caplog.records} == {"metric not counted"}
    assert len(caplog.records) < len(METRICS)


@pytest.mark.usefixtures("counted")
def test_a_count_with_other_labels_than_its_own_is_logged_and_no_error(
    own: Counter, caplog: pytest.LogCaptureFixture
) -> None:
    own.export_to(MetricMeter.noop)

    own.add("a")

    assert [record.message for record in caplog.records] == ["metric not counted"]

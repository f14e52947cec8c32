"""The service's metrics, for Prometheus: declared here, counted where it happens, and listed in docs/metrics.md.

The meter of the Temporal SDK's runtime exports them, beside the SDK's own (decision 33). Before `export_to` nothing is
counted. To count never raises: no request and no attempt fails because of what is counted of it.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import product
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from timemachine import VERSION
from timemachine.outages import OutageLog

if TYPE_CHECKING:  # it takes longer to load than all of the programs that count nothing
    from temporalio.common import MetricCommon, MetricCounter, MetricGaugeFloat, MetricHistogramFloat, MetricMeter

Instrument = TypeVar("Instrument", bound="MetricCommon")

_OUTAGES = OutageLog("metric not counted")


class Metric(Generic[Instrument]):
    """One metric. Its label values are given in the order of its labels, and must be few."""

    type = ""
    """Prometheus's word for what it is."""

    def __init__(self, name: str, meaning: str, *labels: str) -> None:
        """Declare it."""
        self.name = name
        self.meaning = meaning
        self.labels = labels
        self._instrument: Instrument | None = None
        self._series: dict[tuple[str, ...], Instrument] = {}
        METRICS.append(self)

    def export_to(self, meter: "MetricMeter") -> None:
        """Count by this meter from now on."""
        self._series.clear()
        self._instrument = self._create(meter)

    def _create(self, meter: "MetricMeter") -> Instrument:
        raise NotImplementedError

    def _apply(self, values: tuple[str, ...], apply: Callable[[Instrument], None]) -> None:
        try:
            if self._instrument is not None:
                apply(self._series.get(values) or self._new_series(self._instrument, values))
        except Exception as error:
            _OUTAGES.note(error)

    def _new_series(self, instrument: Instrument, values: tuple[str, ...]) -> Instrument:
        series = instrument.with_additional_attributes(dict(zip(self.labels, values, strict=True)))
        self._series[values] = series
        return series


METRICS: list[Metric[Any]] = []
"""All of them."""


class Counter(Metric["MetricCounter"]):
    """A number that only grows."""

    type = "counter"

    def _create(self, meter: "MetricMeter") -> "MetricCounter":
        return meter.create_counter(self.name, self.meaning)

    def add(self, *values: str, by: int = 1) -> None:
        """Count."""
        self._apply(values, lambda series: series.add(by))

    def start(self, *values: Iterable[str]) -> None:
        """Export zeros for these values of each label: the rate of a series that begins with 1 does not show that 1."""
        for series in product(*values):
            self.add(*series, by=0)


class Gauge(Metric["MetricGaugeFloat"]):
    """A number as it was when it was set last."""

    type = "gauge"

    def _create(self, meter: "MetricMeter") -> "MetricGaugeFloat":
        return meter.create_gauge_float(self.name, self.meaning)

    def set(self, value: float, *values: str) -> None:
        """Set it."""
        self._apply(values, lambda series: series.set(value))


class Histogram(Metric["MetricHistogramFloat"]):
    """How often a time was how long."""

    type = "histogram"

    def __init__(self, name: str, meaning: str, *labels: str, buckets: tuple[float, ...]) -> None:
        """Declare it, with the upper bounds of its buckets."""
        super().__init__(name, meaning, *labels)
        self.buckets = buckets

    def _create(self, meter: "MetricMeter") -> "MetricHistogramFloat":
        return meter.create_histogram_float(self.name, self.meaning)

    def record(self, value: float, *values: str) -> None:
        """Count a value; one below zero, as clocks that are set may bring it, as zero."""
        self._apply(values, lambda series: series.record(max(0.0, value)))


OTHER = "other"
"""Label of all webhook routes that the settings do not name."""

OUTCOMES = ("delivered", "failed", "cancelled")

# Of requests to the API and to receivers, as OpenTelemetry has them for HTTP, and beyond.
_REQUEST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_WAIT = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
_LATENESS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)

BUILD_INFO = Gauge("timemachine_build_info", "1, with the version of the program", "version")

HTTP_REQUESTS = Counter("timemachine_http_requests_total", "Requests that were answered", "method", "route", "status")
HTTP_REQUEST_DURATION = Histogram(
    "timemachine_http_request_duration_seconds",
    "From the head of a request to the end of its answer",
    *("method", "route"),
    buckets=_REQUEST,
)
REFUSED = Counter("timemachine_refused_total", "Requests, and jobs of batches, that were refused", "reason")
JOBS_CREATED = Counter("timemachine_jobs_created_total", "Jobs that were created")

JOBS_ENDED = Counter("timemachine_jobs_ended_total", "Runs of jobs that were decided", "outcome")

ATTEMPTS = Counter("timemachine_attempts_total", "Requests to receivers", "kind", "webhook_route")
ATTEMPT_DURATION = Histogram(
    "timemachine_attempt_duration_seconds",
    "From the look-up of a receiver's name to the end of its answer",
    *("kind", "webhook_route"),
    buckets=_REQUEST,
)
LATENESS = Histogram(
    "timemachine_lateness_seconds",
    "From the trigger time of a job to its first request",
    "webhook_route",
    buckets=_LATENESS,
)
ATTEMPTS_IN_PROGRESS = Gauge("timemachine_attempts_in_progress", "Attempts under way, those that wait among them")
SLOT_WAIT = Histogram("timemachine_slot_wait_seconds", "Wait of an attempt for a slot of its route", buckets=_WAIT)
SLOTS_UNAVAILABLE = Counter("timemachine_slots_unavailable_total", "Attempts put off for want of a slot")

POOL_WAIT = Histogram("timemachine_postgres_pool_wait_seconds", "Wait for a connection of the pool", buckets=_WAIT)
POSTGRES_UNANSWERED = Counter("timemachine_postgres_unanswered_total", "Uses of Postgres that it did not answer")
WRITE_FAILURES = Counter("timemachine_write_failures_total", "Rows that could not be written, or not yet", "table")

JOBS = Gauge("timemachine_jobs", "Jobs that have not ended", "state")
JOBS_OVERDUE = Gauge("timemachine_jobs_overdue", "Jobs over 20 s late, not held, that nobody attends to")
ROUTES = Gauge("timemachine_routes", "Routes", "state")
KEYS_EXPIRING = Gauge("timemachine_keys_expiring", "Valid keys that expire within 7 days")
COUNTED_AT = Gauge("timemachine_counted_timestamp_seconds", "When jobs, routes and keys were counted last")


def export_to(meter: "MetricMeter", *, named_routes: Collection[str] = ()) -> None:
    """Count by this meter from now on.

    Args:
        named_routes: The routes, as `db/route`, that the label `webhook_route` tells apart.
    """
    for metric in METRICS:
        metric.export_to(meter)
    _named_routes.clear()
    _named_routes.update(named_routes)
    BUILD_INFO.set(1, VERSION)


_named_routes = set[str]()


def webhook_route(route_key: str) -> str:
    """Return the label of a route."""
    return route_key if route_key in _named_routes else OTHER


def histogram_buckets() -> Mapping[str, tuple[float, ...]]:
    """Return the upper bounds of the buckets of each histogram, by its name."""
    return {metric.name: metric.buckets for metric in METRICS if isinstance(metric, Histogram)}

"""What our metrics count, without a server: by the SDK's own runtime, into a buffer."""

from collections import defaultdict

from temporalio.runtime import MetricBuffer, Runtime, TelemetryConfig

from timemachine import metrics

Series = tuple[str, tuple[tuple[str, object], ...]]


class Counted:
    """What has been counted since this was made."""

    def __init__(self, *named_routes: str) -> None:
        self._buffer = MetricBuffer(10_000)
        runtime = Runtime(telemetry=TelemetryConfig(metrics=self._buffer))
        metrics.export_to(runtime.metric_meter, named_routes=named_routes)
        self._updates = defaultdict[Series, list[float]](list)

    def values(self, name: str, **labels: str) -> list[float]:
        """Return all that was added, set or recorded of a metric with exactly these labels, and the SDK's own."""
        self._retrieve()
        return self._updates[name, tuple(sorted(labels.items()))]

    def _retrieve(self) -> None:
        for update in self._buffer.retrieve_updates():
            ours = {key: value for key, value in update.attributes.items() if key != "service_name"}
            self._updates[update.metric.name, tuple(sorted(ours.items()))].append(update.value)

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of it."""
        return sum(self.values(name, **labels))

    def everything(self) -> str:
        """Return all metrics with all labels and values as one text."""
        self._retrieve()
        return repr(dict(self._updates))

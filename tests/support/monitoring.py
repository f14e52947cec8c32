"""What operators watch the service with: the dashboard, the alert rules, and the metrics that both may name."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import yaml

from timemachine.metrics import METRICS, Histogram

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/rules.yml"
DASHBOARD = ROOT / "deploy/grafana/timemachine.json"

_STRING = re.compile(r'"[^"]*"')
_SELECTOR = re.compile(r'\b((?:timemachine|temporal)_\w+|up|ALERTS)\b(?:\{((?:"[^"]*"|[^}"])*)\})?')
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')
_GROUPED = re.compile(r"\b(?:by|on)\s*\(([^)]*)\)")
_LEGEND = re.compile(r"\{\{(\w+)\}\}")

OF_TARGETS = {"job", "instance"}
"""Labels that Prometheus gives to what it scrapes."""


class Alert(msgspec.Struct, frozen=True, kw_only=True, rename={"name": "alert", "after": "for"}):
    """One rule of `deploy/prometheus/rules.yml`."""

    name: str
    expr: str
    after: str
    labels: dict[str, str]
    annotations: dict[str, str]


class Selector(msgspec.Struct, frozen=True):
    """A metric in an expression, as it is exported, with the labels that it is matched by and their values."""

    name: str
    matched: dict[str, str]


def alerts() -> list[Alert]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return msgspec.convert([rule for group in groups for rule in group["rules"]], list[Alert])


def panels() -> list[dict[str, Any]]:
    """Return the dashboard's panels from top to bottom, rows among them."""
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return sorted(found, key=lambda panel: (panel["gridPos"]["y"], panel["gridPos"]["x"]))


def dashboard_expressions() -> list[str]:
    """Return what the dashboard asks, with five minutes for the window that Grafana chooses."""
    targets = [target for panel in panels() for target in panel.get("targets", [])]
    return [target["expr"].replace("$__rate_interval", "5m") for target in targets]


def selectors(expression: str) -> Iterator[Selector]:
    for name, matchers in _SELECTOR.findall(expression):
        yield Selector(name, dict(_MATCHER.findall(matchers)))


def grouping_labels(expression: str) -> set[str]:
    """Return the labels that an expression groups by."""
    groups = _GROUPED.findall(_STRING.sub("", expression))
    return {label.strip() for group in groups for label in group.split(",") if label.strip()}


def legend_labels(legend: str) -> set[str]:
    return set(_LEGEND.findall(legend))


def exported() -> dict[str, set[str]]:
    """Return the labels of each name that Prometheus has of our metrics and of those that we use of the SDK."""
    found = dict[str, set[str]]()
    for metric in METRICS:
        found |= _samples(metric.name, set(metric.labels), is_histogram=isinstance(metric, Histogram))
    for name, type_, labels in sdk_metrics():
        found |= _samples(name, labels, is_histogram=type_ == "histogram")
    return found


def sdk_metrics() -> list[tuple[str, str, set[str]]]:
    """Return name, type and labels of the SDK's metrics, of which docs/metrics.md has the one list."""
    rows = re.findall(r"^\| `(temporal_\w+)` \| (\w+) \| ([^|]*) \|", (ROOT / "docs/metrics.md").read_text(), re.M)
    return [(name, type_, set(re.findall(r"\w+", labels))) for name, type_, labels in rows]


def _samples(name: str, labels: set[str], *, is_histogram: bool) -> dict[str, set[str]]:
    if not is_histogram:
        return {name: labels}
    return {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}

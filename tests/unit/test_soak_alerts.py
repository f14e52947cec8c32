"""The rules of the alerts, as their soak has them: the same, but sooner."""

import re

import yaml

from tests.soak.soak_alerts import FASTER, FAULTS, SHORTEST_WINDOW_MS, shortened
from tests.support.monitoring import RULES, alerts

RULE = """
      - alert: A
        expr: sum(rate(a_total[30m])) / sum(rate(b_total[1m])) > 300 and c > c offset 1h
        for: 5m
"""


def test_waits_windows_and_offsets_are_shorter_and_thresholds_are_not() -> None:
    assert (
        shortened(RULE, by=30)
        == """
      - alert: A
        expr: sum(rate(a_total[60000ms])) / sum(rate(b_total[5000ms])) > 300 and c > c offset 120000ms
        for: 10000ms
"""
    )


def test_all_rules_are_shortened() -> None:
    text = shortened(RULES.read_text())
    rules = [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]
    waits = [int(rule["for"].removesuffix("ms")) for rule in rules]
    windows = [int(found) for found in re.findall(r"\[(\d+)ms\]", text)]

    assert [rule["alert"] for rule in rules] == [alert.name for alert in alerts()]
    assert max(waits) == 3_600_000 // FASTER
    assert min(windows) >= SHORTEST_WINDOW_MS
    assert not re.findall(r"\[\d+[smh]\]|offset \d+[smh]\b|for: \d+[smh]\b", text)


def test_what_is_to_fire_are_alerts() -> None:
    named = set[str]().union(*(fault.must | fault.may for fault in FAULTS))

    assert {f"Timemachine{name}" for name in named} <= {alert.name for alert in alerts()}

"""The dashboard, the alerts and the documents name what is exported, and each alert has its section."""

import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.errors import ERROR_RESPONSES
from devstack.prometheus import Watch, configured
from tests.support.monitoring import (
    OF_TARGETS,
    ROOT,
    RULES,
    Alert,
    alerts,
    dashboard_expressions,
    exported,
    grouping_labels,
    legend_labels,
    panels,
    sdk_metrics,
    selectors,
)
from tests.unit.test_docs import anchors, rows
from timemachine.metrics import METRICS

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="no promtool here (Debian: apt-get install prometheus; macOS: brew install prometheus)"
)

ALERTS = alerts()
EXPRESSIONS = [*(alert.expr for alert in ALERTS), *dashboard_expressions()]
EXPORTED = exported()
OF_PROMETHEUS = {"up": set[str](), "ALERTS": {"alertname", "alertstate"}}

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ALARMS = (ROOT / "docs/alarms.md").read_text()
TESTS = yaml.safe_load((RULES.parent / "rules_test.yml").read_text())["tests"]

each_alert = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
each_expression = pytest.mark.parametrize("expression", EXPRESSIONS)


def documented_values() -> dict[str, set[str]]:
    """The values of labels that docs/metrics.md lists, and all error codes."""
    listed = {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[1])) for row in rows("docs/metrics.md", r"`[a-z_]+`")}
    closed = {label: listed[label] for label in ("kind", "outcome", "state", "table")}
    return closed | {"reason": {answer.code for answer in ERROR_RESPONSES.values()}}


VALUES = documented_values()


@each_expression
def test_each_metric_is_one_that_is_exported(expression: str) -> None:
    names = {selector.name for selector in selectors(expression)}

    assert names
    assert names <= EXPORTED.keys() | OF_PROMETHEUS.keys()


@each_expression
def test_each_label_is_one_of_its_metric(expression: str) -> None:
    known = EXPORTED | OF_PROMETHEUS
    for selector in selectors(expression):
        assert selector.matched.keys() <= known[selector.name] | OF_TARGETS
        for label in selector.matched.keys() & VALUES.keys():
            assert set(selector.matched[label].split("|")) <= VALUES[label]
    labels = set[str]().union(*(known[selector.name] for selector in selectors(expression)))
    assert grouping_labels(expression) <= labels | OF_TARGETS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documents_name_metrics_that_are_exported(page: Path) -> None:
    """But for the page that tells what has been renamed."""
    named = set(re.findall(r"`(?:\w+\()?((?:timemachine|temporal)_[a-z_]+)\b", page.read_text()))
    families = {metric.name for metric in METRICS} | {name for name, *_ in sdk_metrics()}

    renamed = {"timemachine_lateness"} if page.name == "upgrades.md" else set()
    assert named - families - EXPORTED.keys() - {"temporal_visibility"} <= renamed


def test_all_of_our_metrics_are_on_the_dashboard_and_all_of_the_sdks_that_are_listed_are_used() -> None:
    shown = {selector.name for expression in EXPRESSIONS for selector in selectors(expression)}
    families = [*(metric.name for metric in METRICS), *(name for name, *_ in sdk_metrics())]

    assert [
        name for name in families if not any(re.fullmatch(f"{name}(_bucket|_count)?", seen) for seen in shown)
    ] == []


def sections() -> dict[str, str]:
    """What docs/alarms.md says of each alert, by its name."""
    return dict(re.findall(r"^### (Timemachine\w+)\n(.*?)(?=^##)", ALARMS, re.MULTILINE | re.DOTALL))


def test_each_alert_has_its_section_and_each_section_its_alert() -> None:
    assert list(sections()) == [alert.name for alert in ALERTS]
    for name, text in sections().items():
        assert re.findall(r"^\*\*(\w+)\.\*\* \S", text, re.MULTILINE) == ["Meaning", "Look", "Do"], name


@each_alert
def test_an_alert_links_to_its_section(alert: Alert) -> None:
    page, _, anchor = alert.annotations["runbook_url"].partition("#")

    assert anchor == alert.name.lower()
    assert anchor in anchors(ROOT / page)
    assert alert.annotations["summary"]


def test_the_table_of_alerts_is_what_the_rules_say() -> None:
    listed = [[re.findall(r"\w+", cells[0])[0], *cells[1:3]] for cells in rows("docs/alarms.md", r"\[`Timemachine.*")]

    assert listed == [[alert.name, alert.labels["severity"], alert.after] for alert in ALERTS]
    assert {severity for _, severity, _ in listed} == {"critical", "warning"}


def fires(test: dict[str, Any]) -> set[str]:
    """The alerts that a test of the rules sees fire."""
    samples = [sample for asked in test["promql_expr_test"] for sample in asked["exp_samples"]]
    return {re.findall(r'alertname="(\w+)"', sample["labels"])[0] for sample in samples}


def test_each_alert_has_a_test_in_which_it_fires_and_one_in_which_nothing_does() -> None:
    well, *others = TESTS

    assert fires(well) == set()
    assert set().union(*(fires(test) for test in others)) == {alert.name for alert in ALERTS}
    assert all(len(fires(test)) <= 1 for test in others)


def test_the_service_that_is_well_has_all_that_alerts_look_at() -> None:
    """Else an alert that fires for it would not be noticed."""
    there = {series["series"].partition("{")[0] for series in TESTS[0]["input_series"]}
    looked_at = {selector.name for alert in ALERTS for selector in selectors(alert.expr)}

    assert looked_at <= there


def test_panels_have_a_title_a_data_source_that_is_chosen_and_a_place_of_their_own() -> None:
    shown = panels()
    assert len({panel["id"] for panel in shown}) == len(shown)
    for panel in shown:
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
    for one, other in pairwise(shown):
        here, there = one["gridPos"], other["gridPos"]
        assert here["x"] + here["w"] <= 24
        assert there["y"] >= here["y"] + here["h"] or (there["y"] == here["y"] and there["x"] >= here["x"] + here["w"])


def test_legends_name_labels_that_are_grouped_by_or_there() -> None:
    for panel in panels():
        for target in panel.get("targets", []):
            named = legend_labels(target["legendFormat"])
            labels = set[str]().union(*(EXPORTED.get(found.name, set()) for found in selectors(target["expr"])))
            assert named <= (grouping_labels(target["expr"]) or labels | OF_TARGETS), panel["title"]


def test_panels_that_documents_name_are_on_the_dashboard() -> None:
    section = ALARMS[ALARMS.index("## Alerts") :]
    named = set(re.findall(r"(?<!\*)\*([A-Z][^*\n]*(?:\n[^*\n]*)?)\*(?!\*)", section)) - {"Targets"}

    assert len(named) > 5
    assert {" ".join(name.split()) for name in named} <= {panel["title"] for panel in panels()}


def test_the_dashboard_begins_with_the_promises() -> None:
    assert panels()[0]["title"] == "Do the promises hold?"


def promtool(*arguments: str | Path) -> str:
    """Run promtool, which must have nothing against it, and return what it says."""
    assert PROMTOOL
    ended = subprocess.run([PROMTOOL, *map(str, arguments)], capture_output=True, check=False, text=True, timeout=170)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@needs_promtool
def test_the_rules_are_rules() -> None:
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", RULES)


@needs_promtool
def test_each_alert_fires_for_its_series_and_not_for_those_of_a_service_that_is_well() -> None:
    assert "SUCCESS" in promtool("test", "rules", RULES.parent / "rules_test.yml")


@needs_promtool
def test_what_the_dashboard_asks_can_be_read(tmp_path: Path) -> None:
    recorded = [{"record": f"r:{number}", "expr": asked} for number, asked in enumerate(dashboard_expressions())]
    rules = tmp_path / "rules.yml"
    rules.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))

    assert f"{len(recorded)} rules found" in promtool("check", "rules", rules)


@needs_promtool
def test_the_configurations_can_be_read(tmp_path: Path) -> None:
    promtool("check", "config", RULES.parent / "prometheus.yml")
    own = tmp_path / "prometheus.yml"
    own.write_text(configured(Watch(), {"api": "127.0.0.1:1", "worker": "127.0.0.1:2"}))
    promtool("check", "config", own)


def test_the_jobs_are_those_that_the_rules_and_the_dashboard_know() -> None:
    deployed = yaml.safe_load((RULES.parent / "prometheus.yml").read_text())["scrape_configs"]
    own = yaml.safe_load(configured(Watch(), {"api": "127.0.0.1:1", "worker": "127.0.0.1:2"}))["scrape_configs"]
    named = {found.matched["job"] for asked in EXPRESSIONS for found in selectors(asked) if "job" in found.matched}

    assert {job["job_name"] for job in deployed} == {job["job_name"] for job in own}
    assert named - {"timemachine-(api|worker)"} == {job["job_name"] for job in own}

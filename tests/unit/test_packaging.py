import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest
from hatchling.build import build_wheel
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from timemachine import VERSION

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUNTIME: list[str] = PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["otel"]
DEVELOPMENT: list[str] = PROJECT["dependency-groups"]["dev"]
TOP_LEVEL = ("activities", "api", "timemachine", "worker", "workflows")

each_file = pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])


def entries(name: str) -> list[str]:
    """Each requirement as one line, without comments."""
    text = re.sub(r"^ *#.*\n", "", (ROOT / name).read_text(), flags=re.MULTILINE)
    return text.replace("\\\n", " ").splitlines()


def pins(name: str) -> dict[str, Version]:
    found = (Requirement(entry.partition("--hash")[0]) for entry in entries(name))
    return {canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("==")) for pin in found}


@pytest.mark.parametrize("variable", ["", "PYTHONSAFEPATH", "PYTHONPATH", "PYTHONHOME"])
def test_make_runs_our_modules_whatever_the_environment_says(variable: str, tmp_path: Path) -> None:
    (tmp_path / "msgspec.py").write_text("raise SystemExit('another package')")
    probe = "probe: ; @$(PYTHON) -m timemachine.vault"
    # The tests may have been started by make.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        ["make", "--silent", f"PYTHON={sys.executable}", f"--eval={probe}", "probe"],
        cwd=ROOT,
        env=env | ({variable: str(tmp_path)} if variable else {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_version_is_the_projects() -> None:
    assert PROJECT["project"]["version"] == VERSION


@each_file
def test_requirements_are_pinned_with_hashes(name: str) -> None:
    pinned = re.compile(r"[\w.-]+(\[[\w,-]+\])?==[\w.]+( ; [^;]+?)?( +--hash=sha256:[0-9a-f]{64})+")
    assert [entry for entry in entries(name) if not pinned.fullmatch(entry)] == []
    assert len(entries(name)) > 20


@each_file
def test_requirements_name_no_index_host_or_path(name: str) -> None:
    text = (ROOT / name).read_text()
    assert re.findall(r".*(?:://|index|find-links|trusted-host|@ |/(?:home|root|tmp|work)\b).*", text) == []


@pytest.mark.parametrize(
    ("name", "declared"), [("requirements.txt", RUNTIME), ("requirements-dev.txt", RUNTIME + DEVELOPMENT)]
)
def test_requirements_fit_what_is_declared(name: str, declared: list[str]) -> None:
    pinned = pins(name)
    for requirement in map(Requirement, declared):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_development_uses_the_versions_of_the_image() -> None:
    assert pins("requirements.txt").items() <= pins("requirements-dev.txt").items()


@pytest.mark.parametrize("name", TOP_LEVEL)
def test_our_names_are_ours(name: str) -> None:
    found = importlib.util.find_spec(name)
    assert found
    assert found.origin
    assert Path(found.origin).is_relative_to(ROOT)
    assert name not in sys.stdlib_module_names
    assert set(importlib.metadata.packages_distributions().get(name, [])) <= {"timemachine"}


def test_the_wheel_holds_all_of_ours_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with ZipFile(tmp_path / build_wheel(str(tmp_path))) as wheel:
        files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    packages = [ROOT / name for name in TOP_LEVEL if name != "worker"]
    ours = {path for package in packages for pattern in ("*.py", "*.sql") for path in package.rglob(pattern)}
    assert files == {path.relative_to(ROOT).as_posix() for path in ours} | {"worker.py"}
    assert any(name.startswith("timemachine/postgres/migrations/") and name.endswith(".sql") for name in files)

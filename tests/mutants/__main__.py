"""Undoes one mend after the other, each in a copy of the tree, and checks that its tests fail: `make mutants`.

The mutants are in the TOML files beside this: what goes wrong with each, the text that is replaced, and the tests that
must fail then. One that is not noticed, or whose text is gone, makes this end with status 1.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

ROOT = Path(__file__).parents[2]
LISTS = sorted(Path(__file__).parent.glob("*.toml"))

LIMIT = 900
"""Seconds for the tests of one mutant."""


class Edit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One piece of a file that is replaced. It has to be there exactly once."""

    file: str
    old: str
    new: str = ""


class Mutant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mend that is undone."""

    name: str
    fault: str
    """What goes wrong without the mend."""
    tests: list[str]
    """Each fails then: of one with parameters, a case at least."""
    edits: list[Edit]


class Mutants(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file."""

    mutant: list[Mutant]


class DoesNotApplyError(Exception):
    """The text that is to be replaced is not there, or more than once."""


class NotRunError(Exception):
    """The tests did not come to their end."""


def all_mutants() -> Iterator[Mutant]:
    for file in LISTS:
        yield from msgspec.toml.decode(file.read_bytes(), type=Mutants).mutant


def apply(mutant: Mutant, tree: Path) -> None:
    """Undo a mend.

    Raises:
        DoesNotApplyError: The code has changed since.
    """
    for edit in mutant.edits:
        file = tree / edit.file
        text = file.read_text() if file.exists() else ""
        if text.count(edit.old) != 1:
            raise DoesNotApplyError(f"{edit.file} has its text {text.count(edit.old)} times")
        file.write_text(text.replace(edit.old, edit.new))


def failed_tests(tree: Path, tests: Iterable[str]) -> list[str]:
    """Run tests in a tree, and return the ids of those that failed.

    Raises:
        NotRunError: Pytest did not come to its end, or ran nothing, as where a program is missing that the tests need.
        subprocess.TimeoutExpired: It took too long.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "--tb=no", "-p", "no:cacheprovider", *tests]
    ran = subprocess.run(command, cwd=tree, env=_environment(tree), capture_output=True, text=True, timeout=LIMIT)
    if ran.returncode not in (0, 1):
        raise NotRunError(f"pytest ended with {ran.returncode}: {(ran.stdout + ran.stderr)[-300:]}")
    if re.search(r"\n\d+ skipped in ", ran.stdout):
        raise NotRunError("all of its tests were skipped")
    return [line.split()[1] for line in ran.stdout.splitlines() if line.startswith("FAILED ")]


def _environment(tree: Path) -> dict[str, str]:
    """Return this process's environment, but for where modules are found and where pytest keeps its folders."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {"PYTEST_DEBUG_TEMPROOT": str(tree)}


def _copy(tree: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)


def try_out(mutant: Mutant) -> str | None:
    """Return what is wrong with a mutant, or None if each of its tests fails."""
    began = time.monotonic()
    with TemporaryDirectory(prefix="mutant-") as folder:
        tree = Path(folder)
        _copy(tree)
        try:
            apply(mutant, tree)
            failed = failed_tests(tree, mutant.tests)
        except (DoesNotApplyError, NotRunError, subprocess.TimeoutExpired) as error:
            return str(error)
    passed = [test for test in mutant.tests if not any(_is_case_of(test, one) for one in failed)]
    print(f"{mutant.name}: {len(failed)} failed in {time.monotonic() - began:.0f} s", flush=True)
    return f"not noticed by {', '.join(passed)}" if passed else None


def _is_case_of(test: str, failed: str) -> bool:
    return failed == test or failed.startswith(f"{test}[")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="how the names of those begin that are tried; else all are")
    parser.add_argument("--beside", type=int, default=2, help="how many are tried beside each other (default: 2)")
    asked = parser.parse_args()
    mutants = [mutant for mutant in all_mutants() if not asked.names or mutant.name.startswith(tuple(asked.names))]
    with ThreadPoolExecutor(asked.beside) as threads:
        wrong = {
            mutant.name: words
            for mutant, words in zip(mutants, threads.map(try_out, mutants), strict=True)
            if words is not None
        }
    for name, words in wrong.items():
        print(f"{name}: {words}", file=sys.stderr)
    print(f"{len(mutants) - len(wrong)} of {len(mutants)} mutants are noticed")
    return 1 if wrong or not mutants else 0


if __name__ == "__main__":
    sys.exit(main())

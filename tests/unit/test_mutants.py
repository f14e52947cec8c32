"""The mutants can still be made: what they replace is there once, and the tests that they name are there."""

from collections import Counter
from pathlib import Path

import pytest

from tests.mutants.__main__ import DoesNotApplyError, Edit, Mutant, all_mutants, apply

ROOT = Path(__file__).parents[2]
MUTANTS = list(all_mutants())


def test_each_has_a_name_of_its_own() -> None:
    assert [name for name, times in Counter(mutant.name for mutant in MUTANTS).items() if times > 1] == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_can_be_made_of_todays_code(mutant: Mutant, tmp_path: Path) -> None:
    for name in {edit.file for edit in mutant.edits}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())

    apply(mutant, tmp_path)

    assert mutant.tests
    for test in mutant.tests:
        file, _, function = test.partition("::")
        assert f"def {function.rpartition('::')[2].partition('[')[0]}(" in (ROOT / file).read_text()


def test_one_whose_text_is_gone_is_told(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("a = 1\n")

    with pytest.raises(DoesNotApplyError, match="0 times"):
        apply(Mutant(name="gone", fault="", tests=[], edits=[Edit(file="code.py", old="b = 1")]), tmp_path)

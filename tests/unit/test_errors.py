import inspect

import pytest

from api.errors import ERROR_RESPONSES
from timemachine.domain import errors
from timemachine.domain.errors import RefusedError, TimemachineError

TREE = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind)}
REFUSED = [kind for kind in TREE.values() if issubclass(kind, RefusedError) and kind is not RefusedError]
STATUSES = {
    **dict.fromkeys([f"E{number:03}" for number in range(1, 11)], 400),
    "E011": 413,
    "E012": 401,
    "E013": 403,
    "E014": 429,
    "E015": 503,
    "E016": 500,
    "E017": 415,
    "E018": 400,
    "E019": 400,
    "E020": 400,
}


def needs_more(kind: type[object]) -> bool:
    """Whether it cannot be raised without saying more than why."""
    given = list(inspect.signature(kind).parameters.values())
    return any(parameter.default is parameter.empty for parameter in given)


def drawn(kind: type[Exception], indent: str = "") -> list[str]:
    """Draw the tree below a class as the docstring of its file does; other modules have errors of their own."""
    below = [child for child in kind.__subclasses__() if child in TREE.values()]
    lines = []
    for child in below:
        last = child is below[-1]
        lines.append(f"{indent}{'└── ' if last else '├── '}{child.__name__}")
        lines.extend(drawn(child, indent + ("    " if last else "│   ")))
    return lines


def test_the_tree_in_the_docstring_is_that_of_the_classes() -> None:
    assert errors.__doc__
    assert errors.__doc__.splitlines()[2:] == ["TimemachineError", *drawn(TimemachineError)]


@pytest.mark.parametrize("kind", REFUSED)
def test_every_refusal_has_an_answer_of_its_own(kind: type[RefusedError]) -> None:
    assert kind in ERROR_RESPONSES


def test_a_code_has_one_meaning_and_one_status() -> None:
    assert {answer.code: answer.status for answer in ERROR_RESPONSES.values()} == STATUSES
    assert len({answer.code for answer in ERROR_RESPONSES.values()}) == len(ERROR_RESPONSES)
    assert len({answer.meaning for answer in ERROR_RESPONSES.values()}) == len(ERROR_RESPONSES)


@pytest.mark.parametrize("kind", [kind for kind in TREE.values() if not needs_more(kind)])
def test_an_error_without_a_message_says_what_its_class_says(kind: type[TimemachineError]) -> None:
    assert kind.__doc__
    assert str(kind()) == kind.__doc__.splitlines()[0]
    assert str(kind("reason")) == "reason"
    assert kind.__name__.endswith("Error")

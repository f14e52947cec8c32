"""Cases of a test that share its fixtures."""

import asyncio

import pytest

from tests.support.cases import each_case


def test_each_case_is_run_and_those_that_fail_are_named() -> None:
    seen = list[tuple[int, str]]()

    @each_case(("number", "word"), [(1, "a"), pytest.param(2, "b", id="second"), (3, "c")])
    def case(number: int, word: str) -> None:
        seen.append((number, word))
        assert number == 1

    with pytest.raises(ExceptionGroup, match="2 cases failed") as failed:
        case()

    assert seen == [(1, "a"), (2, "b"), (3, "c")]
    assert [error.__notes__ for error in failed.value.exceptions] == [["case: second"], ["case: 3-c"]]


def test_cases_of_a_coroutine_are_run_one_after_another() -> None:
    running = list[str]()

    @each_case("word", ["a", "b"])
    async def case(word: str) -> None:
        running.append(word)
        await asyncio.sleep(0)
        assert running[-1] == word

    asyncio.run(case())

    assert running == ["a", "b"]


@pytest.fixture
def fixture() -> str:
    return "of the test"


@each_case("outer", [1, 2])
@pytest.mark.parametrize("kind", ["x", "y"])
@each_case("inner", "ab")
def test_cases_nest_and_take_fixtures(fixture: str, outer: int, kind: str, inner: str) -> None:
    assert (fixture, outer in {1, 2}, kind in {"x", "y"}, inner in {"a", "b"}) == ("of the test", True, True, True)

"""Cases of a test that share its fixtures."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

Test = Callable[..., Any]


def each_case(
    names: str | tuple[str, ...], cases: Iterable[Any], *, ids: Callable[[Any], str] = str
) -> Callable[[Test], Test]:
    """Run a test with each case within one; those that fail are told together, each with its name.

    Takes what `pytest.mark.parametrize` takes. That one makes a test of each case, as do pytest's subtests: each with
    fixtures or a capture of output set up anew, which takes longer than a case itself where there are hundreds.
    """
    argument_names = (names,) if isinstance(names, str) else names
    all_cases = [_case(argument_names, case, ids) for case in cases]

    def decorate(test: Test) -> Test:
        async def run_in_loop(**fixtures: Any) -> None:
            failed = list[Exception]()
            for name, arguments in all_cases:
                try:
                    await test(**fixtures, **arguments)
                except Exception as error:
                    failed.append(_named(error, name))
            _raise(failed)

        def run(**fixtures: Any) -> None:
            failed = list[Exception]()
            for name, arguments in all_cases:
                try:
                    test(**fixtures, **arguments)
                except Exception as error:
                    failed.append(_named(error, name))
            _raise(failed)

        runner: Any = run_in_loop if inspect.iscoroutinefunction(test) else run
        runner.__name__, runner.__doc__, runner.__module__ = test.__name__, test.__doc__, test.__module__
        runner.__dict__ |= test.__dict__  # its marks
        parameters = inspect.signature(test).parameters
        fixtures = [parameter for name, parameter in parameters.items() if name not in argument_names]
        runner.__signature__ = inspect.Signature(fixtures)
        return runner  # type: ignore[no-any-return]

    return decorate


def _case(names: tuple[str, ...], case: Any, ids: Callable[[Any], str]) -> tuple[str, dict[str, Any]]:
    """Return a case's name and its arguments."""
    name = case.id if hasattr(case, "marks") else None
    values = case.values if name else case if len(names) > 1 else (case,)
    return name or "-".join(map(ids, values)), dict(zip(names, values, strict=True))


def _named(error: Exception, case: str) -> Exception:
    error.add_note(f"case: {case}")
    return error


def _raise(failed: list[Exception]) -> None:
    if failed:
        raise ExceptionGroup(f"{len(failed)} cases failed", failed)

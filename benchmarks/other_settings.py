"""Running programs of a stack with other settings for a while, so that both are measured in one stack."""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager

import msgspec

from devstack.parts import Part


@asynccontextmanager
async def restarted_in(environments: Iterable[tuple[Part, Mapping[str, str]]]) -> AsyncIterator[None]:
    """Restart programs, each in another environment, and in the end in the one that it had.

    Raises:
        LocalStackError: One of them does not start.
    """
    before = [(part, part.program.env) for part, _ in environments]
    await _restart(environments)
    try:
        yield
    finally:
        await _restart(before)


async def _restart(environments: Iterable[tuple[Part, Mapping[str, str]]]) -> None:
    for part, env in environments:
        part.program = msgspec.structs.replace(part.program, env=dict(env))
        await part.restart()

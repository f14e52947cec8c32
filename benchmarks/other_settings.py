"""Running programs of a stack with other settings for a while, so that both are measured in one stack."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import msgspec

from devstack.parts import Part


@asynccontextmanager
async def restarted_in(environments: Sequence[tuple[Part, Mapping[str, str]]]) -> AsyncIterator[None]:
    """Restart programs, each in another environment, and afterwards in the one that it had.

    Where it fails meanwhile they are left as they are: the stack ends with the measurement.

    Raises:
        LocalStackError: One of them does not start.
    """
    before = [(part, part.program.env) for part, _ in environments]
    await _restart(environments)
    yield
    await _restart(before)


async def _restart(environments: Sequence[tuple[Part, Mapping[str, str]]]) -> None:
    for part, env in environments:
        part.program = msgspec.structs.replace(part.program, env=dict(env))
        await part.restart()

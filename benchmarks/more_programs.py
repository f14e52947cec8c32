"""More APIs and workers in one stack, each in an environment of its own, so that ways of running them are compared."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from benchmarks.testbed import LOGS, Testbed
from devstack import children
from devstack.children import Commands
from devstack.parts import Part, running
from devstack.ports import LOOPBACK, free_port, url
from timemachine.settings import Settings


@asynccontextmanager
async def another_api(place: Testbed, name: str, more: dict[str, str]) -> AsyncIterator[tuple[Part, str]]:
    """Run one more API, with more variables than the stack's, and give it with its URL."""
    port = free_port()
    api_url = url(LOOPBACK, port)
    env = place.stack.env | {"TIMEMACHINE_HTTP_PORT": str(port)} | more
    program = children.api(Commands(logs=LOGS).apart(name), env, Settings())
    async with running(Part(program, children.answers_ready(api_url))) as part:
        yield part, api_url


@asynccontextmanager
async def another_worker(place: Testbed, task_queue: str, more: dict[str, str]) -> AsyncIterator[Part]:
    """Run one more worker, of another task queue, with more variables than the stack's."""
    env = place.stack.env | {"TIMEMACHINE_TASK_QUEUE": task_queue} | more
    commands = Commands(logs=LOGS).apart(task_queue)
    async with running(children.one_worker(commands, env, Settings(task_queue=task_queue))) as part:
        yield part


def with_parts(place: Testbed, **parts: Part) -> Testbed:
    """Return the testbed with these parts in the place of the stack's own, of which then nothing is measured."""
    others = {name: part for name, part in place.stack.parts.items() if name.partition("-")[0] not in parts}
    return msgspec.structs.replace(place, stack=msgspec.structs.replace(place.stack, parts=others | parts))

"""Temporal's server is upgraded as docs/upgrades.md tells: the schema first, then one process after the other."""

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from devstack.parts import Part
from devstack.postgres import Postgres
from devstack.temporal_cli import find_temporal_cli
from devstack.temporal_cluster import update_schema
from devstack.temporal_server import SERVER, find_temporal_server
from tests.soak.cluster import Cluster, production
from tests.soak.hook import Hook
from tests.soak.report import Row, report
from tests.soak.size import size
from tests.soak.story import Callers, Story, calling, now_ms

FROM = os.environ.get("SOAK_UPGRADE_FROM", "1.31.4")
"""The minor version before, as Temporal requires."""

WAITING = size("UPGRADE_WAITING", smoke=300, full=3000)
"""Jobs that wait throughout, and come due after it."""
RATE = 5.0
"""Jobs a second that are created, changed, cancelled and come due meanwhile."""
BETWEEN = 5.0
"""Seconds between two processes."""
LATE_LIMIT = 40.0
QUIET = 5.0


@pytest.fixture
async def cluster(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with production(tmp_path_factory.mktemp("data"), logs=tmp_path, temporal_version=FROM) as found:
        yield found


@pytest.mark.timeout(1800)
async def test_an_upgrade_of_temporal(cluster: Cluster, hook: Hook) -> None:
    began = time.monotonic()
    waiting = Row(name="waited throughout", late_limit=LATE_LIMIT)
    meanwhile = Row(name="due meanwhile", late_limit=LATE_LIMIT)
    async with calling(cluster.urls) as callers:
        await callers.add_route("upgrade", "receiver", hook.url())
        waiting.stories = [Story(db="upgrade", id=f"waiting-{number}", route="receiver") for number in range(WAITING)]
        await callers.create_many(waiting.stories, [now_ms(3600)] * WAITING, label="waiting")

        over = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_live_on(callers, meanwhile.stories, over))
            await _upgrade(cluster)
            over.set()
        await _bring_due(callers, waiting.stories)
        await callers.settle([*waiting.stories, *meanwhile.stories])
    cluster.excuse(call for story in meanwhile.stories for call in story.calls)
    await asyncio.sleep(QUIET)

    title = f"Temporal {FROM} upgraded in {time.monotonic() - began:.0f} s"
    assert await report(title, [waiting, meanwhile], hook, cluster) == []


async def _upgrade(cluster: Cluster) -> None:
    programs = await find_temporal_server(os.environ)
    cli = await find_temporal_cli(os.environ.get("TIMEMACHINE_TEMPORAL_CLI"), os.environ)
    postgres = Postgres(cluster.postgres, cluster.dsn)
    await update_schema(programs, cli, postgres, cluster.folder, env=os.environ)
    for part in cluster.services.values():
        await asyncio.sleep(BETWEEN)
        _replace_program(part, programs)
        await part.restart()
    await asyncio.sleep(BETWEEN)


def _replace_program(part: Part, programs: Path) -> None:
    argv = (str(programs / SERVER), *part.program.argv[1:])
    assert argv != part.program.argv, "this is the version that runs"
    part.program = msgspec.structs.replace(part.program, argv=argv)


async def _live_on(callers: Callers, stories: list[Story], over: asyncio.Event) -> None:
    async with asyncio.TaskGroup() as lives:
        while not over.is_set():
            story = Story(db="upgrade", id=f"meanwhile-{len(stories)}", route="receiver")
            stories.append(story)
            lives.create_task(_live(callers, story, len(stories)))
            await asyncio.sleep(1 / RATE)


async def _live(callers: Callers, story: Story, number: int) -> None:
    api, due = number % 2, now_ms(5)
    await callers.persist(lambda: callers.create(story, due, api=api), limit=20)
    await asyncio.sleep(random.uniform(0, 4))
    match number % 3:
        case 0:
            await callers.change(story, 1, now_ms(3), api=api)
        case 1:
            await callers.cancel(story, api=api)
        case _:
            await callers.look(story, api=api)


async def _bring_due(callers: Callers, stories: list[Story]) -> None:
    """Change half of what waited, and have the other half go out now: both need the workflows from before."""
    turns = asyncio.Semaphore(8)

    async def bring(story: Story, number: int) -> None:
        async with turns:
            if number % 2:
                due = now_ms(30)  # later than a request may be repeated, which would else be too late
                await callers.persist(lambda: callers.change(story, 1, due, api=0), limit=20)
            else:
                await callers.persist(lambda: callers.trigger(story, api=1))

    async with asyncio.TaskGroup() as tasks:
        for number, story in enumerate(stories):
            tasks.create_task(bring(story, number))

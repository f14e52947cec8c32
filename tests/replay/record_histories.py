"""Records the histories that `test_replay.py` replays: `pytest tests/replay/record_histories.py`.

Run it only to add a story; what is recorded stays as it is, since it stands for jobs that already wait somewhere.
"""

import re
from pathlib import Path

import pytest
from temporalio.client import Client

from tests.replay.commands import COMMANDS, HISTORIES, all_commands
from tests.replay.stories import (
    CUT_STORIES,
    LEDGER,
    OTHER_STORIES,
    STORIES,
    Handle,
    Stage,
    Story,
    closed,
    task_lost,
)
from tests.support.receiver import Receiver
from tests.support.service import Service
from timemachine.postgres.pool import open_pool
from timemachine.settings import Settings
from timemachine.webhooks.client import WebhookClient
from worker import create_worker

STACK_TRACE = re.compile(r'"stackTrace": "(?:[^"\\]|\\.)*"')


def named(story: Story) -> str:
    return story.__name__


def unrecorded(name: str) -> Path:
    """Return the file of a history that is not there yet."""
    file = HISTORIES / f"{name}.json"
    if file.exists():
        pytest.skip("recorded already")
    return file


async def write(file: Path, workflow: Handle) -> None:
    file.write_text(STACK_TRACE.sub('"stackTrace": ""', (await workflow.fetch_history()).to_json()))


@pytest.mark.parametrize("story", STORIES, ids=named)
async def test_record(story: Story, service: Service, receiver: Receiver, client: Client) -> None:
    file = unrecorded(f"{LEDGER}{story.__name__}")
    await write(file, await story(Stage(service, receiver, client)))


@pytest.mark.parametrize("story", CUT_STORIES, ids=named)
async def test_record_a_cut(story: Story, cut: Service, receiver: Receiver, client: Client) -> None:
    file = unrecorded(f"{LEDGER}{story.__name__}")
    await write(file, await story(Stage(cut, receiver, client)))


async def test_record_a_lost_task(alone: tuple[Service, Settings], receiver: Receiver, client: Client) -> None:
    file, (service, own) = unrecorded(f"{LEDGER}{task_lost.__name__}"), alone
    job = await task_lost(Stage(service, receiver, client), own.task_queue)
    async with (
        open_pool(own) as pool,
        WebhookClient(timeout=5, max_connections=9, address_guard=own.address_guard) as webhooks,
        create_worker(client, pool, webhooks, own),
    ):
        await write(file, await closed(job))


@pytest.mark.parametrize("story", OTHER_STORIES, ids=named)
async def test_record_others(story: Story, service: Service, receiver: Receiver, client: Client) -> None:
    file = unrecorded(story.__name__)
    await write(file, await story(Stage(service, receiver, client)))


def test_record_the_commands() -> None:
    COMMANDS.write_text(all_commands())

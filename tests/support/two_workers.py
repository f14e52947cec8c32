"""Two workers at once, in the tests' own loop: what one has begun, the other may be asked to go on with."""

import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import msgspec
from msgspec.structs import replace
from temporalio.worker import Worker

from api.app import create_app
from tests.conftest import serving
from timemachine.postgres.pool import open_pool
from timemachine.settings import Settings
from timemachine.temporal.client import connect
from timemachine.webhooks.client import WebhookClient
from worker import create_worker


class TwoWorkers(msgspec.Struct, frozen=True):
    """An API whose jobs either of two workers may take."""

    api: httpx.AsyncClient
    settings: Settings
    workers: tuple[Worker, Worker]


@asynccontextmanager
async def two_workers(settings: Settings) -> AsyncIterator[TwoWorkers]:
    """Run an API and two workers on a task queue of their own, each with connections of its own.

    `TEMPORAL_ADDRESS` must name the tests' server, and its search attributes must be there.
    """
    settings = replace(settings, task_queue=f"two-{uuid.uuid4().hex}")
    async with AsyncExitStack() as opened:
        workers = (await _worker(settings, opened), await _worker(settings, opened))
        api = await opened.enter_async_context(serving(create_app(settings)))
        yield TwoWorkers(api, settings, workers)


async def _worker(settings: Settings, opened: AsyncExitStack) -> Worker:
    pool = await opened.enter_async_context(open_pool(settings))
    webhooks = await opened.enter_async_context(
        WebhookClient(timeout=settings.delivery_timeout, max_connections=100, address_guard=settings.address_guard)
    )
    return await opened.enter_async_context(create_worker(await connect(), pool, webhooks, settings))

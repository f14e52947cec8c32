"""A service whose worker serves no other test."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from temporalio.client import Client

from api.app import create_app
from devstack.temporal import Temporal
from tests.conftest import serving, working
from tests.support.receiver import Receiver
from tests.support.service import Service
from timemachine.postgres.pool import open_pool
from timemachine.settings import Settings
from timemachine.webhooks.client import WebhookClient


@asynccontextmanager
async def a_service(
    settings: Settings, client: Client, temporal: Temporal, receiver: Receiver, db: str
) -> AsyncIterator[Service]:
    """An API with a worker of its own, on task queues that nobody else serves."""
    with pytest.MonkeyPatch.context() as env:
        env.setenv("TEMPORAL_ADDRESS", temporal.address)
        async with AsyncExitStack() as opened:
            api = await opened.enter_async_context(serving(create_app(settings)))
            pool = await opened.enter_async_context(open_pool(settings))
            webhooks = await opened.enter_async_context(
                WebhookClient(timeout=5, max_connections=20, address_guard=settings.address_guard)
            )
            await opened.enter_async_context(working(client, pool, webhooks, settings))
            service = Service(api, db)
            await service.add_route(receiver.url)
            yield service

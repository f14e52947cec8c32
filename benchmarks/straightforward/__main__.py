"""The straightforward worker. Run as `python -m benchmarks.straightforward`."""

import asyncio
import os
import signal

import asyncpg
import httpx
from temporalio.client import Client
from temporalio.worker import Worker

from benchmarks.straightforward.activity import Webhooks
from benchmarks.straightforward.workflow import StraightforwardWorkflow
from timemachine.process import exit_process

TASK_QUEUE = "straightforward"


async def main() -> None:
    """Work until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    client = await Client.connect(os.environ["TEMPORAL_ADDRESS"], namespace=os.environ["TEMPORAL_NAMESPACE"])
    async with asyncpg.create_pool(os.environ["TIMEMACHINE_POSTGRES_DSN"]) as pool, httpx.AsyncClient() as http:
        webhooks = Webhooks(pool, http)
        async with Worker(
            client,
            task_queue=TASK_QUEUE,
            workflows=[StraightforwardWorkflow],
            activities=[webhooks.call_webhook],
        ):
            await stop.wait()


if __name__ == "__main__":
    asyncio.run(main())
    exit_process(0)

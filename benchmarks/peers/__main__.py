"""The worker of the peers, set up as ours is. Run as `python -m benchmarks.peers`."""

import asyncio
import os
import signal

import asyncpg
import httpx
import uvloop
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from benchmarks.peers.workflow import EmptyWorkflow
from benchmarks.straightforward.activity import Webhooks
from timemachine.process import exit_process
from timemachine.temporal.client import on_one_thread
from worker import POLLERS

TASK_QUEUE = "peers"


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
            workflows=[EmptyWorkflow],
            activities=[webhooks.call_webhook],
            workflow_runner=UnsandboxedWorkflowRunner(),
            workflow_task_poller_behavior=POLLERS,
            activity_task_poller_behavior=POLLERS,
            max_concurrent_activities=1000,
            max_concurrent_workflow_tasks=1000,
        ):
            await stop.wait()


if __name__ == "__main__":
    on_one_thread(os.environ)
    uvloop.run(main())
    exit_process(0)

"""The worker: takes jobs that are due from Temporal and delivers them. Run as `python worker.py`."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import PollerBehaviorAutoscaling, UnsandboxedWorkflowRunner, Worker

from activities.attempt import Attempts
from activities.before_ledger import DeliveriesBeforeLedger
from activities.cancel_many import CancelsOfMany
from activities.deliver import nothing
from activities.events import EventSender
from activities.in_progress import InProgress
from activities.overdue import OverdueJobs
from activities.rate_limit import RateLimiter
from activities.readiness import Readiness
from activities.redelivery import Redeliveries
from activities.release import Releases
from activities.retention import Retention
from activities.service_counts import ServiceCounting
from activities.wake import Wakes
from timemachine import metrics, tracing
from timemachine.domain.attempt_kind import OF_REQUESTS
from timemachine.domain.errors import TimemachineError
from timemachine.domain.task_queues import bulk_task_queue
from timemachine.health_server import serving_health
from timemachine.postgres.attempt_log import AttemptLog
from timemachine.postgres.audit_log import AuditLog
from timemachine.postgres.delivery_ledger import DeliveryLedger
from timemachine.postgres.event_store import EventStore
from timemachine.postgres.key_store import KeyStore
from timemachine.postgres.pool import Pool, open_pool
from timemachine.postgres.route_store import RouteStore
from timemachine.postgres.service_counts import ServiceCountStore
from timemachine.process import exit_process, raise_file_limit
from timemachine.process import run as run_program
from timemachine.settings import Settings
from timemachine.telemetry import configure_logging, set_log_level
from timemachine.temporal.client import check_namespace, connect, on_one_thread, program_runtime
from timemachine.vault import Vault
from timemachine.webhooks.client import WebhookClient
from workflows.cancel_many import CancelManyWorkflow
from workflows.job import JobWorkflow
from workflows.redelivery import RedeliveryWorkflow
from workflows.release import ReleaseWorkflow
from workflows.retention import CleanAttemptsWorkflow
from workflows.wake import WakeWorkflow

log = logging.getLogger("worker")

HEARTBEATS = timedelta(seconds=2)
"""How often an activity's progress is sent to Temporal at the most: it is what clients are shown of an operation."""

POLLERS = PollerBehaviorAutoscaling(minimum=2, initial=10, maximum=16)
"""How many requests for tasks are open at a time. With more, a task that is due meets a worker that asks for it, and
need not be stored in between. With too many, an overloaded Temporal takes a second and more to note that so many tasks
have begun at once, and loses some of them for 10 s (decision 38)."""

BULK_SLOTS = 4
"""Bulk activities that one worker runs at a time. They share one rate, so that more of them would do no more."""

ENDING = 8.0
"""Seconds that workers get to end beside the time of their attempts. One whose pollers fail meanwhile never does."""

_RUNS_A_LINE = 100
"""Runs that a line of the log names: 4 KiB. Container runtimes cut lines of 16 KiB."""

BulkActivities = Sequence[Callable[..., Awaitable[object]]]


def bulk_activities(client: Client, pool: Pool, settings: Settings) -> BulkActivities:
    """Return the activities of operations and of retention, with the one rate that operations share."""
    routes, rate = RouteStore(pool, Vault(settings)), RateLimiter(settings.bulk_per_second)
    ledger = DeliveryLedger(pool, routes, attempt_time=settings.delivery_timeout)
    redeliveries = Redeliveries(client, ledger, settings, rate)
    return [
        CancelsOfMany(client, ledger, rate).cancel_matching,
        redeliveries.redeliver_failed,
        redeliveries.count_redelivered,
        Releases(client, routes, rate).release_held,
        Retention(AttemptLog(pool), ledger, AuditLog(pool), settings).clean_attempts,
    ]


def create_worker(
    client: Client,
    pool: Pool,
    webhooks: WebhookClient,
    settings: Settings,
    in_progress: InProgress | None = None,
    bulk: BulkActivities = (),
    *,
    ending: asyncio.Event | None = None,
) -> Worker:
    """Return a worker for all of our workflows and for deliveries, with its slots sized by the settings.

    The workflows run outside of the SDK's sandbox, which would load them anew for every job. What it guards against is
    caught before: they are linted, and every recorded history is replayed inside the sandbox (decision 0015).

    Args:
        pool, webhooks: The connections to Postgres and to receivers that the activities need.
        in_progress: Where attempts are kept that go on when no activity waits for them.
        bulk: Activities that may still wait on this queue, from before bulk work had one of its own.
        ending: Is set once the worker is broken, before it waits for its attempts.
    """
    routes, attempt_log = RouteStore(pool, Vault(settings)), AttemptLog(pool)
    ledger = DeliveryLedger(pool, routes, attempt_time=settings.delivery_timeout)
    attempts = Attempts(ledger, routes, webhooks, settings, in_progress)
    deliveries = DeliveriesBeforeLedger(client, attempts, ledger, attempt_log)
    return Worker(
        client,
        task_queue=settings.task_queue,
        workflows=[
            JobWorkflow,
            WakeWorkflow,
            RedeliveryWorkflow,
            ReleaseWorkflow,
            CancelManyWorkflow,
            CleanAttemptsWorkflow,
        ],
        activities=[
            deliveries.first_attempt,
            deliveries.deliver,
            deliveries.cancel_delivery,
            deliveries.deliver_at_once,
            deliveries.find_taken,
            deliveries.settle,
            nothing,
            Wakes(client).wake,
            *bulk,
        ],
        workflow_runner=UnsandboxedWorkflowRunner(),
        workflow_task_poller_behavior=POLLERS,
        activity_task_poller_behavior=POLLERS,
        max_concurrent_local_activities=settings.max_workflow_tasks,
        max_concurrent_activities=settings.max_deliveries,
        max_concurrent_workflow_tasks=settings.max_workflow_tasks,
        max_cached_workflows=settings.max_cached_workflows,
        graceful_shutdown_timeout=timedelta(seconds=settings.shutdown_grace),
        max_heartbeat_throttle_interval=HEARTBEATS,
        on_fatal_error=_setting(ending),
    )


def create_bulk_worker(
    client: Client, bulk: BulkActivities, settings: Settings, *, ending: asyncio.Event | None = None
) -> Worker:
    """Return a worker for bulk activities alone, which so hold no slot of a delivery. `ending` is as for the other."""
    return Worker(
        client,
        task_queue=bulk_task_queue(settings.task_queue),
        activities=bulk,
        max_concurrent_activities=BULK_SLOTS,
        graceful_shutdown_timeout=timedelta(seconds=settings.shutdown_grace),
        max_heartbeat_throttle_interval=HEARTBEATS,
        on_fatal_error=_setting(ending),
    )


def _setting(ending: asyncio.Event | None) -> Callable[[BaseException], Awaitable[None]] | None:
    async def end(_: BaseException) -> None:
        if ending:
            ending.set()

    return end if ending else None


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Work until `stop` is set, then let the attempts in flight finish.

    Raises:
        SettingsError: The settings are wrong.
        SetupError, UnavailableError: Temporal does not have the namespace, or does not answer at the start.
        RuntimeError: Temporal refuses the worker for good. Attempts in flight have finished then, too.
    """
    async with (
        open_pool(settings) as pool,
        WebhookClient(
            timeout=settings.delivery_timeout,
            max_connections=settings.max_deliveries,
            address_guard=settings.address_guard,
            egress_proxy=settings.egress_proxy,
        ) as webhooks,
    ):
        Vault(settings)  # keys that cannot be read are told before Temporal is asked for
        client = await _connect_unless(stop, settings)
        if client is None:
            return
        in_progress = InProgress(settings.max_deliveries)
        readiness = Readiness(client, pool, settings)
        bulk = bulk_activities(client, pool, settings)
        workers = [
            create_worker(client, pool, webhooks, settings, in_progress, bulk, ending=readiness.stop),
            create_bulk_worker(client, bulk, settings, ending=readiness.stop),
        ]
        async with serving_health(settings.health_address, readiness.check), _watching(client, pool, settings):
            log.info("working", extra={"task_queue": settings.task_queue, "namespace": client.namespace})
            await work(workers, in_progress, stop, ending=readiness.stop, grace=settings.shutdown_grace)


@asynccontextmanager
async def _watching(client: Client, pool: Pool, settings: Settings) -> AsyncIterator[None]:
    """Look for overdue jobs and send events meanwhile; and count what there is, where metrics are served."""
    routes = RouteStore(pool, Vault(settings))
    ledger = DeliveryLedger(pool, routes, attempt_time=settings.delivery_timeout)
    overdue = OverdueJobs(client, ledger, settings)
    events = EventSender(client, EventStore(pool), settings)
    watches = [asyncio.create_task(overdue.watch()), asyncio.create_task(events.watch())]
    if settings.metrics_address:
        counting = ServiceCounting(client, overdue, routes, KeyStore(pool), ServiceCountStore(pool))
        watches.append(asyncio.create_task(counting.watch()))
    try:
        yield
    finally:
        for watch in watches:
            watch.cancel()


async def _connect_unless(stop: asyncio.Event, settings: Settings) -> Client | None:
    """Connect to Temporal, which one that says nothing draws out to half a minute; None when `stop` is set first.

    Raises:
        SettingsError, SetupError, UnavailableError, RPCError: See `connect` and `check_namespace`.
    """
    connecting = asyncio.create_task(_connect(settings))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([connecting, stopping], return_when=asyncio.FIRST_COMPLETED)
        return connecting.result() if connecting.done() else None
    finally:
        connecting.cancel()
        stopping.cancel()


async def _connect(settings: Settings) -> Client:
    runtime = program_runtime(settings)
    _start_counters(settings)
    client = await connect(runtime=runtime)
    await check_namespace(client)
    return client


def _start_counters(settings: Settings) -> None:
    metrics.ATTEMPTS.start(OF_REQUESTS, {*settings.named_routes, metrics.OTHER})
    metrics.ATTEMPTS_IN_PROGRESS.set(0)
    metrics.JOBS_ENDED.start(metrics.OUTCOMES)
    metrics.SLOTS_UNAVAILABLE.start()
    metrics.POSTGRES_UNANSWERED.start()
    metrics.WRITE_FAILURES.start(("attempts", "delivery_ledger", "routes"))


async def work(
    workers: Sequence[Worker], in_progress: InProgress, stop: asyncio.Event, *, ending: asyncio.Event, grace: float
) -> None:
    """Run the workers until `stop` is set or one of them ends, then let the attempts in flight finish.

    Args:
        ending: Is set as soon as no more work is taken, for whatever reason. One of the workers that breaks sets it.
        grace: Seconds that they get.

    Raises:
        Exception: What a worker ended by.
        RuntimeError: One did not end. Attempts in flight have finished then, too.
    """
    running = [asyncio.create_task(worker.run()) for worker in workers]
    stopping = [asyncio.create_task(event.wait()) for event in (stop, ending)]
    try:
        await asyncio.wait([*running, *stopping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for waiting in stopping:
            waiting.cancel()
        ending.set()
        log.info("stopping", extra={"grace_seconds": grace})
        until = asyncio.get_running_loop().time() + grace
        stops = [
            asyncio.create_task(worker.shutdown())
            for worker, task in zip(workers, running, strict=True)
            if not task.done()
        ]
        _, left = await asyncio.wait([*running, *stops], timeout=grace + ENDING)
        try:
            async with asyncio.timeout_at(until):
                await in_progress.drain()
        except TimeoutError:
            _tell_left(in_progress.run_ids)
    for task in running:
        if task.done():
            task.result()
    if left:
        raise RuntimeError("a worker did not end in time")


def _tell_left(run_ids: Sequence[str]) -> None:
    """Log which attempts are under way still."""
    for first in range(0, len(run_ids), _RUNS_A_LINE):
        some = run_ids[first : first + _RUNS_A_LINE]
        log.error("attempts left under way, to be made again", extra={"run_ids": some})


async def main() -> int:
    """Run until SIGTERM or SIGINT, and return the exit status: 0 only after a stop that was asked for."""
    configure_logging()
    raise_file_limit()
    on_one_thread(os.environ)
    # It is in the line's own field.
    activity.logger.activity_info_on_message = False
    workflow.logger.workflow_info_on_message = False
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    try:
        settings = Settings.from_env(os.environ)
        set_log_level(settings.log_level)
        tracing.start(os.environ, service="timemachine-worker")
        await run(settings, stop)
    except TimemachineError as error:
        log.error("cannot work", extra={"reason": str(error)})
        return 1
    except Exception:
        log.exception("cannot work")
        return 1
    return 0 if stop.is_set() else 1


if __name__ == "__main__":
    exit_process(run_program(main()))

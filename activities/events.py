"""Events that are not sent yet: each worker looks for them, and starts the jobs that send them.

An event is in Postgres as soon as what it tells of has happened. Its job has its id, so that a worker that dies after
the start leaves nothing behind but a start to be repeated in vain.
"""

import asyncio
import logging
import random
import time
from datetime import timedelta

import msgspec
from temporalio.client import Client
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError

from timemachine.domain.errors import BusyError, UnavailableError
from timemachine.domain.events import WaitingEvent, event_job
from timemachine.domain.jobs import log_fields_of, workflow_id
from timemachine.domain.stored_names import EVENTS_COLLECTION
from timemachine.postgres.event_store import EventStore
from timemachine.settings import Settings
from timemachine.temporal.client import temporal_timeout
from timemachine.temporal.job_runs import start_job

LOOK_EVERY = 1.0
"""Seconds between two looks of a worker, give or take a third: so late an event may be sent."""

AT_A_TIME = 20
"""Jobs that a worker starts at a time, of all the events that there are."""

ANSWER_TIME = 5.0
"""Seconds in which Temporal has to start a job."""

LEASE = timedelta(seconds=30)
"""Time after which others try to send an event that a worker has not sent. Longer than it tries itself."""

PATIENCE = 5.0
"""Seconds that a worker waits beside where Postgres or Temporal has not answered."""

log = logging.getLogger(__name__)


_FAULTS = (ValueError, msgspec.ValidationError)
"""How an event of a later version fails."""

_REFUSALS = (UnavailableError, BusyError, RPCError)
"""How a Temporal fails that does not answer, takes no more, or refuses all, as where its namespace is gone."""


class _Unsent(msgspec.Struct, frozen=True):
    """An event whose job was not started."""

    event: WaitingEvent
    error: Exception

    @property
    def is_faulty(self) -> bool:
        """Whether others may be sent still, as it is this one that this version cannot send."""
        return isinstance(self.error, _FAULTS)


class EventSender:
    """Sends events."""

    def __init__(self, client: Client, events: EventStore, settings: Settings) -> None:
        """Take the client of Temporal, and the events."""
        self._client = client
        self._events = events
        self._task_queue = settings.task_queue

    async def watch(self) -> None:
        """Look again and again, until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY * random.uniform(2 / 3, 4 / 3))  # noqa: S311 - guards nothing
            try:
                if not await self.look():
                    await asyncio.sleep(PATIENCE)
            except UnavailableError as error:
                log.warning("events not looked for", extra={"reason": str(error)})
                await asyncio.sleep(PATIENCE)
            except Exception:
                log.exception("events not looked for")
                await asyncio.sleep(PATIENCE)

    async def look(self) -> bool:
        """Send what is to be sent, until Temporal takes no more. What is left is tried again by whoever looks later.

        Returns:
            Whether Temporal answers, and takes more.

        Raises:
            UnavailableError: Postgres does not answer.
        """
        unsent, told, refused = 0, None, list[_Unsent]()
        until = time.monotonic() + LEASE.total_seconds() / 2  # as what is faulty comes back
        try:
            while not refused and time.monotonic() < until and (events := await self._claim()):
                ends = await asyncio.gather(*(self._send(event) for event in events))
                left = [end for end in ends if end is not None]
                refused = [end for end in left if not end.is_faulty]
                unsent += len(left)
                if refused or not told:
                    told = next(iter(refused or left), None)
                await self._events.discard([event.id for event, end in zip(events, ends, strict=True) if end is None])
        finally:
            if told:
                _report(told, unsent)
        return not any(isinstance(end.error, UnavailableError | BusyError) for end in refused)

    async def _claim(self) -> list[WaitingEvent]:
        return await self._events.claim(AT_A_TIME, lease=LEASE)

    async def _send(self, event: WaitingEvent) -> _Unsent | None:
        """Start the job of an event, where somebody asks for it still. None means that there is nothing left to do."""
        if event.route_id is None:
            return None
        try:
            run_id = await self._start(event, event.route_id)
        except WorkflowAlreadyStartedError:
            return None
        except Exception as error:
            return _Unsent(event, error)
        extra = log_fields_of(workflow_id(event.db, EVENTS_COLLECTION, str(event.id)))
        log.info("event sent", extra=extra | {"event": event.kind, "run_id": run_id})
        return None

    async def _start(self, event: WaitingEvent, route_id: str) -> str:
        """Start the job of an event, and return the id of its run.

        Raises:
            WorkflowAlreadyStartedError: Somebody has started it before, and died, or was not told in time.
            UnavailableError, BusyError: Temporal does not answer, or takes no more.
            RPCError: It refuses, as where the namespace is gone.
            ValueError, msgspec.ValidationError: The event is one of a later version.
        """
        async with temporal_timeout(ANSWER_TIME):
            return await start_job(
                self._client,
                event_job(event, route_id),
                task_queue=self._task_queue,
                reuse=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            )


def _report(told: _Unsent, unsent: int) -> None:
    """Log in one line that so many events were not sent, with what became of one of them."""
    log.warning(
        "events not sent",
        extra={"events": unsent, "reason": f"{told.event.kind} {told.event.id}: {told.error}"},
        exc_info=None if isinstance(told.error, _FAULTS + _REFUSALS) else told.error,
    )

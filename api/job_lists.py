"""Lists and counts of jobs. They ask Temporal's visibility, which lags behind by a fraction of a second.

Of jobs that have failed or were terminated a list asks the ledger, too.
"""

import asyncio
from contextvars import Context
from datetime import UTC, datetime

from litestar import Controller, get
from litestar.di import NamedDependency
from msgspec import UNSET
from msgspec.structs import replace
from temporalio.client import Client

from api.authentication import requires
from api.errors import refusals
from api.job_filters import InCollection, WithPrefix
from api.pagination import DEFAULT_LIMIT, Cursor, Limit, open_cursor, seal_cursor
from api.schemas import CountsOut, DueCounts, JobListed, JobsPage, StateCounts
from timemachine.domain.errors import ForbiddenNameError, MalformedError
from timemachine.domain.job_filter import JobFilter, ListedJob, ListedState
from timemachine.domain.jobs import to_ms
from timemachine.domain.keys import Role
from timemachine.postgres.delivery_ledger import DeliveryLedger
from timemachine.settings import Settings
from timemachine.temporal.client import temporal_timeout
from timemachine.temporal.job_lists import DUE_WITHIN, JobCounts, ListPosition, count_jobs, list_jobs
from timemachine.vault import Vault

COUNTS_KEPT = 10.0
"""Seconds for which counts are answered again as they were."""

MAX_COUNTS_KEPT = 1000
"""Filters whose counts are kept at most; the oldest ones are dropped."""


class JobLists:
    """Lists and counts of the jobs of a db.

    Every method raises UnavailableError when Temporal or Postgres does not answer in time, and BusyError when Temporal
    takes no more.
    """

    def __init__(self, client: Client, ledger: DeliveryLedger, vault: Vault, settings: Settings) -> None:
        """Take the client of Temporal, the ledger, and the vault that seals cursors."""
        self._client = client
        self._ledger = ledger
        self._vault = vault
        self._limit = settings.request_timeout
        self._counted: dict[JobFilter, tuple[float, asyncio.Task[CountsOut]]] = {}

    async def page(self, wanted: JobFilter, limit: int, cursor: str | None) -> JobsPage:
        """Return a page of the jobs of a filter.

        Raises:
            MalformedError: The cursor is not one of this list.
        """
        at = open_cursor(self._vault, wanted, cursor, ListPosition)
        async with temporal_timeout(self._limit):
            page = await list_jobs(self._client, self._ledger.states, wanted, at, limit=limit, now=datetime.now(UTC))
        return JobsPage(
            jobs=[_show(job) for job in page.jobs],
            next=seal_cursor(self._vault, wanted, page.next) if page.next else UNSET,
        )

    async def counts(self, wanted: JobFilter) -> CountsOut:
        """Return how many jobs of a filter there are, or were up to 10 s ago. Who ask at once are told the same."""
        now = asyncio.get_running_loop().time()
        counted_at, counting = self._counted.get(wanted, (0.0, None))
        if counting is None or now - counted_at > COUNTS_KEPT or _has_failed(counting):
            self._counted.pop(wanted, None)
            if len(self._counted) >= MAX_COUNTS_KEPT:
                del self._counted[next(iter(self._counted))]
            # Others may be told the same: its lines in the log must not have the id of the request that began it.
            counting = asyncio.create_task(self._count(wanted), context=Context())
            self._counted[wanted] = now, counting
        # Whoever goes away leaves the others their answer.
        return await asyncio.shield(counting)

    async def _count(self, wanted: JobFilter) -> CountsOut:
        now = datetime.now(UTC)
        async with temporal_timeout(self._limit):
            return _show_counts(await count_jobs(self._client, wanted, now), now)


def _has_failed(counting: asyncio.Task[CountsOut]) -> bool:
    return counting.done() and (counting.cancelled() or counting.exception() is not None)


def _show(job: ListedJob) -> JobListed:
    return JobListed(
        collection=job.collection,
        id=job.id,
        trigger_time=job.trigger_time,
        route=job.route,
        state=job.state,
        labels=job.labels or UNSET,
        created_by=job.created_by or UNSET,
        created_at=job.created_at,
        ended_at=UNSET if job.ended_at is None else job.ended_at,
    )


def _show_counts(counts: JobCounts, now: datetime) -> CountsOut:
    five_minutes, hour, day = (counts.due_within[within] for within in DUE_WITHIN)
    return CountsOut(
        states=StateCounts(**{state.value: counts.states[state] for state in ListedState}),
        due_within=DueCounts(five_minutes=five_minutes, hour=hour, day=day),
        as_of=to_ms(now),
    )


class JobListController(Controller):
    """The list of the jobs of a db; that of a collection stands with the other handlers of its path."""

    tags = ("Jobs",)

    @get(
        "/job/{db:str}",
        guards=[requires(Role.READ)],
        operation_id="ListJobs",
        summary="List the jobs of a db",
        responses=refusals(MalformedError, ForbiddenNameError),
    )
    async def of_db(
        self,
        wanted: NamedDependency[JobFilter],
        job_lists: NamedDependency[JobLists],
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> JobsPage:
        """List the jobs of a db: those that have not ended, the next due first, and then the others, the latest first.

        A job is listed if it meets all filters. One that has just been created, changed or ended may be listed as it
        was a moment before.
        """
        return await job_lists.page(wanted, limit, cursor)


class CountController(Controller):
    """Counts of jobs."""

    tags = ("Jobs",)

    @get(
        "/count/{db:str}",
        guards=[requires(Role.READ)],
        operation_id="CountJobs",
        summary="Count the jobs of a db",
        responses=refusals(MalformedError, ForbiddenNameError),
    )
    async def count(
        self,
        wanted: NamedDependency[JobFilter],
        job_lists: NamedDependency[JobLists],
        collection: InCollection = None,
        id_prefix: WithPrefix = None,
    ) -> CountsOut:
        """Count the jobs of a db by state, and those that are due soon. The answer may be up to 10 seconds old.

        It takes the filters of the lists. An ended job that was created again counts twice.
        """
        return await job_lists.counts(replace(wanted, collection=collection, id_prefix=id_prefix))

"""The `release_held` activity: one look for the held jobs of a route, each of which is told to go."""

import asyncio
from datetime import UTC, datetime

import msgspec
from temporalio import activity
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from activities.bulk import BulkRun, is_stop_requested, to_its_end
from activities.rate_limit import RateLimiter
from timemachine.domain import stored_names
from timemachine.domain.errors import NoSuchRouteError
from timemachine.domain.releases import Released, ReleaseHeld
from timemachine.domain.routes import RouteState
from timemachine.postgres.route_store import RouteStore
from timemachine.temporal.search_attributes import ROUTE
from timemachine.temporal.visibility import held_jobs_query

PAGE = 100


class Releases:
    """Releases held jobs, at a bounded rate."""

    def __init__(self, client: Client, routes: RouteStore, rate: RateLimiter) -> None:
        """Take the clients of Temporal and Postgres, and the rate that all bulk work of this worker shares."""
        self._client = client
        self._routes = routes
        self._rate = rate

    @activity.defn(name=stored_names.RELEASE_HELD)
    async def release_held(self, release: ReleaseHeld) -> Released:
        """Signal each job of the route that is held now, until it is stopped or the route is held again.

        After its worker's death it goes on with the page that was being worked on; a job may be signalled twice.

        Raises:
            ApplicationError: This worker stops, or others take their turn; to be gone on with.
            RPCError, UnavailableError: Temporal or Postgres does not answer; to be tried again.
        """
        released, run = _resumed() or await self._begin(release), BulkRun()

        async def tell(workflow_id: str) -> None:
            nonlocal released
            await self._signal(workflow_id, release.spread)
            released = msgspec.structs.replace(released, signalled=released.signalled + 1)

        run.heartbeat(released)
        try:
            while await self._open(release):
                page = self._client.list_workflows(
                    held_jobs_query(release.db, release.route_id, due_at=_due_at(release)),
                    page_size=PAGE,
                    next_page_token=released.token or None,
                )
                await page.fetch_next_page()
                for job in page.current_page or ():
                    # Asked for already, but not every store of visibility tells `a` from `A`.
                    if job.typed_search_attributes.get(ROUTE) != release.route_key:
                        continue
                    await self._rate.acquire()
                    await to_its_end(tell(job.id))
                    run.heartbeat(released)
                if not page.next_page_token:
                    return msgspec.structs.replace(released, token=b"")
                released = msgspec.structs.replace(released, token=page.next_page_token)
                run.heartbeat(released)
                run.yield_slot()
        except asyncio.CancelledError:
            if not is_stop_requested():
                raise
        return msgspec.structs.replace(released, token=b"", stopped=True)

    async def _begin(self, release: ReleaseHeld) -> Released:
        held = await self._client.count_workflows(
            held_jobs_query(release.db, release.route_id, due_at=_due_at(release))
        )
        return Released(found=held.count, told=release.told)

    async def _open(self, release: ReleaseHeld) -> bool:
        """Return whether jobs may go; those of a route that is gone may, since each then fails by itself."""
        try:
            stored = await self._routes.find(release.db, release.route_id)
        except NoSuchRouteError:
            return True
        return stored.status.state is RouteState.ACTIVE

    async def _signal(self, workflow_id: str, spread: float) -> None:
        try:
            await self._client.get_workflow_handle(workflow_id).signal(stored_names.RELEASE_JOB, spread)
        except RPCError as error:
            # It has ended since.
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise


def _due_at(release: ReleaseHeld) -> datetime | None:
    """Return when jobs must be due to be released, held or not; None where only held ones are."""
    return datetime.now(UTC) if release.all_due else None


def _resumed() -> Released | None:
    """Return how far the attempt before this one was, if there was one."""
    details = activity.info().heartbeat_details
    return msgspec.convert(details[0], Released) if details else None

"""The `release_held` activity: one look for the held jobs of a route, each of which is told to go."""

import msgspec
from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from activities.pace import Pace
from timemachine.errors import NoSuchRouteError
from timemachine.held import Released, ReleaseHeld
from timemachine.route_store import RouteStore
from timemachine.routes import RouteState
from timemachine.settings import Settings
from timemachine.temporal import IS_HELD, ROUTE

PAGE = 100


class Releases:
    """Lets held jobs go, at a bounded rate."""

    def __init__(self, client: Client, routes: RouteStore, settings: Settings) -> None:
        """Take the open doors to Temporal and Postgres."""
        self._client = client
        self._routes = routes
        self._per_second = settings.bulk_per_second

    @activity.defn(name="release_held")
    async def release_held(self, release: ReleaseHeld) -> Released:
        """Signal each job of the route that is held now, unless the route is paused or disabled again.

        After its worker's death it goes on with the page that was being worked on; a job may be signalled twice.

        Raises:
            ApplicationError: This worker stops; another one is to go on.
            RPCError, UnavailableError: Temporal or Postgres does not answer; to be tried again.
        """
        released = _resumed()
        pace = Pace(self._per_second)
        while await self._open(release):
            page = self._client.list_workflows(_query(release), page_size=PAGE, next_page_token=released.token or None)
            await page.fetch_next_page()
            for job in page.current_page or ():
                # Asked for already, but not every store of visibility tells `a` from `A`.
                if job.typed_search_attributes.get(ROUTE) != release.route_key:
                    continue
                await pace.step()
                await self._signal(job.id, release.spread)
                released = msgspec.structs.replace(released, signalled=released.signalled + 1)
                _beat(released)
            if not page.next_page_token:
                return msgspec.structs.replace(released, token=b"")
            released = msgspec.structs.replace(released, token=page.next_page_token)
        return msgspec.structs.replace(released, token=b"", stopped=True)

    async def _open(self, release: ReleaseHeld) -> bool:
        """Return whether jobs may go; those of a route that is gone may, since each then fails by itself."""
        try:
            stored = await self._routes.find(release.db, release.route_id)
        except NoSuchRouteError:
            return True
        return stored.standing.state is RouteState.ACTIVE

    async def _signal(self, workflow_id: str, spread: float) -> None:
        try:
            await self._client.get_workflow_handle(workflow_id).signal("release", spread)
        except RPCError as error:
            # It has ended since.
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise


def _query(release: ReleaseHeld) -> str:
    """Return what to ask Temporal's visibility for. The names hold no quotes."""
    return (
        f"WorkflowType = 'Job' AND ExecutionStatus = 'Running' AND {ROUTE.name} = '{release.route_key}' "
        f"AND {IS_HELD.name} = true"
    )


def _resumed() -> Released:
    """Return how far the attempt before this one was, if there was one."""
    details = activity.info().heartbeat_details
    return msgspec.convert(details[0], Released) if details else Released()


def _beat(released: Released) -> None:
    """Tell Temporal how far this is.

    Raises:
        ApplicationError: This worker stops.
    """
    activity.heartbeat(released)
    if activity.is_worker_shutdown():
        raise ApplicationError("the worker stops; another one goes on", type="Stopping")

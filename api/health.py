"""Whether this process lives, and whether it can do its work."""

import asyncio

from litestar import Controller, get
from litestar.di import NamedDependency
from temporalio.client import Client

from api.authentication import NO_SECURITY, OPEN
from api.errors import refusals
from api.schemas import Ok
from timemachine.domain.errors import BusyError, UnavailableError
from timemachine.postgres.pool import Pool, ping
from timemachine.settings import Settings
from timemachine.temporal.client import check_access, check_namespace, temporal_timeout
from timemachine.temporal.registered_attributes import check_search_attributes


class Readiness:
    """Knows what the API cannot do without."""

    def __init__(self, client: Client, pool: Pool, settings: Settings) -> None:
        """Take the clients of Temporal and Postgres."""
        self._client = client
        self._pool = pool
        self._limit = settings.request_timeout

    async def check(self) -> None:
        """Ask Temporal and Postgres whether they answer, and have what requests need.

        Raises:
            UnavailableError: One of them does not.
        """
        try:
            async with temporal_timeout(self._limit):
                await asyncio.gather(
                    check_namespace(self._client, retry=False),
                    check_search_attributes(self._client),
                    check_access(self._client),
                    ping(self._pool),
                )
        except BusyError as error:
            raise UnavailableError(str(error)) from error


class HealthController(Controller):
    """Health."""

    tags = ("Health",)
    opt = OPEN
    security = NO_SECURITY

    @get("/healthz", operation_id="Health", summary="Tell whether the process runs")
    async def health(self) -> Ok:
        """Answer 200 while this process runs."""
        return Ok()

    @get(
        "/readyz",
        operation_id="Readiness",
        summary="Tell whether the service can work",
        responses=refusals(needs_key=False),
    )
    async def ready(self, readiness: NamedDependency[Readiness]) -> Ok:
        """Answer 200 when Postgres and Temporal answer, else 503."""
        await readiness.check()
        return Ok()

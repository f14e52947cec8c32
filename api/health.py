"""Whether this process lives, and whether it can do its work."""

from typing import Any

from litestar import Controller, Request, get
from litestar.datastructures import State
from litestar.di import NamedDependency

from activities.readiness import Readiness
from api.authentication import NO_SECURITY, OPEN, Authentication
from api.errors import refusals
from api.schemas import Ok
from timemachine.domain.errors import UnavailableError


class HealthController(Controller):
    """Health."""

    tags = ("Health",)
    opt = OPEN
    security = NO_SECURITY

    @get("/livez", operation_id="Health", summary="Tell whether the process runs")
    async def health(self) -> Ok:
        """Answer 200 while this process runs."""
        return Ok()

    @get("/healthz", include_in_schema=False)
    async def former_health(self) -> Ok:
        """Answer as `/livez`, which it was named before."""
        return Ok()

    @get(
        "/readyz",
        operation_id="Readiness",
        summary="Tell whether the service can work",
        responses=refusals(needs_key=False),
    )
    async def ready(
        self,
        readiness: NamedDependency[Readiness],
        authentication: NamedDependency[Authentication],
        request: Request[Any, Any, State],
    ) -> Ok:
        """Answer 200 when Postgres and Temporal answer, else 503; from the beginning of a stop on 503.

        To an admin key of all dbs the error names each part.
        """
        try:
            await readiness.check()
        except UnavailableError as error:
            if await authentication.is_admin(request.scope):
                raise
            raise UnavailableError("the service is not ready") from error
        return Ok()

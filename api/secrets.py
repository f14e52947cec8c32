"""The secrets of a route: what its deliveries are signed with."""

from datetime import timedelta

from litestar import Controller, get, post
from litestar.datastructures import CacheControlHeader
from litestar.di import NamedDependency
from litestar.params import JSONBody

from api.authentication import AuthenticatedRequest, requires
from api.errors import refusals
from api.litestar_json import OptionalBody, OptionalJson
from api.parameters import Db, RouteIdInPath
from api.routes import check_route_key
from api.schemas import PreviousSecretOut, RotateIn, SecretOut
from timemachine.domain.errors import (
    ContentTypeError,
    ForbiddenNameError,
    MalformedError,
    NoSuchRouteError,
    TooLargeError,
)
from timemachine.domain.jobs import to_ms
from timemachine.domain.keys import Role
from timemachine.domain.signing import encode_secret
from timemachine.postgres.route_store import RouteStore, Secret


def _shown(secrets: list[Secret]) -> SecretOut:
    """Return how the secrets that sign now, the newest first, are told to their owner."""
    newest, *previous = secrets
    return SecretOut(
        secret=encode_secret(newest.value),
        previous=[
            PreviousSecretOut(secret=encode_secret(secret.value), expires_at=to_ms(secret.expires_at))
            for secret in previous
            if secret.expires_at
        ],
    )


class SecretController(Controller):
    """Secrets: what deliveries are signed with."""

    path = "/route/{db:str}/{route_id:str}/secret"
    tags = ("Routes",)
    cache_control = CacheControlHeader(no_store=True)

    @get(
        guards=[requires(Role.ADMIN)],
        operation_id="GetSecret",
        summary="Get the secret of a route",
        responses=refusals(ForbiddenNameError, NoSuchRouteError),
    )
    async def read(self, db: Db, route_id: RouteIdInPath, store: NamedDependency[RouteStore]) -> SecretOut:
        """Return the secret of a route, made when the route was created, and those of before that still sign."""
        check_route_key(db, route_id)
        return _shown(await store.secrets(db, route_id))

    @post(
        "/rotate",
        dto=OptionalJson[RotateIn],
        return_dto=None,
        status_code=200,
        operation_class=OptionalBody,
        guards=[requires(Role.ADMIN)],
        operation_id="RotateSecret",
        summary="Rotate the secret of a route",
        responses=refusals(MalformedError, ForbiddenNameError, NoSuchRouteError, TooLargeError, ContentTypeError),
    )
    async def rotate(
        self,
        db: Db,
        route_id: RouteIdInPath,
        data: JSONBody[RotateIn],
        store: NamedDependency[RouteStore],
        request: AuthenticatedRequest,
    ) -> SecretOut:
        """Make a new secret, and return what signs from now on.

        Those of before sign too for the overlap, so that receivers can take the new one over in their own time. At most
        five sign at a time; a rotation that would make it more is answered 429 (E014).
        """
        check_route_key(db, route_id)
        return _shown(await store.rotate(db, route_id, timedelta(seconds=data.overlap), by=request.user))

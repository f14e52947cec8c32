"""The secrets of a route: what its deliveries are signed with."""

from datetime import timedelta
from typing import Annotated, Self

import msgspec
from litestar import Controller, get, post
from litestar.datastructures import CacheControlHeader
from litestar.di import NamedDependency
from litestar.params import JSONBody
from msgspec import Meta

from api.errors import refusals
from api.routes import check_route_key
from api.schemas import Db, OptionalBody, OptionalJson, RouteIdInPath
from timemachine.domain.errors import (
    ContentTypeError,
    ForbiddenNameError,
    MalformedError,
    NoSuchRouteError,
    TooLargeError,
)
from timemachine.domain.jobs import to_ms
from timemachine.domain.signing import encode_secret
from timemachine.postgres.route_store import RouteStore, Secret

MAX_OVERLAP = 7 * 86_400

# Who decodes them reads what they are.
EXAMPLE = encode_secret(b"example secret: not a real one !")
OLDER_EXAMPLE = encode_secret(b"older example, not a real one  !")

Value = Annotated[
    str, Meta(description="`whsec_` and 32 bytes in base64, as the libraries of Standard Webhooks take it.")
]


class RotateIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a secret is replaced."""

    overlap: Annotated[
        float,
        Meta(
            ge=0,
            le=MAX_OVERLAP,
            examples=[3600],
            description="Seconds during which the secrets of before sign too. With 0 they end at once, which is for a "
            "secret that others have come to know: a request that is under way just then may still carry its signature "
            "only, and is refused and tried again.",
        ),
    ] = 86_400.0


class PreviousOut(msgspec.Struct, frozen=True, kw_only=True):
    """A secret of before, which signs for some time more."""

    secret: Annotated[Value, Meta(examples=[OLDER_EXAMPLE])]
    expires_at: Annotated[
        int, Meta(description="Until when it signs, in milliseconds since the epoch.", examples=[4_102_444_800_000])
    ]


class SecretOut(msgspec.Struct, frozen=True, kw_only=True):
    """The secrets that sign the deliveries of a route. Every request carries a signature of each."""

    secret: Annotated[Value, Meta(examples=[EXAMPLE])]
    previous: Annotated[
        list[PreviousOut], Meta(description="Those of before, the newest first; empty most of the time.")
    ]

    @classmethod
    def of(cls, secrets: list[Secret]) -> Self:
        """Return how the secrets that sign now, the newest first, are told to their owner."""
        newest, *previous = secrets
        return cls(
            secret=encode_secret(newest.value),
            previous=[
                PreviousOut(secret=encode_secret(secret.value), expires_at=to_ms(secret.expires_at))
                for secret in previous
                if secret.expires_at
            ],
        )


class SecretController(Controller):
    """Secrets: what deliveries are signed with."""

    path = "/route/{db:str}/{route_id:str}/secret"
    tags = ("Routes",)
    cache_control = CacheControlHeader(no_store=True)

    @get(operation_id="GetSecret", responses=refusals(ForbiddenNameError, NoSuchRouteError))
    async def read(self, db: Db, route_id: RouteIdInPath, store: NamedDependency[RouteStore]) -> SecretOut:
        """Return the secret of a route, made when the route was created, and those of before that still sign."""
        check_route_key(db, route_id)
        return SecretOut.of(await store.secrets(db, route_id))

    @post(
        "/rotate",
        dto=OptionalJson[RotateIn],
        return_dto=None,
        status_code=200,
        operation_class=OptionalBody,
        operation_id="RotateSecret",
        responses=refusals(MalformedError, ForbiddenNameError, NoSuchRouteError, TooLargeError, ContentTypeError),
    )
    async def rotate(
        self, db: Db, route_id: RouteIdInPath, data: JSONBody[RotateIn], store: NamedDependency[RouteStore]
    ) -> SecretOut:
        """Make a new secret, and return what signs from now on.

        Those of before sign too for the overlap, so that receivers can take the new one over in their own time. At most
        five sign at a time; a rotation that would make it more is answered 429 (E014).
        """
        check_route_key(db, route_id)
        return SecretOut.of(await store.rotate(db, route_id, timedelta(seconds=data.overlap)))

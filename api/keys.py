"""Keys: who may use the API. Admins make, list, rotate and revoke them; each those of its own dbs."""

from datetime import timedelta
from typing import Annotated

from litestar import Controller, delete, get, post
from litestar.datastructures import CacheControlHeader
from litestar.di import NamedDependency
from litestar.params import JSONBody, PathParameter
from msgspec import UNSET

from api.authentication import AuthenticatedRequest, requires
from api.errors import refusals
from api.litestar_json import ExactJson, OptionalBody, OptionalJson
from api.pagination import DEFAULT_LIMIT, Cursor, Limit, decode_cursor, encode_cursor
from api.schemas import KeyIn, KeyOut, KeyRotateIn, KeysOut, NewKeyOut, Ok
from timemachine.domain.audit import Caller
from timemachine.domain.errors import (
    ContentTypeError,
    ForbiddenNameError,
    LastAdminKeyError,
    MalformedError,
    NoSuchKeyError,
    TooLargeError,
)
from timemachine.domain.jobs import from_ms, looks_like_seconds, seconds_given, to_ms
from timemachine.domain.keys import ID_LENGTH, KEY_ID_PATTERN, ApiKey, KeyRequest, NewKey, Role
from timemachine.postgres.key_store import KeyPosition, KeyStore

KeyId = Annotated[
    str,
    PathParameter(
        schema_extra={"pattern": KEY_ID_PATTERN, "max_length": ID_LENGTH},
        description="The key's id: the 12 characters after `tm_`.",
    ),
]


class Keys:
    """The keys, as admins may deal with them.

    Every method raises UnavailableError when Postgres does not answer in time, and UnauthorizedError when the caller's
    key was revoked meanwhile.
    """

    def __init__(self, store: KeyStore) -> None:
        """Take the keys."""
        self._store = store

    async def create(self, data: KeyIn, caller: Caller) -> NewKeyOut:
        """Make a key; see `KeyStore.create`."""
        if data.expires_at is not UNSET and looks_like_seconds(data.expires_at):
            raise MalformedError(seconds_given("expires_at"))
        asked = KeyRequest(
            name=data.name,
            role=data.role,
            dbs=data.dbs,
            expires_at=None if data.expires_at is UNSET else from_ms(data.expires_at),
            requests_per_second=None if data.requests_per_second is UNSET else data.requests_per_second,
        )
        return _show_new(*await self._store.create(asked, caller))

    async def page(self, caller: Caller, limit: int, cursor: str | None) -> KeysOut:
        """Return a page of the keys that the caller may see.

        Raises:
            MalformedError: The cursor is not allowed.
        """
        after = None if cursor is None else decode_cursor(cursor, KeyPosition)
        page = await self._store.page(caller, limit=limit, after=after)
        return KeysOut(keys=[_show(key) for key in page.keys], next=encode_cursor(page.next) if page.next else UNSET)

    async def rotate(self, key_id: str, overlap: float, caller: Caller) -> NewKeyOut:
        """Give a key a new secret; see `KeyStore.rotate`."""
        return _show_new(*await self._store.rotate(key_id, timedelta(seconds=overlap), caller))

    async def revoke(self, key_id: str, caller: Caller) -> None:
        """Revoke a key; see `KeyStore.revoke`."""
        await self._store.revoke(key_id, caller, keep_admin=True)


def _show(key: ApiKey) -> KeyOut:
    return KeyOut(
        id=key.id,
        name=key.name,
        role=key.role,
        dbs=key.dbs,
        created_at=to_ms(key.created_at),
        created_by=key.created_by or UNSET,
        expires_at=to_ms(key.expires_at) if key.expires_at else UNSET,
        last_used_at=to_ms(key.last_used_at) if key.last_used_at else UNSET,
        revoked_at=to_ms(key.revoked_at) if key.revoked_at else UNSET,
        requests_per_second=key.requests_per_second or UNSET,
    )


def _show_new(key: ApiKey, new: NewKey) -> NewKeyOut:
    return NewKeyOut(id=key.id, key=new.text, name=key.name, role=key.role, dbs=key.dbs)


class KeyController(Controller):
    """Keys: who may use the API."""

    path = "/key"
    tags = ("Keys",)
    cache_control = CacheControlHeader(no_store=True)

    @post(
        dto=ExactJson[KeyIn],
        return_dto=None,
        status_code=200,
        guards=[requires(Role.ADMIN)],
        operation_id="CreateKey",
        summary="Create a key",
        responses=refusals(MalformedError, ForbiddenNameError, TooLargeError, ContentTypeError),
    )
    async def create(
        self, data: JSONBody[KeyIn], api_keys: NamedDependency[Keys], request: AuthenticatedRequest
    ) -> NewKeyOut:
        """Create a key. This answer is the only one that shows it.

        A key that opens some dbs only makes keys for those. After a lost answer, look for the key in the list, revoke
        it, and create another one.
        """
        return await api_keys.create(data, request.user)

    @get(
        guards=[requires(Role.ADMIN)],
        operation_id="ListKeys",
        summary="List the keys",
        responses=refusals(MalformedError),
    )
    async def list_keys(
        self,
        api_keys: NamedDependency[Keys],
        request: AuthenticatedRequest,
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> KeysOut:
        """List the keys, the newest first, revoked and expired ones too. What they open must be open to this key."""
        return await api_keys.page(request.user, limit, cursor)

    @post(
        "/{key_id:str}/rotate",
        dto=OptionalJson[KeyRotateIn],
        return_dto=None,
        status_code=200,
        operation_class=OptionalBody,
        guards=[requires(Role.ADMIN)],
        operation_id="RotateKey",
        summary="Rotate a key",
        responses=refusals(MalformedError, NoSuchKeyError, TooLargeError, ContentTypeError),
    )
    async def rotate(
        self,
        key_id: KeyId,
        data: JSONBody[KeyRotateIn],
        api_keys: NamedDependency[Keys],
        request: AuthenticatedRequest,
    ) -> NewKeyOut:
        """Give a key a new secret, which this answer alone shows. Its id, role and dbs stay.

        The present secret stays valid for the overlap. At most five are valid at a time; a rotation that would make it
        more is answered 429 (E014).
        """
        return await api_keys.rotate(key_id, data.overlap, request.user)

    @delete(
        "/{key_id:str}",
        status_code=200,
        guards=[requires(Role.ADMIN)],
        operation_id="RevokeKey",
        summary="Revoke a key",
        responses=refusals(NoSuchKeyError, LastAdminKeyError),
    )
    async def revoke(self, key_id: KeyId, api_keys: NamedDependency[Keys], request: AuthenticatedRequest) -> Ok:
        """Revoke a key for good, within five seconds everywhere. Repeating it changes nothing.

        The last admin key is refused: an operator revokes it by the command line.
        """
        await api_keys.revoke(key_id, request.user)
        return Ok()

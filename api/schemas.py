"""What goes over the wire where it differs from what is stored, and how bodies are read."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec
from litestar import Request
from litestar.datastructures import State
from litestar.dto import AbstractDTO, DTOFieldDefinition
from litestar.exceptions import InternalServerException
from litestar.openapi.spec import OpenAPIType, Operation, Reference, RequestBody, Schema
from litestar.params import PathParameter
from litestar.plugins import OpenAPISchemaPlugin
from litestar.typing import FieldDefinition
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from api.explanations import explain_body
from api.http_protocol import declares_body
from timemachine.domain.errors import ContentTypeError, MalformedError
from timemachine.domain.jobs import MAX_JOB_ID, MAX_NAME, NAME_PATTERN
from timemachine.domain.retry import MAX_WAIT, MIN_WAIT, Retry, Waits

T = TypeVar("T", bound=Struct)

MAX_ARRAY_BYTES = 32 * 1024
"""Bytes of an array or object in a body, other than `meta`; far more than any may have that is allowed."""

TRIGGER_TIME_EXAMPLE = 4_102_444_800_000


def name_schema(limit: int) -> dict[str, object]:
    """Return what the document says of a name. It is only said here: `check_name` refuses what is not allowed."""
    return {"pattern": NAME_PATTERN, "max_length": limit}


Db = Annotated[str, PathParameter(schema_extra=name_schema(MAX_NAME))]
Collection = Annotated[str, PathParameter(schema_extra=name_schema(MAX_NAME))]
JobIdInPath = Annotated[str, PathParameter(schema_extra=name_schema(MAX_JOB_ID))]
RouteIdInPath = Annotated[str, PathParameter(schema_extra=name_schema(MAX_NAME))]

Id = Annotated[
    str,
    Meta(
        description="1 to 120 characters of `A-Z a-z 0-9 _ - . : ~ @ +`.",
        examples=["nxz123bnj"],
        extra_json_schema={"extra": name_schema(MAX_JOB_ID)},
    ),
]
TriggerTime = Annotated[
    int, Meta(description="When to deliver, in milliseconds since the epoch.", examples=[TRIGGER_TIME_EXAMPLE])
]
RouteId = Annotated[
    str,
    Meta(
        description="A route: 1 to 64 characters of `A-Z a-z 0-9 _ - . : ~ @ +`.",
        examples=["gameServer"],
        extra_json_schema={"extra": name_schema(MAX_NAME)},
    ),
]


Deadline = Annotated[
    int,
    Meta(
        description="When the job is no longer worth delivering, in milliseconds since the epoch.",
        examples=[TRIGGER_TIME_EXAMPLE + 3_600_000],
    ),
]


def _null() -> Raw:
    return Raw(b"null")


class RetryIn(Retry, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When to try again. What is left out has its default; `waits` stands in place of all the others."""

    waits: (
        Annotated[
            Waits,
            # Litestar forgets the bounds of what is inside.
            Meta(
                extra_json_schema={
                    "extra": {
                        "one_of": None,
                        "type": OpenAPIType.ARRAY,
                        "items": Schema(type=OpenAPIType.NUMBER, minimum=MIN_WAIT, maximum=MAX_WAIT),
                    }
                }
            ),
        ]
        | UnsetType
    ) = UNSET

    def stored(self) -> Retry:
        """Return it as it is stored, where later versions may read fields that this one does not know."""
        return Retry(**msgspec.structs.asdict(self))


RetryOfJob = Annotated[
    RetryIn | None, Meta(description="In place of the route's.", examples=[{"waits": [60, 600, 3600]}])
]


class JobIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job to create."""

    id: Id
    trigger_time: TriggerTime
    route: RouteId
    meta: Raw = msgspec.field(default_factory=_null)
    retry: RetryOfJob = None
    deadline: Deadline | None = None


class JobChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a waiting job becomes. `id` may be left out, and must otherwise be the path's."""

    id: Id | UnsetType = UNSET
    trigger_time: TriggerTime
    route: RouteId
    meta: Raw = msgspec.field(default_factory=_null)
    retry: RetryOfJob = None
    deadline: Deadline | None = None


class Ok(msgspec.Struct, frozen=True):
    """The request has taken effect."""

    status: Annotated[str, Meta(examples=["ok"])] = "ok"


class WholeRequest(Request[Any, Any, State]):
    """A request whose body, where one is asked for, is there and whole."""

    async def body(self) -> bytes:
        """Return the body, or an empty object in place of one that may be left out.

        Raises:
            MalformedError: There is none, or the client went away before its end.
        """
        if body := await super().body():
            return body
        dto = self.route_handler.resolve_data_dto()
        if dto and issubclass(dto, OptionalJson) and not declares_body(self.scope["headers"]):
            return b"{}"
        raise MalformedError("the body is missing")

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Return the body in pieces.

        Raises:
            MalformedError: The client went away before its end.
        """
        try:
            async for piece in super().stream():
                yield piece
        except InternalServerException as error:
            raise MalformedError("the body is cut short") from error


class ExactJson(AbstractDTO[T]):
    """Decodes a body straight into its struct, so that `msgspec.Raw` fields keep the client's bytes.

    Litestar's own way leads over builtins, where the spelling of numbers, white space and key order are gone.
    """

    decoder: ClassVar[msgspec.json.Decoder[Any]]
    undecoded: ClassVar[msgspec.json.Decoder[Any]]
    """Decodes to the same fields, each as it is written."""

    @classmethod
    def create_for_field_definition(cls, *_: Any, **__: Any) -> None:
        """Make the decoders, once per handler, in place of Litestar's transfer models."""
        cls.decoder = msgspec.json.Decoder(cls.model_type)
        fields = [(field.name, Raw, Raw()) for field in msgspec.structs.fields(cls.model_type)]
        cls.undecoded = msgspec.json.Decoder(msgspec.defstruct("Undecoded", fields, forbid_unknown_fields=True))

    @classmethod
    def generate_field_definitions(cls, model_type: type[Any]) -> "list[DTOFieldDefinition]":  # type: ignore[override]
        """Return nothing: there is no transfer model."""
        return []

    @classmethod
    def detect_nested_field(cls, field_definition: FieldDefinition) -> bool:
        """Return False: there is no transfer model."""
        return False

    @classmethod
    def create_openapi_schema(
        cls, field_definition: FieldDefinition, handler_id: str, schema_creator: Any
    ) -> Reference | Schema:
        """Document the struct itself."""
        schema: Reference | Schema = schema_creator.for_field_definition(field_definition)
        return schema

    def decode_bytes(self, value: bytes) -> Any:
        """Decode a body.

        Raises:
            ContentTypeError: The body says that it is something else than JSON, or that it is compressed.
            MalformedError: It is no JSON, or not of the struct's shape; the message names the field.
        """
        self._check_headers()
        try:
            value.decode("utf-8")  # msgspec does not look into the strings of a Raw field
            if len(value) > MAX_ARRAY_BYTES:
                self._check_arrays(value)
            return self.decoder.decode(value)
        except RecursionError as error:
            raise MalformedError("the body is nested too deeply") from error
        except (UnicodeDecodeError, msgspec.DecodeError) as error:
            raise MalformedError(explain_body(error, value)) from error

    def _check_headers(self) -> None:
        headers = self.asgi_connection.headers
        if any(coding.strip().lower() not in ("", "identity") for coding in headers.getall("content-encoding", [])):
            raise ContentTypeError("send the body as it is, without content-encoding")
        media_type = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if media_type != "application/json" and not media_type.endswith("+json"):
            raise ContentTypeError("send the body with content-type: application/json")

    def _check_arrays(self, value: bytes) -> None:
        """Refuse what would take long to decode only to be refused for its length.

        Raises:
            MalformedError: An array or object, other than a field that is kept as it is, is far too long.
        """
        fields = self.undecoded.decode(value)
        for field in msgspec.structs.fields(self.model_type):
            written = memoryview(getattr(fields, field.name))
            if field.type is not Raw and len(written) > MAX_ARRAY_BYTES and written[0] in b"[{":
                raise MalformedError(f"{field.name}: at most {MAX_ARRAY_BYTES} bytes are allowed")


class OptionalJson(ExactJson[T]):
    """Decodes as `ExactJson` does; a body that is left out stands for an empty object. Goes with `OptionalBody`."""

    def decode_bytes(self, value: bytes) -> Any:
        """Decode a body, as `ExactJson` does. One that is left out has no type: its headers are not looked at."""
        if not declares_body(self.asgi_connection.scope["headers"]):
            return self.decoder.decode(value)
        return super().decode_bytes(value)


@dataclass
class OptionalBody(Operation):
    """Documents an operation whose body may be left out, which Litestar has no word for."""

    def __post_init__(self) -> None:
        """Say that the body may be left out."""
        if isinstance(self.request_body, RequestBody):
            self.request_body.required = False


class _SchemaPlugin(OpenAPISchemaPlugin):
    """What Litestar asks a plugin for, besides the one thing that ours do."""

    @staticmethod
    def is_plugin_supported_type(value: Any) -> bool:
        """Return False: we are asked about fields."""
        return False

    @staticmethod
    def is_undefined_sentinel(value: Any) -> bool:
        """Return False: there is no sentinel of ours."""
        return False

    @staticmethod
    def is_constrained_field(field_definition: FieldDefinition) -> bool:
        """Return False: there are no constraints of ours."""
        return False


class StrictSchema(_SchemaPlugin):
    """Documents that a struct which forbids unknown fields takes no others, which Litestar does not say."""

    def is_plugin_supported_field(self, field_definition: FieldDefinition) -> bool:
        """Return whether this plugin documents the field."""
        if field_definition.is_union or not field_definition.is_subclass_of(Struct):
            return False
        return bool(field_definition.type_.__struct_config__.forbid_unknown_fields)

    def to_openapi_schema(self, field_definition: FieldDefinition, schema_creator: Any) -> Schema:
        """Return what Litestar's own plugin says, and that."""
        others = (plugin for plugin in schema_creator.plugins if plugin is not self)
        own = next(plugin for plugin in others if schema_creator.plugin_supports_field(plugin, field_definition))
        schema: Schema = own.to_openapi_schema(field_definition, schema_creator)
        schema.additional_properties = False
        return schema


class RawSchema(_SchemaPlugin):
    """Documents `msgspec.Raw` as what it stands for: any JSON value."""

    def is_plugin_supported_field(self, field_definition: FieldDefinition) -> bool:
        """Return whether this plugin documents the field."""
        return field_definition.annotation is Raw

    def to_openapi_schema(self, field_definition: FieldDefinition, schema_creator: Any) -> Schema:
        """Return a schema without constraints."""
        return Schema(
            title="Any JSON value",
            description="Any JSON value, up to 256 KiB and 128 levels; kept byte for byte. null where absent.",
            examples=[{"game": 7, "reason": "timeout"}],
        )

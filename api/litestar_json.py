"""How Litestar reads JSON bodies and documents structs, where its own way would lose what a client wrote."""

import inspect
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import msgspec
from litestar import Request
from litestar.datastructures import Headers, State
from litestar.dto import AbstractDTO, DTOFieldDefinition
from litestar.exceptions import InternalServerException
from litestar.openapi.spec import Operation, Reference, RequestBody, Schema
from litestar.plugins import OpenAPISchemaPlugin
from litestar.typing import FieldDefinition
from msgspec import Raw, Struct

from api.explanations import explain_body
from api.http_protocol import declares_body
from timemachine.domain.errors import ContentTypeError, MalformedError

T = TypeVar("T", bound=Struct)

MAX_ARRAY_BYTES = 32 * 1024
"""Bytes of an array or object in a body, other than `meta`; far more than any may have that is allowed."""


class WholeRequest(Request[Any, Any, State]):
    """A request whose body, where one is asked for, is there and whole."""

    async def body(self) -> bytes:
        """Return the body, or an empty object in place of one that may be left out.

        Raises:
            MalformedError: There is none, or the client went away before its end.
        """
        try:
            body = await super().body()
        except InternalServerException as error:
            raise _cut_short() from error
        if body:
            return body
        dto = self.route_handler.resolve_data_dto()
        if dto and issubclass(dto, OptionalJson) and not declares_body(self.scope["headers"]):
            return b"{}"
        raise MalformedError("the body is missing")

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Return the body in pieces, as they come.

        Raises:
            MalformedError: The client went away before its end.
        """
        try:
            async for piece in self.stream():
                yield piece
        except InternalServerException as error:
            raise _cut_short() from error


def _cut_short() -> MalformedError:
    return MalformedError("the body is cut short")


def body_type(headers: Headers) -> str:
    """Return the media type that a body says it has, without parameters. One that says nothing is JSON.

    Raises:
        ContentTypeError: The body says that it is compressed.
    """
    if any(coding.strip().lower() not in ("", "identity") for coding in headers.getall("content-encoding", [])):
        raise ContentTypeError("send the body as it is, without content-encoding")
    return headers.get("content-type", "application/json").partition(";")[0].strip().lower()


def is_json(media_type: str) -> bool:
    """Return whether a media type is of the JSON family."""
    return media_type == "application/json" or media_type.endswith("+json")


class ExactDecoder(Generic[T]):
    """Decodes JSON straight into a struct, so that `msgspec.Raw` fields keep the client's bytes."""

    def __init__(self, struct: type[T]) -> None:
        """Make the decoders of a struct."""
        self._struct = struct
        self._decoder = msgspec.json.Decoder(struct)
        fields = [(field.name, Raw, Raw()) for field in msgspec.structs.fields(struct)]
        # Decodes to the same fields, each as it is written.
        self._undecoded = msgspec.json.Decoder(msgspec.defstruct("Undecoded", fields, forbid_unknown_fields=True))

    def decode(self, value: bytes) -> T:
        """Decode a document.

        Raises:
            MalformedError: It is no JSON, or not of the struct's shape; the message names the field.
        """
        try:
            value.decode("utf-8")  # msgspec does not look into the strings of a Raw field
            if len(value) > MAX_ARRAY_BYTES:
                self._check_arrays(value)
            return self._decoder.decode(value)
        except RecursionError as error:
            raise MalformedError("the body is nested too deeply") from error
        except (UnicodeDecodeError, msgspec.DecodeError) as error:
            raise MalformedError(explain_body(error, value)) from error

    def _check_arrays(self, value: bytes) -> None:
        """Refuse what would take long to decode only to be refused for its length.

        Raises:
            MalformedError: An array or object, other than a field that is kept as it is, is far too long.
        """
        fields = self._undecoded.decode(value)
        for field in msgspec.structs.fields(self._struct):
            written = memoryview(getattr(fields, field.name))
            if field.type is not Raw and len(written) > MAX_ARRAY_BYTES and written[0] in b"[{":
                raise MalformedError(f"{field.name}: at most {MAX_ARRAY_BYTES} bytes are allowed")


class ExactJson(AbstractDTO[T]):
    """Decodes a body straight into its struct, as `ExactDecoder` does.

    Litestar's own way leads over builtins, where the spelling of numbers, white space and key order are gone.
    """

    decoder: ClassVar[ExactDecoder[Any]]

    @classmethod
    def create_for_field_definition(cls, *_: Any, **__: Any) -> None:
        """Make the decoder, once per handler, in place of Litestar's transfer models."""
        cls.decoder = ExactDecoder(cls.model_type)

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
        if not is_json(body_type(self.asgi_connection.headers)):
            raise ContentTypeError("send the body with content-type: application/json")
        return self.decoder.decode(value)


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


class StructSchema(_SchemaPlugin):
    """Documents of a struct what Litestar leaves out: what it is, and whether it takes fields that it does not know."""

    def is_plugin_supported_field(self, field_definition: FieldDefinition) -> bool:
        """Return whether this plugin documents the field."""
        return not field_definition.is_union and field_definition.is_subclass_of(Struct)

    def to_openapi_schema(self, field_definition: FieldDefinition, schema_creator: Any) -> Schema:
        """Return what Litestar's own plugin says, and that."""
        others = (plugin for plugin in schema_creator.plugins if plugin is not self)
        own = next(plugin for plugin in others if schema_creator.plugin_supports_field(plugin, field_definition))
        schema: Schema = own.to_openapi_schema(field_definition, schema_creator)
        struct = field_definition.type_
        # What follows the first paragraph is for those who change the code.
        schema.description = (inspect.getdoc(struct) or "").partition("\n\n")[0]
        if struct.__struct_config__.forbid_unknown_fields:
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

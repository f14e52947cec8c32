"""How arguments and results are stored in Temporal: JSON by msgspec."""

from typing import Any

import msgspec
from temporalio.api.common.v1 import Payload
from temporalio.converter import (
    CompositePayloadConverter,
    DataConverter,
    DefaultPayloadConverter,
    EncodingPayloadConverter,
    JSONPlainPayloadConverter,
)


class MsgspecJsonConverter(EncodingPayloadConverter):
    """JSON payloads by msgspec, readable in Temporal's Web UI and CLI, with `msgspec.Raw` kept byte for byte."""

    @property
    def encoding(self) -> str:
        """The encoding's name: plain JSON, as Temporal's own converter calls it."""
        return "json/plain"

    def to_payload(self, value: Any) -> Payload:
        """Encode a value."""
        return Payload(metadata={"encoding": b"json/plain"}, data=msgspec.json.encode(value))

    def from_payload(self, payload: Payload, type_hint: type | None = None) -> Any:
        """Decode a payload to the type that the workflow, activity or caller declares."""
        return msgspec.json.decode(payload.data, type=type_hint or Any)


class MsgspecPayloadConverter(CompositePayloadConverter):
    """Temporal's default payload converter with its JSON step replaced."""

    def __init__(self) -> None:
        """Keep every other encoding: null, binary and protobuf."""
        super().__init__(
            *(
                MsgspecJsonConverter() if isinstance(converter, JSONPlainPayloadConverter) else converter
                for converter in DefaultPayloadConverter().converters.values()
            )
        )


DATA_CONVERTER = DataConverter(payload_converter_class=MsgspecPayloadConverter)

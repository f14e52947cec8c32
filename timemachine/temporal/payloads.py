"""How arguments and results are stored in Temporal: JSON by msgspec; and failures: without needless stack traces."""

from typing import Any

import msgspec
from temporalio.api.common.v1 import Payload
from temporalio.api.failure.v1 import Failure
from temporalio.converter import (
    CompositePayloadConverter,
    DataConverter,
    DefaultFailureConverter,
    DefaultPayloadConverter,
    EncodingPayloadConverter,
    JSONPlainPayloadConverter,
    PayloadConverter,
)

from timemachine.domain import stored_names


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


class ShortFailureConverter(DefaultFailureConverter):
    """Temporal's default failure converter, without stack traces where an error is an outcome and no fault.

    A job that no receiver took would else begin with our own stack trace in the Web UI, and take six times the history.
    """

    def to_failure(self, exception: BaseException, payload_converter: PayloadConverter, failure: Failure) -> None:
        """Encode an exception, and each that it was caused by."""
        super().to_failure(exception, payload_converter, failure)
        while failure.HasField("application_failure_info"):
            if failure.application_failure_info.type in stored_names.OUTCOMES:
                failure.stack_trace = ""
            failure = failure.cause


DATA_CONVERTER = DataConverter(
    payload_converter_class=MsgspecPayloadConverter, failure_converter_class=ShortFailureConverter
)

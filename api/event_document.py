"""What the receivers of events get, in the OpenAPI document: a webhook for each kind."""

from typing import Any

import msgspec

from timemachine.domain.events import DATA_OF, EventKind

_COMPONENT = "#/components/schemas/{name}"


def with_events(document: dict[str, Any]) -> dict[str, Any]:
    """Return an OpenAPI document with the webhooks."""
    kinds = list(DATA_OF)
    data, schemas = msgspec.json.schema_components([DATA_OF[kind] for kind in kinds], ref_template=_COMPONENT)
    for schema in schemas.values():
        # What follows the first paragraph is for those who change the code.
        schema["description"] = schema["description"].partition("\n\n")[0]
    components = document["components"]
    return document | {
        "components": components | {"schemas": schemas | components["schemas"]},
        "webhooks": {
            kind: _webhook(kind, schema, schemas[DATA_OF[kind].__name__]["description"])
            for kind, schema in zip(kinds, data, strict=True)
        },
    }


def _webhook(kind: EventKind, data: dict[str, Any], description: str) -> dict[str, Any]:
    body = {
        "type": "object",
        "properties": {
            "type": {"const": kind, "description": "What has happened."},
            "timestamp": {
                "type": "string",
                "format": "date-time",
                "description": "When it happened.",
                "examples": ["2026-11-28T12:00:00.000Z"],
            },
            "data": data,
        },
        "required": ["type", "timestamp", "data"],
    }
    return {
        "post": {
            "tags": ["Events"],
            "summary": f"The event {kind}",
            "description": description,
            "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
            "responses": {"2XX": {"description": "The receiver has it. Any other answer is tried again."}},
            "security": [{}],
        }
    }

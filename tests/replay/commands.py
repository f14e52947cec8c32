"""What a workflow told the server to do, in its order: the part of a history that a replay has to repeat."""

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from temporalio.client import WorkflowHistory

FOLDER = Path(__file__).parent
HISTORIES = FOLDER / "histories"
COMMANDS = FOLDER / "commands.txt"
"""The commands of every recorded history. A change of them shows in review before it meets jobs that wait."""

_PREFIX = "EVENT_TYPE_"


def read_history(file: Path) -> WorkflowHistory:
    return WorkflowHistory.from_json("db/c/job", file.read_text())


def commands_of(history: WorkflowHistory) -> list[str]:
    """Return the commands of a history, a line each."""
    return list(_commands(history))


def all_commands() -> str:
    """Return the commands of all recorded histories, as they are kept."""
    stories = ((file.stem, commands_of(read_history(file))) for file in sorted(HISTORIES.glob("*.json")))
    return "\n".join(f"{name}\n" + "".join(f"    {command}\n" for command in commands) for name, commands in stories)


def _commands(history: WorkflowHistory) -> Iterator[str]:
    for event in history.events:
        values = MessageToDict(event)
        kind = str(values["eventType"]).removeprefix(_PREFIX)
        attributes: Mapping[str, Any] = next(
            (value for name, value in values.items() if name.endswith("Attributes")), {}
        )
        if (name := _name(kind, attributes)) is not None:
            yield f"{kind.lower().replace('_', ' ')} {name}".strip()


def _name(kind: str, attributes: Mapping[str, Any]) -> str | None:
    """Return what an event that a command has made is about; None for an event that no command has made."""
    match kind:
        case "ACTIVITY_TASK_SCHEDULED":
            return str(attributes["activityType"]["name"])
        case "MARKER_RECORDED":
            return f"{attributes['markerName']} {_marked(attributes['details'])}"
        case "WORKFLOW_PROPERTIES_MODIFIED":
            return " ".join(sorted(attributes["upsertedMemo"]["fields"]))
        case "UPSERT_WORKFLOW_SEARCH_ATTRIBUTES":
            return " ".join(sorted(attributes["searchAttributes"]["indexedFields"]))
        case "START_CHILD_WORKFLOW_EXECUTION_INITIATED":
            return str(attributes["workflowType"]["name"])
        case (
            "TIMER_STARTED"
            | "TIMER_CANCELED"
            | "ACTIVITY_TASK_CANCEL_REQUESTED"
            | "WORKFLOW_EXECUTION_UPDATE_ACCEPTED"
            | "WORKFLOW_EXECUTION_UPDATE_COMPLETED"
            | "WORKFLOW_EXECUTION_COMPLETED"
            | "WORKFLOW_EXECUTION_FAILED"
            | "WORKFLOW_EXECUTION_CANCELED"
            | "WORKFLOW_EXECUTION_CONTINUED_AS_NEW"
        ):
            return ""
    return None


def _marked(details: Mapping[str, Any]) -> str:
    """Return which local activity, or which patch, a marker is of."""
    (payload,) = next(iter(details[name] for name in ("data", "patch-data") if name in details))["payloads"]
    data = json.loads(base64.b64decode(payload["data"]))
    return str(data.get("activity_type") or data.get("id"))

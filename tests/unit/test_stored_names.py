"""Names that outlive the code: never changed, and all that is registered, queried or recorded is among them."""

import importlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from timemachine.domain import stored_names

ROOT = Path(__file__).parents[2]
HISTORIES = sorted((ROOT / "tests/replay/histories").glob("*.json"))

NAMES = {name: value for name, value in vars(stored_names).items() if name.isupper() and isinstance(value, str)}

# A second copy, so that a name is not changed by one edit. A name may be added here, and never taken away.
AS_STORED = {
    "JOB": "Job",
    "WAKE_JOB": "Wake",
    "RELEASE": "Release",
    "REDELIVERY": "Redelivery",
    "CLEAN_ATTEMPTS": "CleanAttempts",
    "CANCEL_MANY": "CancelMany",
    "CHANGE": "change",
    "TRIGGER": "trigger",
    "WAKE": "wake",
    "RELEASE_JOB": "release",
    "FIRST_ATTEMPT": "first_attempt",
    "DELIVER": "deliver",
    "CANCEL_DELIVERY": "cancel_delivery",
    "NOTHING": "nothing",
    "WAKE_RUN": "wake",
    "RELEASE_HELD": "release_held",
    "REDELIVER_FAILED": "redeliver_failed",
    "COUNT_REDELIVERED": "count_redelivered",
    "CANCEL_MATCHING": "cancel_matching",
    "REMOVE_OLD_ROWS": "clean_attempts",
    "DELIVER_AT_ONCE": "deliver_at_once",
    "SETTLE": "settle",
    "FIND_TAKEN": "find_taken",
    "TOO_LATE": "TooLate",
    "HELD": "Held",
    "ATTEMPT_FAILED": "AttemptFailed",
    "DEFERRED": "NotYet",
    "OUTCOME_UNKNOWN": "Unsure",
    "NOT_DELIVERED": "NotDelivered",
    "WORKER_STOPS": "Stopping",
    "YIELDS_SLOT": "GivesWay",
    "CHANGED_JOB": "job",
    "HELD_SINCE": "held",
    "REDELIVERS": "redelivers",
    "CREATED_AT": "created",
    "JOB_FILTER": "filter",
    "ROUTE_ATTRIBUTE": "TimemachineRoute",
    "TRIGGER_TIME_ATTRIBUTE": "TimemachineTriggerTime",
    "HELD_ATTRIBUTE": "TimemachineHeld",
    "DB_ATTRIBUTE": "TimemachineDb",
    "COLLECTION_ATTRIBUTE": "TimemachineCollection",
    "LABELS_ATTRIBUTE": "TimemachineLabels",
    "CREATED_BY_ATTRIBUTE": "TimemachineCreatedBy",
    "WAKE_AFTER_CUT": "2026-11-a-continued-run-is-woken",
    "EVERY_CANCEL_ASKS": "2026-11-every-cancel-asks-the-log",
    "HELD_ARE_CUT": "2026-11-held-jobs-are-continued-as-new",
    "RELEASED_BEFORE_DEADLINE": "2026-11-a-spread-ends-before-the-deadline",
    "FIRST_RUN_ATTEMPTS_IN_TASK": "2026-11-only-a-first-run-attempts-in-its-task",
    "CUT_AT_LIMIT": "2026-11-a-history-is-cut-at-the-job's-limit",
    "WAKER_IS_NO_JOB": "2026-11-a-waker-has-no-job's-id",
    "STOPS_AFTER_ANY_LOOK": "2026-11-a-release-stops-after-a-look-that-missed-it",
    "CLEAN_ATTEMPTS_SCHEDULE": "timemachine-clean-attempts",
    "RELEASE_ID_PREFIX": "timemachine/release/",
    "REDELIVERY_ID_PREFIX": "timemachine/redelivery/",
    "WAKE_ID_PREFIX": "timemachine/wake/run/",
    "FORMER_WAKE_ID_PREFIX": "timemachine/wake/",
    "CANCEL_ID_PREFIX": "timemachine/cancel/",
    "EVENTS_COLLECTION": "timemachine.events",
}


def modules(folder: str) -> list[ModuleType]:
    return [importlib.import_module(f"{folder}.{path.stem}") for path in sorted((ROOT / folder).glob("[a-z]*.py"))]


def registered() -> Iterator[str]:
    """Every name of a workflow, an update, a signal, a query or an activity."""
    for module in modules("workflows"):
        for found in vars(module).values():
            if definition := getattr(found, "__temporal_workflow_definition", None):
                yield definition.name
                yield from (name for name in (*definition.updates, *definition.signals, *definition.queries) if name)
    for module in modules("activities"):
        for found in (*vars(module).values(), *(each for cls in classes(module) for each in vars(cls).values())):
            if definition := getattr(found, "__temporal_activity_definition", None):
                yield definition.name


def classes(module: ModuleType) -> list[type]:
    return [found for found in vars(module).values() if isinstance(found, type)]


# Where a history has names, and which ones it has there.
RECORDED: dict[str, Callable[[Any], Iterable[str]]] = {
    "workflowType": lambda found: [found["name"]],
    "activityType": lambda found: [found["name"]],
    "signalName": lambda found: [found],
    "acceptedRequest": lambda found: [found["input"]["name"]],
    "applicationFailureInfo": lambda found: [found["type"]] if found.get("type") else [],
    "memo": lambda found: found.get("fields", ()),
    "searchAttributes": lambda found: [name for name in found.get("indexedFields", ()) if name.startswith("Timem")],
}


def recorded(found: Any) -> Iterator[str]:
    """Every name in a history that Temporal matches with something in the code."""
    if isinstance(found, list):
        for each in found:
            yield from recorded(each)
    elif isinstance(found, dict):
        for key, value in found.items():
            yield from RECORDED.get(key, lambda _: ())(value)
            yield from recorded(value)


def test_no_name_is_ever_changed() -> None:
    assert NAMES == AS_STORED


def test_all_that_is_registered_is_here() -> None:
    names = set(registered())

    assert {"Job", "change", "release", "deliver", "redeliver_failed"} <= names
    assert names <= set(NAMES.values())


@pytest.mark.parametrize("history", HISTORIES, ids=lambda path: path.stem)
def test_all_that_is_recorded_is_here(history: Path) -> None:
    names = set(recorded(json.loads(history.read_text())))

    assert names
    assert names <= set(NAMES.values())


def test_nowhere_else_is_one_written_out() -> None:
    """As in `WorkflowType = 'Job'`, `name="deliver"` or `"TimemachineRoute"`."""
    quoted = re.compile(
        r"""WorkflowType = '\w|(?:defn|update|signal)\(name="|type="[A-Z]|["'](?:Timemachine[A-Z]\w+)["' ]"""
    )
    ours = [
        path for folder in ("activities", "api", "timemachine", "workflows") for path in (ROOT / folder).rglob("*.py")
    ]
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in (*ours, ROOT / "worker.py")
        if path.name != "stored_names.py"
        for line in path.read_text().splitlines()
        if quoted.search(line)
    ]
    assert found == []

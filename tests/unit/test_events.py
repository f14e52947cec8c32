"""The rules of events: what they tell, of whom they tell nothing, and the jobs that send them."""

import json
import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from msgspec import Raw
from msgspec.structs import replace

from api.app import create_app
from api.event_document import with_events
from tests.support.settings import service_settings
from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.errors import ForbiddenNameError, MalformedError
from timemachine.domain.events import (
    EventKind,
    JobEnd,
    RecoveredBy,
    RouteDisabled,
    RouteRecovered,
    WaitingEvent,
    check_kinds,
    event_job,
    facts_of,
)
from timemachine.domain.jobs import Job, check_job, check_name
from timemachine.domain.outcomes import AttemptResult
from timemachine.domain.stored_names import EVENTS_COLLECTION

AT = datetime(2026, 11, 28, 12, 30, 1, 234567, tzinfo=UTC)
AT_MS = 1_795_869_001_234
EVENT_ID = uuid.UUID("6f1c3b7e-54e5-4b0a-9f0e-0d7c2f9a1b34")

JOB = Job(
    db="arena",
    collection="timeouts",
    id="game-1",
    trigger_time=1_795_869_000_000,
    route="broken",
    meta=Raw(b'{"card":"4111"}'),
    labels=("order=1234",),
)
REFUSED = AttemptResult(
    number=13, kind=AttemptKind.REFUSED, status=500, reason="500 from the receiver: no card 4111", ended_at=7
)
LOST = AttemptResult(number=0, kind=AttemptKind.LOST, reason="an attempt was lost with its worker", ended_at=0)
TAKEN = AttemptResult(number=2, kind=AttemptKind.TAKEN, status=204, ended_at=AT_MS, late_ms=5)

OF_JOB = {
    "db": "arena",
    "collection": "timeouts",
    "id": "game-1",
    "trigger_time": 1_795_869_000_000,
    "route": "broken",
}


def waiting(kind: str, what: object, route_id: str | None = "ops") -> WaitingEvent:
    return WaitingEvent(id=EVENT_ID, db="arena", kind=kind, what=msgspec.json.encode(what), at=AT, route_id=route_id)


def ended(outcome: AttemptResult, attempts: int) -> JobEnd:
    return JobEnd(job=facts_of(JOB), attempts=attempts, outcome=outcome)


DISABLED = RouteDisabled(db="arena", route="broken", reason="the receiver answered 410 Gone")
RECOVERED = RouteRecovered(db="arena", route="broken", by=RecoveredBy.SUCCESS, since=AT_MS)

EVENTS: list[tuple[str, object, dict[str, Any]]] = [
    (
        "job.failed",
        ended(REFUSED, 13),
        OF_JOB
        | {
            "attempts": 13,
            "status": 500,
            "kind": "refused",
            "last_error": "500 from the receiver",
        },
    ),
    (
        "job.failed",
        ended(LOST, 1),
        OF_JOB | {"attempts": 1, "kind": "lost", "last_error": "an attempt was lost with its worker"},
    ),
    ("job.delivered", ended(TAKEN, 2), OF_JOB | {"attempts": 2, "status": 204, "delivered_at": AT_MS}),
    (
        "route.disabled",
        DISABLED,
        {"db": "arena", "route": "broken", "reason": "the receiver answered 410 Gone"},
    ),
    ("route.recovered", RECOVERED, {"db": "arena", "route": "broken", "by": "success", "since": AT_MS}),
]

each_event = pytest.mark.parametrize(("kind", "what", "data"), EVENTS)


@each_event
def test_an_event_tells_what_happened_and_nothing_else(kind: str, what: object, data: dict[str, Any]) -> None:
    body = json.loads(bytes(event_job(waiting(kind, what), "ops").meta))

    assert list(body) == ["type", "timestamp", "data"]
    assert body == {"type": kind, "timestamp": "2026-11-28T12:30:01.234Z", "data": data}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    app = create_app(service_settings(postgres_dsn="postgresql://nowhere/none"))
    document: dict[str, Any] = json.loads(json.dumps(with_events(app.openapi_schema.to_schema())))
    return document


@each_event
def test_an_event_is_as_the_document_says(
    kind: str, what: object, data: dict[str, Any], document: dict[str, Any]
) -> None:
    content = document["webhooks"][kind]["post"]["requestBody"]["content"]["application/json"]
    form = content["schema"]["properties"]["data"]["$ref"].rpartition("/")[2]
    described = document["components"]["schemas"][form]

    told = json.loads(bytes(event_job(waiting(kind, what), "ops").meta))["data"]

    assert set(described["required"]) <= told.keys() <= described["properties"].keys()
    assert content["schema"]["properties"]["type"]["const"] == kind


def test_the_document_has_every_kind_of_event_and_keeps_what_it_had(document: dict[str, Any]) -> None:
    app = create_app(service_settings(postgres_dsn="postgresql://nowhere/none"))
    before = json.loads(json.dumps(app.openapi_schema.to_schema()))

    assert set(document["webhooks"]) == set(EventKind)
    assert before["components"]["schemas"].items() <= document["components"]["schemas"].items()


def test_the_job_of_an_event_is_the_same_whoever_makes_it() -> None:
    event = waiting("route.disabled", DISABLED)
    elsewhere = replace(event, at=AT.astimezone(timezone(timedelta(hours=2))))

    job = event_job(event, "ops")

    assert job == event_job(elsewhere, "ops")
    assert (job.db, job.collection, job.id, job.route) == ("arena", EVENTS_COLLECTION, str(EVENT_ID), "ops")
    assert job.trigger_time == AT_MS


@pytest.mark.parametrize(("kind", "what"), [("job.cancelled", DISABLED), ("job.failed", DISABLED)])
def test_an_event_of_a_later_version_is_not_made_up(kind: str, what: object) -> None:
    with pytest.raises((ValueError, msgspec.ValidationError)):
        event_job(waiting(kind, what), "ops")


def test_events_tell_nothing_of_the_jobs_that_send_them() -> None:
    assert facts_of(event_job(waiting("route.disabled", DISABLED), "ops")).is_of_event
    assert not facts_of(JOB).is_of_event


def test_clients_create_no_jobs_among_those_that_send_events() -> None:
    with pytest.raises(ForbiddenNameError, match=r"timemachine\.events is reserved"):
        check_job(replace(JOB, collection=EVENTS_COLLECTION), AT)
    check_job(JOB, AT)


def test_clients_may_ask_for_the_jobs_that_send_events() -> None:
    check_name("collection", EVENTS_COLLECTION)


def test_an_event_is_asked_for_once() -> None:
    check_kinds(list(EventKind))
    with pytest.raises(MalformedError, match="once"):
        check_kinds([EventKind.JOB_FAILED, EventKind.JOB_FAILED])


def test_kinds_are_never_renamed() -> None:
    assert [*EventKind] == ["job.failed", "job.delivered", "route.disabled", "route.recovered"]
    assert [*RecoveredBy] == ["success", "resume"]

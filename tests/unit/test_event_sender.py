"""Events are sent once each, whatever goes wrong with one of them."""

import asyncio
import logging
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from activities import events
from activities.events import EventSender
from tests.support.settings import service_settings
from timemachine.domain.errors import UnavailableError
from timemachine.domain.events import RouteDisabled, WaitingEvent
from timemachine.domain.jobs import Job
from timemachine.postgres.event_store import EventStore


def an_event(*, kind: str = "route.disabled", route_id: str | None = "ops") -> WaitingEvent:
    return WaitingEvent(
        id=uuid.uuid4(),
        db="arena",
        kind=kind,
        what=msgspec.json.encode(RouteDisabled(db="arena", route="broken", reason="gone")),
        at=datetime.now(UTC),
        route_id=route_id,
    )


class Waiting(EventStore):
    """Events in memory. What is claimed is given to nobody else."""

    def __init__(self, *waiting: WaitingEvent) -> None:
        self.waiting, self.claimed = list(waiting), list[WaitingEvent]()
        self.is_away = False

    async def claim(self, limit: int, *, lease: timedelta) -> list[WaitingEvent]:
        if self.is_away:
            raise UnavailableError
        given, self.waiting = self.waiting[:limit], self.waiting[limit:]
        self.claimed += given
        return given

    async def discard(self, ids: Sequence[uuid.UUID]) -> None:
        self.claimed = [event for event in self.claimed if event.id not in ids]


class Temporal:
    """Keeps what is started; fails as a test says, by the id of the job."""

    def __init__(self) -> None:
        self.started: dict[str, Job] = {}
        self.errors: dict[str, Exception] = {}
        self.options: list[dict[str, Any]] = []

    async def start_workflow(self, _: str, job: Job, **options: Any) -> SimpleNamespace:
        if error := self.errors.get(job.id):
            raise error
        if options["id"] in self.started:
            raise WorkflowAlreadyStartedError(options["id"], "Job")
        self.started[options["id"]] = job
        self.options.append(options)
        return SimpleNamespace(first_execution_run_id=f"run of {job.id}")


def sending(store: EventStore, temporal: Any) -> EventSender:
    return EventSender(temporal, store, service_settings(task_queue="here"))


async def test_each_event_is_sent_as_a_job_of_its_own_and_then_forgotten() -> None:
    waiting = [an_event() for _ in range(3 * events.AT_A_TIME)]
    store, temporal = Waiting(*waiting), Temporal()

    await sending(store, temporal).look()

    assert set(temporal.started) == {f"arena/timemachine.events/{event.id}" for event in waiting}
    assert (store.waiting, store.claimed) == ([], [])
    assert {option["task_queue"] for option in temporal.options} == {"here"}
    # Also one that has ended is not started once more.
    assert {option["id_reuse_policy"] for option in temporal.options} == {WorkflowIDReusePolicy.REJECT_DUPLICATE}


@pytest.mark.parametrize(
    "error",
    [
        UnavailableError(),
        RPCError("no such namespace", RPCStatusCode.NOT_FOUND, b""),
        RPCError("no such attribute", RPCStatusCode.INVALID_ARGUMENT, b""),
        KeyError("unforeseen"),
    ],
)
async def test_a_temporal_that_takes_nothing_is_not_asked_for_all_and_that_is_one_line(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    later, waiting = an_event(kind="job.cancelled"), [an_event() for _ in range(3 * events.AT_A_TIME)]
    store, temporal = Waiting(later, *waiting), Temporal()
    for event in waiting:
        temporal.errors[str(event.id)] = error

    await sending(store, temporal).look()

    assert len(store.claimed) == events.AT_A_TIME
    assert len(store.waiting) == 2 * events.AT_A_TIME + 1
    (warned,) = (record for record in caplog.records if record.name == events.log.name)
    assert vars(warned)["events"] == events.AT_A_TIME
    assert vars(warned)["reason"] == f"route.disabled {waiting[0].id}: {error}"
    assert (warned.exc_info is not None) is isinstance(error, KeyError)


@pytest.mark.parametrize(
    ("code", "answers"),
    [
        (RPCStatusCode.UNAVAILABLE, False),
        (RPCStatusCode.RESOURCE_EXHAUSTED, False),
        (RPCStatusCode.INVALID_ARGUMENT, True),
    ],
)
async def test_a_look_tells_whether_temporal_answers(code: RPCStatusCode, answers: bool) -> None:
    event, temporal = an_event(), Temporal()
    temporal.errors[str(event.id)] = RPCError("no", code, b"")

    assert await sending(Waiting(event), temporal).look() is answers
    assert await sending(Waiting(), temporal).look()


async def test_a_temporal_that_does_not_answer_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LOOK_EVERY", 0.0)
    waiting, temporal = [an_event() for _ in range(3 * events.AT_A_TIME)], Temporal()
    store = Waiting(*waiting)
    for event in waiting:
        temporal.errors[str(event.id)] = UnavailableError()
    watching = asyncio.create_task(sending(store, temporal).watch())

    for _ in range(1000):
        await asyncio.sleep(0)

    assert len(store.claimed) == events.AT_A_TIME
    watching.cancel()


async def test_the_log_tells_which_job_sends_an_event(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, events.log.name)
    event = an_event()

    await sending(Waiting(event), Temporal()).look()

    (line,) = (vars(record) for record in caplog.records if record.name == events.log.name)
    assert (line["message"], line["event"]) == ("event sent", "route.disabled")
    assert (line["db"], line["collection"], line["job_id"]) == ("arena", "timemachine.events", str(event.id))
    assert line["run_id"] == f"run of {event.id}"


async def test_what_a_worker_started_and_did_not_live_to_forget_is_forgotten() -> None:
    event, temporal = an_event(), Temporal()
    await sending(Waiting(event), temporal).look()
    store = Waiting(event)

    await sending(store, temporal).look()

    assert len(temporal.started) == 1
    assert store.claimed == []


@pytest.mark.parametrize(
    "error",
    [
        RPCError("away", RPCStatusCode.UNAVAILABLE, b""),
        RPCError("busy", RPCStatusCode.RESOURCE_EXHAUSTED, b""),
        RPCError("no such attribute", RPCStatusCode.INVALID_ARGUMENT, b""),
        ValueError("unforeseen"),
    ],
)
async def test_one_that_cannot_be_sent_is_kept_and_keeps_no_other(error: Exception) -> None:
    bad, good, temporal = an_event(), an_event(), Temporal()
    temporal.errors[str(bad.id)] = error
    store = Waiting(bad, good)

    await sending(store, temporal).look()

    assert store.claimed == [bad]
    assert [job.id for job in temporal.started.values()] == [str(good.id)]


async def test_however_many_cannot_be_sent_one_that_can_be_is_sent_in_the_same_look(
    caplog: pytest.LogCaptureFixture,
) -> None:
    later = [an_event(kind="job.cancelled") for _ in range(3 * events.AT_A_TIME)]
    good, temporal = an_event(), Temporal()
    store = Waiting(*later, good)

    await sending(store, temporal).look()

    assert [job.id for job in temporal.started.values()] == [str(good.id)]
    assert store.claimed == later
    (warned,) = (vars(record) for record in caplog.records if record.levelno >= logging.WARNING)
    assert warned["events"] == len(later)
    assert warned["reason"].startswith(f"job.cancelled {later[0].id}: ")


async def test_a_look_ends_and_is_told_of_where_what_cannot_be_sent_comes_back_meanwhile(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Returning(Waiting):
        async def claim(self, limit: int, *, lease: timedelta) -> list[WaitingEvent]:
            await asyncio.sleep(0)
            return self.waiting

    monkeypatch.setattr(events, "LEASE", timedelta(milliseconds=20))

    async with asyncio.timeout(5):
        assert await sending(Returning(an_event(kind="job.cancelled")), Temporal()).look()

    assert [record.getMessage() for record in caplog.records] == ["events not sent"]


async def test_what_was_not_sent_is_told_of_though_postgres_dies_meanwhile(caplog: pytest.LogCaptureFixture) -> None:
    class Dying(Waiting):
        async def discard(self, ids: Sequence[uuid.UUID]) -> None:
            raise UnavailableError("Postgres does not answer")

    with pytest.raises(UnavailableError):
        await sending(Dying(an_event(kind="job.cancelled")), Temporal()).look()

    assert [record.getMessage() for record in caplog.records] == ["events not sent"]


async def test_one_of_a_later_version_is_kept_for_its_workers() -> None:
    later, temporal = an_event(kind="job.cancelled"), Temporal()
    store = Waiting(later)

    await sending(store, temporal).look()

    assert (store.claimed, temporal.started) == ([later], {})


async def test_what_nobody_asks_for_any_more_is_not_sent() -> None:
    store, temporal = Waiting(an_event(route_id=None)), Temporal()

    await sending(store, temporal).look()

    assert (store.claimed, temporal.started) == ([], {})


async def test_a_start_that_temporal_does_not_answer_is_given_up_within_the_lease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Silent(Temporal):
        async def start_workflow(self, _: str, job: Job, **options: Any) -> SimpleNamespace:
            await asyncio.Event().wait()
            raise AssertionError

    assert timedelta(seconds=2 * events.ANSWER_TIME) < events.LEASE
    monkeypatch.setattr(events, "ANSWER_TIME", 0.01)
    event = an_event()
    store = Waiting(event)

    await sending(store, Silent()).look()

    assert store.claimed == [event]


async def test_it_looks_again_after_postgres_was_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LOOK_EVERY", 0.001)
    monkeypatch.setattr(events, "PATIENCE", 0.001)
    store, temporal = Waiting(an_event()), Temporal()
    store.is_away = True
    watching = asyncio.create_task(sending(store, temporal).watch())
    await asyncio.sleep(0.01)
    assert not temporal.started

    store.is_away = False
    async with asyncio.timeout(5):
        while not temporal.started:
            await asyncio.sleep(0.001)
    watching.cancel()

"""The checks of the soaks can fail: each broken promise, told as a story, is seen."""

from typing import Any

import pytest

from tests.soak.cluster import Loss, Silence
from tests.soak.hook import Arrival
from tests.soak.promises import broken, duplicates, late_ms, most_at_once
from tests.soak.story import Call, Story

DUE = 100_000
PORT = 4000
OURS = frozenset({PORT})


def call(method: str, *, sent: int = DUE, status: int | None = 200, **fields: Any) -> Call:
    return Call(method=method, api=0, sent_ms=sent, done_ms=sent + 10, status=status, **fields)


CREATED = call("POST", sent=DUE - 1000, version=0, trigger_time=DUE)
MOVED = call("PUT", sent=DUE - 500, version=1, trigger_time=DUE + 1000)
TOO_LATE = call("DELETE", status=400, code="E006")
CANCELLED = call("DELETE")


def look(state: str, sent: int) -> Call:
    return call("GET", sent=sent, state=state)


def story(state: str | None, *calls: Call) -> Story:
    return Story(db="db", id="1", route="r", calls=[CREATED, *calls], end={"state": state} if state else None)


def arrival(at: int = DUE + 5, *, took: int | None = 10, **fields: Any) -> Arrival:
    known: dict[str, Any] = {
        "version": 0,
        "trigger_time": DUE,
        "status": 200,
        "heard": True,
        "webhook_id": "w",
    } | fields
    answered = None if took is None else at + took
    return Arrival(job="db/c/1", attempt=1, port=PORT, arrived_ms=at, answered_ms=answered, **known)


def lost(began: int, ended: int | None = None, **fields: Any) -> Loss:
    return Loss(worker=0, began_ms=began, ended_ms=ended, **fields)


@pytest.mark.parametrize(
    ("told", "arrivals"),
    [
        (story("delivered"), [arrival()]),
        (story("delivered", TOO_LATE), [arrival()]),
        (story("delivered", MOVED), [arrival(DUE + 1000, version=1, trigger_time=DUE + 1000)]),
        (story("delivered", call("PUT", version=1, trigger_time=DUE + 9, status=400, code="E006")), [arrival()]),
        (story("delivered", call("PUT", version=1, trigger_time=DUE, status=503)), [arrival()]),
        (story("delivered", call("PUT", version=1, trigger_time=DUE, status=503)), [arrival(version=1)]),
        (story("delivered", call("DELETE", status=503, code="E015")), [arrival()]),
        (story("delivered", call("GET", sent=DUE - 999, status=400, code="E004")), [arrival()]),
        (story("cancelled", CANCELLED), []),
        (story("cancelled", CANCELLED), [arrival(status=500)]),
        (story("cancelled", CANCELLED), [arrival(heard=False)]),
        (story("cancelled", call("DELETE", status=503, code="E015")), []),
        (story("cancelled", CANCELLED, TOO_LATE), []),
        (story("delivered", call("TRIGGER", sent=DUE - 500)), [arrival(DUE - 480, trigger_time=DUE - 495)]),
        (
            story("delivered", call("TRIGGER", sent=DUE - 900), MOVED),
            [arrival(DUE + 1000, version=1, trigger_time=DUE + 1000)],
        ),
        (
            story(
                "delivered", call("TRIGGER", sent=DUE - 500), call("DELETE", sent=DUE - 480, status=400, code="E006")
            ),
            [arrival(DUE - 480, trigger_time=DUE - 495)],
        ),
        (story("delivered", look("scheduled", DUE - 9), look("delivered", DUE + 20)), [arrival()]),
        (story("delivered", look("scheduled", DUE + 19), look("delivered", DUE + 20)), [arrival()]),
        (story("failed"), [arrival(status=500)]),
        (story("delivered"), [arrival(status=500), arrival(DUE + 5000)]),
    ],
)
def test_what_is_as_promised(told: Story, arrivals: list[Arrival]) -> None:
    assert broken(told, arrivals) == []


TOLD_LATE = story(
    "delivered",
    call("DELETE", sent=DUE + 10, status=503, code="E015"),
    look("failed", DUE + 30_000),
    look("delivered", DUE + 75_000),
)
FROZEN = lost(DUE + 4, DUE + 70_000, own=OURS)


def test_a_frozen_worker_may_tell_late_that_a_cancelled_job_was_taken() -> None:
    assert broken(TOLD_LATE, [arrival()], [FROZEN]) == []


@pytest.mark.parametrize(
    ("told", "losses"),
    [
        (TOLD_LATE, []),
        (TOLD_LATE, [lost(DUE + 4, DUE + 70_000, others=OURS)]),
        (story("delivered", look("failed", DUE + 30_000), look("delivered", DUE + 75_000)), [FROZEN]),
        (story("failed", *TOLD_LATE.calls[1:], look("failed", DUE + 90_000)), [FROZEN]),
    ],
    ids=["nobody was lost", "another worker was lost", "it was not cancelled", "it has failed again"],
)
def test_nothing_else_changes_an_end(told: Story, losses: list[Loss]) -> None:
    assert [words for words in broken(told, [arrival()], losses) if "was failed, and later" in words]


@pytest.mark.parametrize(
    ("words", "told", "arrivals"),
    [
        ("at its time", story("delivered", call("TRIGGER", sent=DUE - 500)), [arrival()]),
        ("was delivered, and later", story("delivered", look("delivered", DUE), look("due", DUE + 20)), [arrival()]),
        ("last attempt was not refused", story("failed"), []),
        ("last attempt was not refused", story("failed"), [arrival(heard=False)]),
        (
            "last attempt was not refused",
            story("failed"),
            [arrival(status=500), arrival(DUE + 9, took=None, status=None)],
        ),
        (
            "E006 at 99990, before",
            story("delivered", call("DELETE", sent=DUE - 20, status=400, code="E006")),
            [arrival()],
        ),
        (
            "E006 at 100210, before",
            story("delivered", MOVED, call("DELETE", sent=DUE + 200, status=400, code="E006")),
            [arrival(DUE + 1000, version=1, trigger_time=DUE + 1000)],
        ),
        ("early by 1 ms", story("delivered"), [arrival(DUE - 1)]),
        ("with trigger time", story("delivered"), [arrival(trigger_time=DUE - 1)]),
        ("has not ended", story("scheduled"), []),
        ("has not ended", story(None), []),
        ("no receiver took it", story("delivered"), []),
        ("no receiver took it", story("delivered"), [arrival(status=500)]),
        ("the receiver took it", story("failed"), [arrival()]),
        ("nobody was told", story("cancelled"), []),
        ("nobody was told", story("cancelled", call("DELETE", status=429, code="E014")), []),
        ("200, but the receiver took it", story("cancelled", CANCELLED), [arrival()]),
        ("after DELETE was answered", story("cancelled", CANCELLED), [arrival(DUE + 11, status=500)]),
        ("but the job is delivered", story("delivered", CANCELLED), [arrival(heard=False)]),
        ("E006, but the job is cancelled", story("cancelled", TOO_LATE), []),
        ("version 0 was delivered", story("delivered", MOVED), [arrival()]),
        (
            "request was refused",
            story("delivered", call("PUT", version=1, trigger_time=DUE, status=400, code="E006")),
            [arrival(version=1)],
        ),
        ("was answered 500", story("delivered", call("GET", status=500, code="E016")), [arrival()]),
        ("was answered nothing", story("delivered", call("GET", status=None)), [arrival()]),
        ("was answered 400 E004", story("delivered", call("GET", status=400, code="E004")), [arrival()]),
        ("was answered 400 E004", story("delivered", call("DELETE", status=400, code="E004")), [arrival()]),
        ("was answered 400 E006", story("delivered", call("GET", status=400, code="E006")), [arrival()]),
        ("delivered again", story("delivered"), [arrival(), arrival(DUE + 50)]),
        ("delivered again", story("delivered"), [arrival(heard=False), arrival(DUE + 50)]),
        ("differ in webhook-id", story("delivered"), [arrival(status=500), arrival(DUE + 50, webhook_id="x")]),
        ("late by 60.0 s", story("delivered"), [arrival(DUE + 60_000)]),
    ],
)
def test_what_is_not(words: str, told: Story, arrivals: list[Arrival]) -> None:
    found = broken(told, arrivals, late_limit=40)

    assert [one for one in found if words in one], found


def test_a_job_that_was_never_confirmed_may_be_missing() -> None:
    unknown = Story(
        db="db",
        id="1",
        route="r",
        calls=[call("POST", status=503, version=0), call("GET", status=400, code="E004")],
        end={"error": "There is no such job.", "code": "E004"},
    )

    assert broken(unknown, []) == []


@pytest.mark.parametrize("end", [None, {"state": "due"}, {"error": "not now", "code": "E015"}])
def test_a_job_that_was_never_confirmed_is_missing_or_ends(end: dict[str, Any] | None) -> None:
    unknown = Story(db="db", id="1", route="r", calls=[call("POST", status=503, version=0)], end=end)

    assert [words for words in broken(unknown, []) if "has not ended" in words]


def test_a_cancel_may_end_a_job_whose_attempt_was_lost_as_failed() -> None:
    told = story("failed", TOO_LATE)

    assert broken(told, [arrival()], [lost(DUE + 8, DUE + 3000, own=OURS)]) == []


@pytest.mark.parametrize(
    ("is_stop", "sent", "excused"),
    [(False, DUE - 5000, True), (True, DUE - 5000, False), (True, DUE - 50, True), (True, DUE + 900, True)],
)
def test_a_stopped_api_answers_what_it_was_asked_before(*, is_stop: bool, sent: int, excused: bool) -> None:
    silence = Silence(api=0, began_ms=DUE, ended_ms=DUE + 1000, is_stop=is_stop)

    assert silence.excuses(Call(method="GET", api=0, sent_ms=sent, done_ms=DUE + 950)) == excused


@pytest.mark.parametrize(
    ("api", "sent", "done"), [(1, DUE, DUE + 9), (0, DUE - 9, DUE - 1), (0, DUE + 1001, DUE + 1002)]
)
def test_the_silence_of_an_api_excuses_no_others(api: int, sent: int, done: int) -> None:
    silence = Silence(api=0, began_ms=DUE, ended_ms=DUE + 1000)

    assert not silence.excuses(Call(method="GET", api=api, sent_ms=sent, done_ms=done))


def test_requests_at_a_time_are_counted() -> None:
    found = [[arrival(DUE), arrival(DUE + 10)], [arrival(DUE + 5), arrival(DUE + 7)], [arrival(DUE + 6, took=None)]]

    assert most_at_once(found) == 3


@pytest.mark.parametrize(
    ("loss", "excused"),
    [
        (lost(DUE + 8, DUE + 3000, own=OURS), True),  # in flight
        (lost(DUE - 5, None, own=OURS), True),  # killed before what it had sent was read
        (lost(DUE + 15 + 500, DUE + 3000), True),  # answered, perhaps not written down; its connection was closed
        (lost(DUE + 15 + 500, DUE + 3000, own=OURS), True),  # the same on one that stays open
        (lost(DUE + 15 + 501, DUE + 3000, own=OURS), False),
        (lost(DUE - 3000, DUE + 4, own=OURS), False),
        (lost(DUE + 8, DUE + 3000), False),  # in flight, from another that had connected since
        (lost(DUE - 5, DUE + 3000), False),  # made by another while this one was away
        (lost(DUE + 15 + 500, DUE + 3000, others=OURS), False),  # another worker's request
    ],
)
def test_a_duplicate_is_excused_by_the_loss_of_who_made_the_first(loss: Loss, *, excused: bool) -> None:
    both = [arrival(), arrival(DUE + 60_000)]

    assert tuple(map(len, duplicates(both, [loss]))) == ((1, 0) if excused else (0, 1))


def test_lateness_is_of_the_first_request() -> None:
    assert late_ms([arrival(DUE + 70), arrival(DUE + 5000)]) == 70
    assert late_ms([]) == 0

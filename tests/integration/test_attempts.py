"""The log of attempts, as it is written and as clients ask for it."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Self

import httpx
import pytest
from msgspec.structs import replace

from activities import attempt_report
from tests.support.ledger import log_attempt
from tests.support.receiver import Received, Receiver, response
from tests.support.refusals import FORBIDDEN_NAME, MALFORMED, NO_SUCH_JOB, NO_SUCH_ROUTE
from tests.support.service import ROUTE, Service, new_id, now_ms, refused
from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.jobs import to_ms
from timemachine.postgres.attempt_log import Attempt, AttemptLog
from timemachine.postgres.pool import open_pool
from timemachine.settings import Settings


class Log(AttemptLog):
    """The log, with the writing that is a part of the ledger's."""

    async def record(self, attempt: Attempt) -> None:
        await log_attempt(self._pool, attempt)


@pytest.fixture
async def log(settings: Settings) -> AsyncIterator[Log]:
    async with open_pool(settings) as pool:
        yield Log(pool)


def an_attempt(db: str, **fields: Any) -> Attempt:
    attempt = Attempt(
        db=db,
        collection="c",
        job_id="j",
        route_id=ROUTE,
        run_id=new_id(),
        message_id="msg_1",
        attempt=1,
        started_at=datetime.now(UTC),
        duration_ms=12,
        status=200,
        kind=AttemptKind.TAKEN,
        error=None,
        worker="w",
    )
    return replace(attempt, **fields)


def refusal(db: str, **fields: Any) -> Attempt:
    return an_attempt(db, kind=AttemptKind.REFUSED, status=500, error="500 from the receiver", **fields)


async def pages(api: httpx.AsyncClient, path: str, **query: Any) -> list[list[Any]]:
    """Follow a list to its end."""
    found = []
    while True:
        answer = await api.get(path, params=query)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        found.append(body["attempts"])
        if "next" not in body:
            return found
        query["cursor"] = body["next"]


async def test_each_request_that_was_made_is_shown_the_latest_first(service: Service, receiver: Receiver) -> None:
    async def second_time(received: Received) -> bytes:
        return response(200, b"thanks") if len(receiver.of(received.job_id)) == 2 else response(500, b"not \xff now")

    receiver.answer = second_time
    before = now_ms()
    job_id = await service.create(0, retry={"waits": [0.1]})
    await service.wait_for_state(job_id, "delivered")

    of_job = (await service.api.get(f"{service.jobs}/{job_id}/attempts")).json()
    of_route = (await service.api.get(f"/route/{service.db}/{ROUTE}/attempts")).json()

    assert of_job == of_route
    second, first = of_job["attempts"]
    assert first.pop("worker")
    assert before <= first.pop("started_at") <= second["started_at"] <= now_ms()
    assert 0 <= first.pop("duration_ms") < 5000
    assert first == {
        "collection": "c",
        "id": job_id,
        "route": ROUTE,
        "webhook_id": receiver.of(job_id)[0].headers["webhook-id"],
        "attempt": 1,
        "status": 500,
        "kind": "refused",
        "error": "500 from the receiver: not \ufffd now",
        "answer": "not \ufffd now",
    }
    assert (second["attempt"], second["status"], second["kind"], second["answer"]) == (2, 200, "taken", "thanks")
    assert "error" not in second


@pytest.mark.parametrize("days", [-40, 40])
async def test_a_clock_that_is_set_within_an_attempt_keeps_no_job_from_its_end(
    service: Service, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    class Set(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return super().now(tz) + timedelta(days=days)

    async def take_and_set(_: Received) -> bytes:
        monkeypatch.setattr(attempt_report, "datetime", Set)
        return response(200)

    receiver.answer = take_and_set
    job_id = await service.create(0)

    await service.wait_for_state(job_id, "delivered")
    (shown,) = (await service.api.get(f"{service.jobs}/{job_id}/attempts")).json()["attempts"]
    assert 0 <= shown["duration_ms"] < 20_000


async def test_an_attempt_without_an_answer_says_why(service: Service) -> None:
    await service.add_route("http://127.0.0.1:1/", "closed")
    job_id = await service.create(0, route="closed", retry={"maximum_attempts": 1})
    await service.wait_for_state(job_id, "failed")

    (attempt,) = (await service.api.get(f"{service.jobs}/{job_id}/attempts")).json()["attempts"]

    assert attempt["kind"] == "connect"
    assert attempt["error"]
    assert "status" not in attempt
    assert attempt["answer"] == ""


async def test_pages_hold_each_attempt_once_while_others_come_in(api: httpx.AsyncClient, log: Log, db: str) -> None:
    for n in range(5):
        await log.record(an_attempt(db, attempt=n + 1))

    for path in (f"/job/{db}/c/j/attempts", f"/route/{db}/{ROUTE}/attempts"):
        first = (await api.get(path, params={"limit": 2})).json()
        await log.record(an_attempt(db, attempt=99))
        rest = await pages(api, path, limit=2, cursor=first["next"])

        shown = [attempt["attempt"] for page in [first["attempts"], *rest] for attempt in page]
        assert [number for number in shown if number != 99] == [5, 4, 3, 2, 1]


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
async def test_no_page_is_empty_and_equal_times_are_told_apart(
    api: httpx.AsyncClient, log: Log, db: str, limit: int
) -> None:
    at = datetime.now(UTC)
    for n in range(4):
        await log.record((an_attempt if n % 2 else refusal)(db, attempt=n, started_at=at))

    found = await pages(api, f"/route/{db}/{ROUTE}/attempts", limit=limit)

    assert [attempt["attempt"] for page in found for attempt in page] == [3, 2, 1, 0]
    assert all(len(page) == limit for page in found[:-1])
    assert found[-1]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, [4, 3, 2, 1, 0]),
        ({"kind": "taken"}, [4, 2, 0]),
        ({"kind": "failed"}, [3, 1]),
        ({"since": 2}, [4, 3, 2]),
        ({"until": 2}, [1, 0]),
        ({"since": 1, "until": 4}, [3, 2, 1]),
        ({"since": 1, "until": 4, "kind": "failed"}, [3, 1]),
    ],
    ids=str,
)
@pytest.mark.parametrize("limit", [1, 50])
async def test_attempts_of_a_route_are_filtered(
    api: httpx.AsyncClient, log: Log, db: str, query: dict[str, Any], expected: list[int], limit: int
) -> None:
    """Attempt 0 and every other one was taken; the bounds of the window count the seconds from then on."""
    start = datetime.fromtimestamp(int(datetime.now(UTC).timestamp()) - 60, UTC)
    for n in range(5):
        make = refusal if n % 2 else an_attempt
        await log.record(make(db, attempt=n, started_at=start + timedelta(seconds=n)))
    await log.record(an_attempt(db, attempt=77, route_id="other"))
    await log.record(an_attempt(f"{db}x", attempt=78))
    window = {name: to_ms(start) + query[name] * 1000 for name in ("since", "until") if name in query}

    found = await pages(api, f"/route/{db}/{ROUTE}/attempts", **query | window, limit=limit)

    assert [attempt["attempt"] for page in found for attempt in page] == expected


async def test_jobs_do_not_see_the_attempts_of_others(api: httpx.AsyncClient, log: Log, db: str) -> None:
    await log.record(an_attempt(db))
    for other in ({"collection": "d"}, {"job_id": "k"}, {"db": f"{db}x"}):
        await log.record(replace(an_attempt(db, attempt=99), **other))

    ((attempt,),) = await pages(api, f"/job/{db}/c/j/attempts")

    assert attempt["attempt"] == 1


async def test_what_is_unknown_is_told_from_what_has_no_attempts(service: Service) -> None:
    waiting = await service.create(3600)

    for path in (f"{service.jobs}/{waiting}/attempts", f"/route/{service.db}/{ROUTE}/attempts"):
        assert (await service.api.get(path)).json() == {"attempts": []}
    assert refused(await service.api.get(f"{service.jobs}/{new_id()}/attempts")) == NO_SUCH_JOB
    assert refused(await service.api.get(f"/route/{service.db}/nowhere/attempts")) == NO_SUCH_ROUTE


async def test_attempts_outlive_their_job_and_their_route(api: httpx.AsyncClient, log: Log, db: str) -> None:
    await log.record(an_attempt(db))

    for path in (f"/job/{db}/c/j/attempts", f"/route/{db}/{ROUTE}/attempts"):
        assert len((await api.get(path)).json()["attempts"]) == 1


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0},
        {"limit": 201},
        {"limit": "many"},
        {"cursor": "nonsense"},
        {"cursor": ""},
        {"cursor": "x" * 5000},
        {"cursor": "k88AB_____________8B"},
        {"kind": "refused"},
        {"since": -1},
        {"since": "yesterday"},
        {"until": 10**18},
    ],
    ids=str,
)
async def test_a_malformed_question_is_refused(api: httpx.AsyncClient, db: str, query: dict[str, Any]) -> None:
    assert refused(await api.get(f"/route/{db}/{ROUTE}/attempts", params=query)) == MALFORMED
    if not query.keys() & {"kind", "since", "until"}:
        assert refused(await api.get(f"/job/{db}/c/j/attempts", params=query)) == MALFORMED


async def test_names_that_are_not_allowed_are_refused(api: httpx.AsyncClient, db: str) -> None:
    assert refused(await api.get(f"/job/{db}/c/a b/attempts")) == FORBIDDEN_NAME
    assert refused(await api.get(f"/route/{db}/a'b/attempts")) == FORBIDDEN_NAME


async def test_the_log_takes_whatever_a_receiver_may_send(log: Log, db: str) -> None:
    answer = bytes(range(256)) * 8
    await log.record(replace(refusal(db), answer=answer, error="a\0b\ud800" * 999))

    ((kept,),) = [(await log.of_job(db, "c", "j", limit=1)).attempts]

    assert kept.answer == answer[:1024]
    assert kept.error
    assert kept.error.startswith("a\ufffdb?a")
    assert len(kept.error) == 1000


async def test_the_log_takes_an_attempt_in_which_the_machine_slept_for_weeks(log: Log, db: str) -> None:
    await log.record(an_attempt(db, duration_ms=2**40))

    assert (await log.of_job(db, "c", "j", limit=1)).attempts[0].duration_ms == 2**31 - 1


async def test_the_success_of_a_run_is_found_and_only_that(log: Log, db: str) -> None:
    failure = refusal(db)
    success = an_attempt(db, run_id=failure.run_id, attempt=2, started_at=datetime.now(UTC))
    await log.record(failure)
    assert await log.taken(failure.run_id) is None

    await log.record(success)

    assert await log.taken(failure.run_id) == success
    assert await log.taken(new_id()) is None


async def test_the_last_error_of_each_run(log: Log, db: str) -> None:
    run, other = new_id(), new_id()
    await log.record(replace(refusal(db, run_id=run), error="first"))
    await log.record(replace(refusal(db, run_id=run), error="second"))
    await log.record(replace(refusal(db, run_id=other), error="of another run"))

    assert await log.last_errors(db, [("c", "j", run), ("c", "j", new_id())]) == {run: "second"}
    assert await log.last_errors(db, []) == {}


async def test_attempts_are_removed_by_age_and_in_batches(log: Log, db: str) -> None:
    year = timedelta(days=365)
    long_ago = datetime.now(UTC) - 40 * year  # older than what any other test writes
    for n in range(5):
        await log.record(an_attempt(db, attempt=n, started_at=long_ago + timedelta(seconds=n)))

    assert await log.remove_before(long_ago + timedelta(seconds=4), 3) == 3
    assert await log.remove_before(long_ago + timedelta(seconds=4), 3) == 1
    assert await log.remove_before(long_ago + timedelta(seconds=4), 3) == 0
    assert [attempt.attempt for attempt in (await log.of_job(db, "c", "j", limit=9)).attempts] == [4]

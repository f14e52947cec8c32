"""Events as a client sees them: asked for, sent once, signed, about everything but themselves."""

import asyncio
from typing import Any

import httpx
import pytest
from temporalio.client import Client

from activities.events import EventSender
from tests.integration.test_cancel import MAY_BE_TAKEN
from tests.support.events import (
    ALL,
    OPS,
    ask_for_events,
    event_jobs,
    event_requests,
    events_of,
    set_events,
    wait_for_events,
)
from tests.support.failed_jobs import ONCE, fail
from tests.support.holds import resume
from tests.support.ledger import AnotherWorker, first_run
from tests.support.receiver import Received, Receiver, response
from tests.support.refusals import FORBIDDEN_NAME, MALFORMED, NO_SUCH_ROUTE, ROUTE_IN_USE
from tests.support.service import ROUTE, Service, a_job, is_signed, refused
from tests.support.waiting import eventually
from timemachine.domain.errors import UnavailableError
from timemachine.domain.stored_names import EVENTS_COLLECTION
from timemachine.postgres.delivery_ledger import DeliveryLedger
from timemachine.postgres.event_store import EventStore
from timemachine.postgres.pool import open_pool
from timemachine.settings import Settings

QUICK = {"waits": [0.1]}


class Answers:
    """What the receiver answers to jobs; events are taken, unless a test says otherwise, and the last job always is."""

    def __init__(self, receiver: Receiver) -> None:
        self.status, self.body, self.of_events = 200, b"out of order", 200
        receiver.answer = self._answer

    async def _answer(self, received: Received) -> bytes:
        if received.path.endswith(f"/{OPS}"):
            return response(self.of_events)
        if received.path.endswith("/last"):
            return response(200)
        return response(self.status, self.body)


@pytest.fixture
def answers(receiver: Receiver) -> Answers:
    return Answers(receiver)


async def until_nothing_more_is_sent(service: Service, receiver: Receiver, *, least: int = 0) -> list[Any]:
    """Return the events once one has come that was caused after all others, and as many as must come. They overtake."""
    await service.add_route(f"{receiver.url}/last", "last")
    await set_events(service)
    await service.create(0, route="last", job_id="last")
    await receiver.wait_until(
        lambda: (
            any(event["data"].get("id") == "last" for event in events_of(receiver)) and len(events_of(receiver)) > least
        )
    )
    return [event for event in events_of(receiver) if event["data"].get("id") != "last"]


async def test_a_failed_job_is_told_once_and_signed(service: Service, receiver: Receiver, answers: Answers) -> None:
    await ask_for_events(service, receiver, "job.failed")
    answers.status = 500
    job_id = await fail(service, meta={"card": "4111"})
    job = await service.find(job_id)

    (event,) = await wait_for_events(receiver, 1)

    assert event["type"] == "job.failed"
    assert event["data"] == {
        "db": service.db,
        "collection": "c",
        "id": job_id,
        "trigger_time": job["trigger_time"],
        "route": ROUTE,
        "attempts": 1,
        "status": 500,
        "kind": "refused",
        "last_error": "500 from the receiver",
    }
    (request,) = event_requests(receiver)
    assert is_signed(request, (await service.secret(OPS))["secret"])
    assert request.headers["timemachine-collection"] == EVENTS_COLLECTION
    assert await until_nothing_more_is_sent(service, receiver) == [event]


async def test_a_delivered_job_is_told_once(service: Service, receiver: Receiver, answers: Answers) -> None:
    await ask_for_events(service, receiver, "job.delivered")
    job_id = await service.create(0)
    job = await service.wait_for_state(job_id, "delivered")

    (event,) = await wait_for_events(receiver, 1)

    assert event["type"] == "job.delivered"
    assert event["data"]["id"] == job_id
    assert (event["data"]["status"], event["data"]["attempts"]) == (200, 1)
    assert event["data"]["delivered_at"] == job["delivered_at"]


async def test_a_receiver_that_is_gone_ends_the_job_and_disables_the_route_each_told_once(
    service: Service, receiver: Receiver, answers: Answers
) -> None:
    await ask_for_events(service, receiver)
    answers.status = 410
    job_id = await fail(service, retry=None)

    events = await until_nothing_more_is_sent(service, receiver, least=2)

    assert sorted(event["type"] for event in events) == ["job.failed", "route.disabled"]
    (disabled,) = [event["data"] for event in events if event["type"] == "route.disabled"]
    assert disabled == {"db": service.db, "route": ROUTE, "reason": "the receiver answered 410 Gone"}
    assert [event["data"]["id"] for event in events if event["type"] == "job.failed"] == [job_id]


async def test_a_route_that_is_resumed_recovers_once(service: Service, receiver: Receiver, answers: Answers) -> None:
    await ask_for_events(service, receiver, "route.disabled", "route.recovered")
    answers.status = 410
    await fail(service)
    await wait_for_events(receiver, 1)
    answers.status = 200
    await resume(service)
    await resume(service)
    await service.wait_for_state(await service.create(0), "delivered")

    events = await until_nothing_more_is_sent(service, receiver, least=2)

    assert [event["type"] for event in events] == ["route.disabled", "route.recovered"]
    assert events[1]["data"]["by"] == "resume"


async def test_a_route_recovers_with_the_first_success(service: Service, receiver: Receiver, answers: Answers) -> None:
    await ask_for_events(service, receiver, "route.recovered")
    answers.status = 500
    await fail(service)
    await fail(service)
    answers.status = 200
    for _ in range(3):
        await service.wait_for_state(await service.create(0), "delivered")

    (event,) = await until_nothing_more_is_sent(service, receiver, least=1)

    assert (event["type"], event["data"]["by"], event["data"]["route"]) == ("route.recovered", "success", ROUTE)
    assert event["data"]["since"] > 0


async def test_a_job_that_was_cancelled_in_doubt_is_told_to_have_failed(
    service: Service, receiver: Receiver, client: Client, another: AnotherWorker, answers: Answers
) -> None:
    """Decided by the API, and sent by a worker."""
    await ask_for_events(service, receiver, "job.failed")
    job_id = await service.create(3600)
    run = await first_run(client, service, job_id)
    await another.begin(service.db, run)
    await another.die(run)
    await service.cancel(job_id)

    (event,) = await wait_for_events(receiver, 1)

    trigger_time = (await service.find(job_id))["trigger_time"]
    assert event["data"]["kind"] == "lost"
    assert MAY_BE_TAKEN in event["data"]["last_error"]
    assert (event["data"]["id"], event["data"]["route"], event["data"]["trigger_time"]) == (job_id, ROUTE, trigger_time)


async def test_a_redelivery_that_fails_again_is_another_event(
    service: Service, receiver: Receiver, answers: Answers
) -> None:
    await ask_for_events(service, receiver, "job.failed")
    answers.status = 500
    job_id = await fail(service)
    await wait_for_events(receiver, 1)

    assert (await service.api.post(f"{service.jobs}/{job_id}/redeliver")).json() == {"status": "ok"}

    first, second = await wait_for_events(receiver, 2)
    assert first["data"] == second["data"]


async def test_a_failing_events_route_makes_no_events_about_itself(
    service: Service, receiver: Receiver, answers: Answers
) -> None:
    await ask_for_events(service, receiver, retry=QUICK)
    answers.status, answers.of_events = 500, 500
    job_id = await fail(service)
    own = await service.create(0, route=OPS, retry=ONCE)
    await service.wait_for_state(own, "failed")

    jobs = await eventually(lambda: event_jobs(service), lambda jobs: [job["state"] for job in jobs] == ["failed"])

    answers.of_events = 200
    assert [event["data"]["id"] for event in await until_nothing_more_is_sent(service, receiver, least=1)] == [job_id]
    assert len(jobs) == 1


async def test_an_events_route_that_is_gone_is_disabled_without_an_event(
    service: Service, receiver: Receiver, answers: Answers
) -> None:
    await ask_for_events(service, receiver)
    answers.status, answers.of_events = 500, 410
    await fail(service)
    path = f"/route/{service.db}/{OPS}"
    await eventually(lambda: service.api.get(path), lambda answer: answer.json()["state"] == "disabled")
    answers.of_events = 200
    assert (await service.api.post(f"{path}/resume", json={"spread": 0})).json() == {"status": "ok"}

    events = await until_nothing_more_is_sent(service, receiver, least=1)

    assert {event["type"] for event in events} == {"job.failed"}


async def test_the_jobs_of_a_former_events_route_make_no_events(
    service: Service, receiver: Receiver, answers: Answers
) -> None:
    """Its events fail after events go elsewhere."""
    await ask_for_events(service, receiver, "job.failed", retry={"waits": [2]})
    answers.status, answers.of_events = 500, 500
    job_id = await fail(service)
    await receiver.wait_until(lambda: len(event_requests(receiver)) > 0)
    await service.add_route(receiver.url, "elsewhere")
    await set_events(service, route="elsewhere")
    (job,) = await eventually(lambda: event_jobs(service), lambda jobs: [job["state"] for job in jobs] == ["failed"])
    assert job["route"] == OPS
    answers.status = answers.of_events = 200

    events = await until_nothing_more_is_sent(service, receiver, least=1)

    assert {event["data"]["id"] for event in events} == {job_id}


async def test_nothing_secret_and_no_payload_is_told(service: Service, receiver: Receiver, answers: Answers) -> None:
    await ask_for_events(service, receiver)
    await service.add_route(receiver.url, "secretive", headers={"x-token": "very-secret"})
    secret = (await service.secret("secretive"))["secret"]
    answers.status, answers.body = 500, b"very-secret, of 4111"
    await fail(service, route="secretive", meta={"card": "4111"}, labels=["order=1234"])
    await fail(service, meta={"card": "4111"})  # GET shows the text of this answer, as there are no extra headers
    answers.status = 410
    await fail(service, route="secretive", meta={"card": "4111"})

    events = await until_nothing_more_is_sent(service, receiver, least=4)

    assert sorted(event["type"] for event in events) == [*["job.failed"] * 3, "route.disabled"]
    text = b"".join(request.body for request in event_requests(receiver)).decode()
    for hidden in ("4111", "very-secret", "x-token", secret, secret.removeprefix("whsec_"), "order=1234"):
        assert hidden not in text


async def test_a_db_that_asks_for_nothing_more_is_sent_nothing_more(
    service: Service, receiver: Receiver, answers: Answers
) -> None:
    await ask_for_events(service, receiver)
    await service.wait_for_state(await service.create(0), "delivered")
    await wait_for_events(receiver, 1)

    assert (await service.api.delete(f"/events/{service.db}")).json() == {"status": "ok"}
    await service.wait_for_state(await service.create(0), "delivered")

    assert len(await until_nothing_more_is_sent(service, receiver, least=1)) == 1


async def test_many_senders_at_once_send_each_event_once(
    service: Service, receiver: Receiver, client: Client, settings: Settings, answers: Answers
) -> None:
    await ask_for_events(service, receiver)
    async with open_pool(settings) as pool:
        senders = [EventSender(client, EventStore(pool), settings) for _ in range(4)]
        ids = await asyncio.gather(*(service.create(0) for _ in range(30)))
        while len(events_of(receiver)) < len(ids):
            await asyncio.gather(*(sender.look() for sender in senders))

    events = await until_nothing_more_is_sent(service, receiver, least=30)
    assert sorted(event["data"]["id"] for event in events) == sorted(ids)


async def test_a_sender_that_dies_before_it_forgets_sends_nothing_twice(
    service: Service, receiver: Receiver, client: Client, settings: Settings, answers: Answers
) -> None:
    """The job of the event is started, has even ended; then another worker finds the event once more."""

    class Mortal(EventStore):
        async def discard(self, *_: object) -> None:
            raise UnavailableError

    await ask_for_events(service, receiver)
    async with open_pool(settings) as pool:
        # Claimed by this one as soon as it is there; the worker beside it may be faster.
        sender = EventSender(client, Mortal(pool), settings)
        is_dead, job_id = False, ""
        while not is_dead:
            job_id = await service.create(0)
            await service.wait_for_state(job_id, "delivered")
            try:
                await sender.look()
            except UnavailableError:
                is_dead = True
        await wait_for_events(receiver, 1)
        await pool.execute("UPDATE events SET send_at = clock_timestamp() WHERE db = $1", service.db)
        await eventually(
            lambda: pool.fetchval("SELECT count(*) FROM events WHERE db = $1", service.db), lambda left: left == 0
        )

    told = [event["data"]["id"] for event in await until_nothing_more_is_sent(service, receiver, least=1)]
    assert len(told) == len(set(told))
    assert job_id in told


async def test_the_jobs_that_send_events_are_jobs_like_others(
    service: Service, receiver: Receiver, answers: Answers
) -> None:
    await ask_for_events(service, receiver, "job.delivered", retry={"maximum_attempts": 1})
    answers.of_events = 500
    await service.create(0)
    (job,) = await eventually(lambda: event_jobs(service), lambda jobs: [job["state"] for job in jobs] == ["failed"])
    path = f"/job/{service.db}/{EVENTS_COLLECTION}/{job['id']}"

    found = (await service.api.get(path)).json()
    assert (found["route"], found["state"], found["meta"]["type"]) == (OPS, "failed", "job.delivered")
    assert len((await service.api.get(f"{path}/attempts")).json()["attempts"]) == 1
    failed = (await service.api.get(f"/failed/{service.db}", params={"route": OPS})).json()["failed"]
    assert [one["id"] for one in failed] == [job["id"]]

    answers.of_events = 200
    assert (await service.api.post(f"{path}/redeliver")).json() == {"status": "ok"}
    await receiver.wait_until(lambda: len(event_requests(receiver)) == 2)
    first, second = event_requests(receiver)
    assert first.headers["webhook-id"] == second.headers["webhook-id"]


async def test_clients_create_and_change_no_jobs_among_those_of_events(service: Service) -> None:
    path, job = f"/job/{service.db}/{EVENTS_COLLECTION}", a_job(3600)
    batch = await service.api.post(f"/batch/{service.db}/{EVENTS_COLLECTION}", json=[job])

    assert refused(await service.api.post(path, json=job)) == FORBIDDEN_NAME
    assert refused(await service.api.put(f"{path}/{job['id']}", json=job)) == FORBIDDEN_NAME
    assert refused(await service.api.put(f"{path}/{job['id']}", params={"create": "true"}, json=job)) == FORBIDDEN_NAME
    assert refused(batch) == FORBIDDEN_NAME


async def test_what_is_asked_for_is_shown_and_may_be_replaced(service: Service) -> None:
    path = f"/events/{service.db}"
    assert (await service.api.get(path)).json() == {"route": None, "on": []}

    for kinds in (ALL, ["route.disabled"], ["job.failed", "route.disabled"]):
        for _ in range(2):
            answer = await service.api.put(path, json={"route": ROUTE, "on": kinds})
            assert answer.json() == {"status": "ok"}
        shown = (await service.api.get(path)).json()
        assert shown["route"] == ROUTE
        assert set(shown["on"]) == set(kinds)

    for _ in range(2):
        assert (await service.api.delete(path)).json() == {"status": "ok"}
    assert (await service.api.get(path)).json() == {"route": None, "on": []}


async def test_who_asks_for_events_is_in_the_audit_log(service: Service) -> None:
    path = f"/events/{service.db}"
    await service.api.put(path, json={"route": ROUTE, "on": ["job.failed"]})
    await service.api.delete(path)
    await service.api.delete(path)

    entries = (await service.api.get(f"/audit/{service.db}?limit=2")).json()["entries"]

    assert [(entry["action"], entry["target"]) for entry in entries] == [
        ("events.delete", ROUTE),
        ("events.change", ROUTE),
    ]


@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        ({"route": "nowhere", "on": ["job.failed"]}, NO_SUCH_ROUTE),
        ({"route": "no/name", "on": ["job.failed"]}, FORBIDDEN_NAME),
        ({"route": ROUTE, "on": []}, MALFORMED),
        ({"route": ROUTE, "on": ["job.failed", "job.failed"]}, MALFORMED),
        ({"route": ROUTE, "on": ["job.cancelled"]}, MALFORMED),
        ({"route": ROUTE, "on": "job.failed"}, MALFORMED),
        ({"route": ROUTE}, MALFORMED),
        ({"on": ["job.failed"]}, MALFORMED),
        ({"route": ROUTE, "on": ["job.failed"], "more": 1}, MALFORMED),
        ({"route": None, "on": ["job.failed"]}, MALFORMED),
    ],
)
async def test_what_cannot_be_asked_for_is_refused(service: Service, body: Any, refusal: tuple[int, str]) -> None:
    answer = await service.api.put(f"/events/{service.db}", json=body)

    assert refused(answer) == refusal
    assert (await service.api.get(f"/events/{service.db}")).json()["on"] == []


async def test_a_kind_that_there_is_none_of_is_told_which_there_are(service: Service) -> None:
    answer = await service.api.put(f"/events/{service.db}", json={"route": ROUTE, "on": ["job.cancelled"]})

    assert answer.json()["error"] == f"on: it must be a list of one or more of {', '.join(f'`{kind}`' for kind in ALL)}"


@pytest.mark.parametrize("db", ["..%2Fx", "a b", "x" * 65])
async def test_a_db_that_is_none_is_refused(api: httpx.AsyncClient, db: str) -> None:
    path = f"/events/{db}"

    assert refused(await api.get(path)) == FORBIDDEN_NAME
    assert refused(await api.delete(path)) == FORBIDDEN_NAME
    assert refused(await api.put(path, json={"route": ROUTE, "on": ["job.failed"]})) == FORBIDDEN_NAME


async def test_a_route_that_events_go_to_is_deleted_by_force_only(service: Service, receiver: Receiver) -> None:
    await ask_for_events(service, receiver)
    path = f"/route/{service.db}/{OPS}"

    answer = await service.api.delete(path)

    assert refused(answer) == ROUTE_IN_USE
    assert answer.json()["error"].startswith("events go to this route")
    assert (await service.api.delete(path, params={"force": "true"})).json() == {"status": "ok"}
    assert (await service.api.get(f"/events/{service.db}")).json() == {"route": None, "on": []}


async def test_an_end_that_postgres_refuses_for_its_words_is_told_without_them(
    service: Service, receiver: Receiver, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, refusals = DeliveryLedger._write_end, [ValueError("no equivalent in this encoding")]

    async def write_end(ledger: DeliveryLedger, *given: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return await write(ledger, *given)

    await ask_for_events(service, receiver, "job.failed")
    answers.status = 500
    monkeypatch.setattr(DeliveryLedger, "_write_end", write_end)
    job_id = await fail(service)

    (event,) = await wait_for_events(receiver, 1)

    assert (event["data"]["id"], event["data"]["last_error"]) == (job_id, "500 from the receiver")


async def test_an_event_of_a_later_version_keeps_no_other(
    service: Service, receiver: Receiver, settings: Settings, answers: Answers
) -> None:
    await ask_for_events(service, receiver)
    async with open_pool(settings) as pool:
        await pool.execute("INSERT INTO events (db, kind, what) VALUES ($1, 'job.cancelled', '{}')", service.db)

        job_id = await service.create(0)

        (event,) = await wait_for_events(receiver, 1)
        assert event["data"]["id"] == job_id
        left = "SELECT count(*) FROM events WHERE db = $1"
        await eventually(lambda: pool.fetchval(left, service.db), lambda count: count == 1)
        await pool.execute("DELETE FROM events WHERE db = $1", service.db)

"""A job's life through the API, on real servers."""

import asyncio
from itertools import pairwise
from typing import Any

import httpx
import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from api.job_status import JobStatus, read_job_status
from tests.support.job_histories import wait_for_event, wait_for_status
from tests.support.receiver import Received, Receiver, response, take
from tests.support.refusals import BAD_TIME, JOB_EXISTS, MALFORMED, NO_SUCH_JOB, NO_SUCH_ROUTE, TOO_LATE
from tests.support.service import ROUTE, Service, a_job, new_id, now_ms, refused, repeated
from tests.support.waiting import eventually
from timemachine.postgres.delivery_ledger import DeliveryLedger
from timemachine.temporal.client import temporal_timeout
from timemachine.temporal.fail_fast import FailFastServiceClient

META = b'{"n": 12345678901234567890.10, "b":1,"a":"\\u00e9"}'


def job_body(job_id: str, trigger_time: int, meta: bytes, route: str = ROUTE) -> bytes:
    head = f'{{"id":"{job_id}","trigger_time":{trigger_time},"route":"{route}","meta":'
    return head.encode() + meta + b"}"


async def test_a_job_arrives_with_its_meta_unchanged_and_not_early(service: Service, receiver: Receiver) -> None:
    job_id, trigger_time = new_id(), now_ms(1)

    answer = await service.api.post(service.jobs, content=job_body(job_id, trigger_time, META))

    assert answer.json() == {"status": "ok"}
    (received,) = await receiver.wait_for(job_id)
    assert received.body == META
    assert received.late_ms >= 0
    assert received.path == "/hook"
    assert received.headers["content-type"] == "application/json"
    assert "." not in received.headers["webhook-id"]
    assert abs(int(received.headers["webhook-timestamp"]) - received.at_ms / 1000) < 5
    assert {name: value for name, value in received.headers.items() if name.startswith("timemachine-")} == {
        "timemachine-db": service.db,
        "timemachine-collection": "c",
        "timemachine-job-id": job_id,
        "timemachine-trigger-time": str(trigger_time),
        "timemachine-attempt": "1",
    }


async def test_a_job_is_shown_as_it_was_written_before_and_after(service: Service, receiver: Receiver) -> None:
    job_id, trigger_time = new_id(), now_ms(1)
    await service.api.post(service.jobs, content=job_body(job_id, trigger_time, META))

    before = await service.api.get(f"{service.jobs}/{job_id}")
    await receiver.wait_for(job_id)
    after = await service.wait_for_state(job_id, "delivered")

    assert META in before.content
    assert list(before.json()) == ["id", "trigger_time", "meta", "route", "state"]
    assert before.json()["state"] == "scheduled"
    assert after["attempts"] == 1
    assert after["delivered_at"] >= trigger_time


async def test_a_job_without_meta_arrives_as_null(service: Service, receiver: Receiver) -> None:
    job = a_job(0)
    assert (await service.api.post(service.jobs, json=job)).status_code == 200

    (received,) = await receiver.wait_for(job["id"])

    assert received.body == b"null"


async def test_a_job_a_little_past_is_delivered_at_once(service: Service, receiver: Receiver) -> None:
    job_id = await service.create(-50)

    assert await receiver.wait_for(job_id)


async def test_a_create_may_be_repeated_while_the_job_waits_and_after_it_fired(
    service: Service, receiver: Receiver
) -> None:
    job = a_job(0.5, meta=1)

    answers = [await service.api.post(service.jobs, json=job) for _ in range(2)]
    await service.wait_for_state(job["id"], "delivered")
    answers.append(await service.api.post(service.jobs, json=job))

    assert [answer.status_code for answer in answers] == [200] * 3
    assert [answer.headers["timemachine-job"] for answer in answers] == ["created", "unchanged", "unchanged"]

    await asyncio.sleep(0.5)  # time for a second delivery that must not come
    assert len(receiver.of(job["id"])) == 1


async def test_a_create_may_be_repeated_long_after_the_job_fired(service: Service) -> None:
    """A job that is too far past to be created is answered 200 when it is there already."""
    job = a_job(-58)
    assert (await service.api.post(service.jobs, json=job)).status_code == 200
    await asyncio.sleep(max(0, (job["trigger_time"] + 60_500 - now_ms()) / 1000))

    assert (await service.api.post(service.jobs, json=job)).status_code == 200
    assert refused(await service.api.post(service.jobs, json=job | {"id": new_id()})) == BAD_TIME


async def test_another_job_with_the_id_of_a_waiting_one_is_refused(service: Service) -> None:
    job = a_job(60, meta=1)
    await service.api.post(service.jobs, json=job)

    for other in ({"meta": 2}, {"trigger_time": job["trigger_time"] + 1}):
        assert refused(await service.api.post(service.jobs, json=job | other)) == JOB_EXISTS


async def test_the_id_of_an_ended_job_may_be_used_again(service: Service, receiver: Receiver) -> None:
    job_id = await service.create(0, meta=1)
    await service.wait_for_state(job_id, "delivered")

    await service.create(0, job_id=job_id, meta=2)

    first, second = await receiver.wait_for(job_id, 2)
    assert (first.body, second.body) == (b"1", b"2")
    assert first.headers["webhook-id"] != second.headers["webhook-id"]


async def test_a_cancelled_job_may_be_created_again_with_the_same_content(service: Service, receiver: Receiver) -> None:
    job = a_job(3)
    await service.api.post(service.jobs, json=job)
    assert (await service.cancel(job["id"])).json() == {"status": "ok"}

    assert (await service.api.post(service.jobs, json=job)).status_code == 200

    assert len(await receiver.wait_for(job["id"])) == 1


async def test_of_many_concurrent_creates_one_content_wins(service: Service, receiver: Receiver) -> None:
    job = a_job(3600)

    async def create(meta: int) -> httpx.Response:
        return await repeated(lambda: service.api.post(service.jobs, json=job | {"meta": meta}))

    answers = await asyncio.gather(*(create(n % 4) for n in range(16)))

    codes = [answer.json().get("code") for answer in answers]
    assert set(codes) == {None, "E005"}
    await service.trigger(job["id"])
    (received,) = await receiver.wait_for(job["id"])
    assert {n % 4 for n, code in enumerate(codes) if code is None} == {int(received.body)}


async def test_put_to_an_earlier_time(service: Service, receiver: Receiver) -> None:
    job_id = await service.create(3600, meta="old")

    answer = await service.change(job_id, 0.5, meta="new")

    assert answer.json() == {"status": "ok"}
    (received,) = await receiver.wait_for(job_id)
    assert received.body == b'"new"'
    assert received.late_ms >= 0


async def test_put_to_a_later_time(service: Service, receiver: Receiver) -> None:
    job_id = await service.create(2, meta="old")

    await service.change(job_id, 4, meta="new")

    (received,) = await receiver.wait_for(job_id)
    assert received.body == b'"new"'
    assert received.late_ms >= 0


async def test_get_shows_what_put_wrote(service: Service) -> None:
    job_id = await service.create(3600, meta={"old": True})

    await service.change(job_id, 7200, meta={"new": [1, 2]})

    job = await service.find(job_id)
    assert (job["meta"], job["state"]) == ({"new": [1, 2]}, "scheduled")


async def test_put_moves_a_job_to_another_route(service: Service, receiver: Receiver) -> None:
    await service.add_route(receiver.url + "/other", "other")
    job_id = await service.create(3600)

    await service.change(job_id, 0, route="other")

    (received,) = await receiver.wait_for(job_id)
    assert received.path == "/hook/other"


async def test_many_puts_at_once_are_all_taken(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from many clients that each know of something new. Temporal is sent one at a time: of many it loses some."""
    job_id = await service.create(3600)
    in_flight: list[int] = [0]
    execute_update = WorkflowHandle.execute_update

    async def counted(handle: Any, *args: Any, **kwargs: Any) -> Any:
        in_flight.append(in_flight[-1] + 1)
        try:
            return await execute_update(handle, *args, **kwargs)
        finally:
            in_flight.append(in_flight[-1] - 1)

    monkeypatch.setattr(WorkflowHandle, "execute_update", counted)
    answers = await asyncio.gather(*(service.change(job_id, 3600, meta=number) for number in range(40)))

    assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
    assert max(in_flight) == 1
    assert (await service.find(job_id))["meta"] in range(40)


async def test_put_with_the_id_of_another_job_is_refused(service: Service) -> None:
    job_id = await service.create(3600)

    assert refused(await service.change(job_id, 3600, id=new_id())) == MALFORMED
    assert (await service.change(job_id, 3600, id=job_id)).status_code == 200


async def test_delete_cancels_a_waiting_job(service: Service, receiver: Receiver) -> None:
    job_id = await service.create(2)

    answer = await service.cancel(job_id)

    assert answer.json() == {"status": "ok"}
    assert (await service.find(job_id))["state"] == "cancelled"
    await asyncio.sleep(2.5)  # past the trigger time
    assert receiver.of(job_id) == []


async def test_a_cancelled_job_that_was_moved_before_is_not_delivered(service: Service, receiver: Receiver) -> None:
    job_id = await service.create(3600)
    await service.change(job_id, 2)

    assert (await service.cancel(job_id)).status_code == 200

    await asyncio.sleep(2.5)  # past the trigger time
    assert receiver.of(job_id) == []


async def test_changes_after_the_delivery_come_too_late(service: Service) -> None:
    job_id = await service.create(0)
    await service.wait_for_state(job_id, "delivered")

    assert refused(await service.change(job_id, 60)) == TOO_LATE
    assert refused(await service.cancel(job_id)) == TOO_LATE


async def test_changes_of_a_job_that_never_was(service: Service) -> None:
    assert refused(await service.change(new_id(), 60)) == NO_SUCH_JOB
    assert refused(await service.cancel(new_id())) == NO_SUCH_JOB
    assert refused(await service.api.get(f"{service.jobs}/{new_id()}")) == NO_SUCH_JOB


async def test_delete_waits_for_the_attempt_in_flight_and_tells_that_it_was_taken(
    service: Service, receiver: Receiver
) -> None:
    answered = asyncio.Event()

    async def slow(_: Received) -> bytes:
        await answered.wait()
        return response(200)

    receiver.answer = slow
    job_id = await service.create(0)
    await receiver.wait_for(job_id)

    delete = asyncio.create_task(service.cancel(job_id))
    assert refused(await service.change(job_id, 60)) == TOO_LATE
    assert not delete.done()
    answered.set()

    assert refused(await delete) == TOO_LATE
    assert (await service.find(job_id))["state"] == "delivered"


async def test_delete_during_an_attempt_that_fails_cancels_the_job(
    service: Service, receiver: Receiver, client: Client
) -> None:
    answered = asyncio.Event()

    async def slow(_: Received) -> bytes:
        await answered.wait()
        return response(500)

    receiver.answer = slow
    job_id = await service.create(0)
    await receiver.wait_for(job_id)

    delete = asyncio.create_task(service.cancel(job_id))
    await wait_for_event(client, service, job_id, EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED)
    answered.set()

    assert (await delete).json() == {"status": "ok"}
    assert (await service.find(job_id))["state"] == "cancelled"


async def test_delete_between_two_attempts_prevents_the_next(service: Service, receiver: Receiver) -> None:
    async def refuse(_: Received) -> bytes:
        return response(500, b"out of order")

    receiver.answer = refuse
    job_id = await service.create(0, retry={"waits": [5]})
    job = await eventually(lambda: service.find(job_id), lambda job: "last_error" in job)

    assert job["attempts"] == 1
    assert job["last_error"] == "500 from the receiver: out of order"
    other = await service.api.post(service.jobs, json=a_job(60) | {"id": job_id})
    assert refused(other) == JOB_EXISTS
    assert "cancel it first" in other.json()["error"]
    assert (await service.cancel(job_id)).json() == {"status": "ok"}

    await asyncio.sleep(max(0, (job["next_attempt_time"] + 500 - now_ms()) / 1000))  # past the next attempt's time
    assert len(receiver.of(job_id)) == 1


async def test_a_receiver_that_fails_twice_gets_three_requests_with_one_id(
    service: Service, receiver: Receiver
) -> None:
    async def third_time(received: Received) -> bytes:
        return response(500 if len(receiver.of(received.job_id)) < 3 else 200)

    receiver.answer = third_time
    job_id = await service.create(0, retry={"initial_interval": 0.5, "backoff_coefficient": 3})

    received = await receiver.wait_for(job_id, 3)

    assert len({request.headers["webhook-id"] for request in received}) == 1
    assert [request.headers["timemachine-attempt"] for request in received] == ["1", "2", "3"]
    waits = [(b.at_ms - a.at_ms) / 1000 for a, b in pairwise(received)]
    assert waits[0] >= 0.5
    assert waits[1] >= 1.5
    assert (await service.wait_for_state(job_id, "delivered"))["attempts"] == 3


async def test_a_job_on_a_missing_route_is_refused(service: Service) -> None:
    job = {"id": new_id(), "trigger_time": now_ms(60), "route": "nowhere"}
    waiting = await service.create(60)

    assert refused(await service.api.post(service.jobs, json=job)) == NO_SUCH_ROUTE
    assert refused(await service.change(waiting, 60, route="nowhere")) == NO_SUCH_ROUTE


async def test_a_changed_route_is_used_by_the_next_attempt(service: Service, receiver: Receiver) -> None:
    async def only_new(received: Received) -> bytes:
        return response(200 if received.path == "/hook/new" else 503)

    receiver.answer = only_new
    job_id = await service.create(0)
    await receiver.wait_for(job_id)

    route = {"type": "REST", "webhook_url": receiver.url + "/new"}
    assert (await service.api.put(f"/route/{service.db}/{ROUTE}", json=route)).json() == {"status": "ok"}

    _, second = await receiver.wait_for(job_id, 2)
    assert second.path == "/hook/new"
    await service.wait_for_state(job_id, "delivered")


@pytest.mark.parametrize("path", ["/livez", "/healthz", "/readyz"])
async def test_health(api: httpx.AsyncClient, path: str) -> None:
    assert (await api.get(path)).json() == {"status": "ok"}


@pytest.mark.parametrize("moves", [True, False])
async def test_a_job_survives_very_many_changes(
    service: Service, receiver: Receiver, client: Client, moves: bool
) -> None:
    """A run whose history has grown long is continued as a new one, without a change or the job being lost."""
    job_id = await service.create(3600)
    first = await client.get_workflow_handle(f"{service.db}/c/{job_id}").describe()
    start = now_ms(3600)

    for n in range(24):
        trigger_time = start + n if moves else start
        answer = await service.change(job_id, 3600, trigger_time=trigger_time, meta=[n, "x" * 250_000])
        assert answer.status_code == 200, answer.text

    assert (await service.find(job_id))["meta"][0] == 23
    last = await client.get_workflow_handle(f"{service.db}/c/{job_id}").describe()
    assert last.run_id != first.run_id
    assert (await service.change(job_id, 0, meta="last")).status_code == 200
    (received,) = await receiver.wait_for(job_id)
    assert received.body == b'"last"'
    assert received.headers["webhook-id"] == f"msg_{first.run_id.replace('-', '')}"


async def test_a_job_continued_as_a_new_run_can_be_cancelled(service: Service) -> None:
    job_id = await service.create(3600)
    for n in range(24):
        await service.change(job_id, 3600, meta=[n, "x" * 250_000])

    assert (await service.cancel(job_id)).json() == {"status": "ok"}
    assert (await service.find(job_id))["state"] == "cancelled"


async def test_a_receiver_that_cannot_be_reached_is_told_in_a_readable_line(service: Service) -> None:
    await service.add_route("http://127.0.0.1:1/", "nobody")
    job_id = await service.create(0, route="nobody")

    job = await eventually(lambda: service.find(job_id), lambda job: "last_error" in job)

    assert job["state"] == "delivering"
    assert job["last_error"] == "no connection to the receiver: connection refused"


async def test_a_second_delete_comes_too_late(service: Service) -> None:
    job_id = await service.create(3600)
    await service.cancel(job_id)

    assert refused(await service.cancel(job_id)) == TOO_LATE


@pytest.mark.parametrize("end", ["cancelled", "failed"])
async def test_a_job_that_is_created_anew_twice_at_once_is_delivered_once(
    service: Service, receiver: Receiver, client: Client, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """As when a client repeats its request before the first one is answered."""

    async def refuse(_: Received) -> bytes:
        return response(500)

    if end == "cancelled":
        job_id = await service.create(3600)
        assert (await service.cancel(job_id)).status_code == 200
    else:
        receiver.answer = refuse
        job_id = await service.create(0, retry={"maximum_attempts": 1})
    ended = WorkflowExecutionStatus.CANCELED if end == "cancelled" else WorkflowExecutionStatus.FAILED
    await wait_for_status(client, service, job_id, ended)
    receiver.answer = take
    before, reads, both_read = len(receiver.of(job_id)), 0, asyncio.Event()

    async def read_both_first(temporal: Client, ledger: DeliveryLedger, workflow_id: str) -> JobStatus:
        nonlocal reads
        status = await read_job_status(temporal, ledger, workflow_id)
        reads += 1
        if reads == 1:
            await both_read.wait()
            await receiver.wait_for(job_id, before + 1)
            await service.wait_for_state(job_id, "delivered")
        both_read.set()
        return status

    monkeypatch.setattr("api.jobs.read_job_status", read_both_first)
    monkeypatch.setattr("api.jobs.temporal_timeout", lambda _: temporal_timeout(30))
    again = a_job(0, meta="again") | {"id": job_id}
    answers = await asyncio.gather(*(service.api.post(service.jobs, json=again) for _ in range(2)))

    assert [answer.status_code for answer in answers] == [200, 200]
    await service.wait_for_state(job_id, "delivered")
    assert len(receiver.of(job_id)) == before + 1


@pytest.mark.parametrize(
    ("call", "refusal", "answer"),
    [
        ("list_search_attributes", RPCStatusCode.PERMISSION_DENIED, 200),
        ("list_search_attributes", RPCStatusCode.UNIMPLEMENTED, 200),
        ("list_search_attributes", RPCStatusCode.RESOURCE_EXHAUSTED, 200),
        ("describe_namespace", RPCStatusCode.PERMISSION_DENIED, 200),
        ("describe_namespace", RPCStatusCode.RESOURCE_EXHAUSTED, 200),
        ("describe_workflow_execution", RPCStatusCode.PERMISSION_DENIED, 503),
        ("describe_workflow_execution", RPCStatusCode.UNIMPLEMENTED, 503),
    ],
)
async def test_an_operators_question_that_is_refused_does_not_take_the_api_out(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, call: str, refusal: RPCStatusCode, answer: int
) -> None:
    """Such questions have a limit of their own, while those of requests are answered, of which one is asked as well."""
    rpc_call = FailFastServiceClient._rpc_call

    async def refuse(client: Any, rpc: str, *args: Any, **how: Any) -> Any:
        if rpc == call:
            raise RPCError("refused", refusal, b"")
        return await rpc_call(client, rpc, *args, **how)

    monkeypatch.setattr(FailFastServiceClient, "_rpc_call", refuse)

    assert (await api.get("/readyz")).status_code == answer

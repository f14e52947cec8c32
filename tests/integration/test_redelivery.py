"""What failed, and delivering it once more: one job, and many."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
import pytest
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.exceptions import WorkflowAlreadyStartedError

from tests.support.failed_jobs import ONCE, fail, refuse
from tests.support.job_histories import wait_for_status
from tests.support.ledger import AnotherWorker, first_run, taken
from tests.support.receiver import Received, Receiver, response, take
from tests.support.refusals import FORBIDDEN_NAME, MALFORMED, NO_SUCH_JOB, NO_SUCH_OPERATION, NO_SUCH_ROUTE, TOO_LATE
from tests.support.service import ROUTE, Service, a_job, new_id, now_ms, refused, repeated
from tests.support.waiting import LIMIT, eventually
from timemachine.settings import Settings
from timemachine.temporal import job_runs
from timemachine.temporal.fail_fast import FailFastServiceClient
from timemachine.temporal.job_runs import latest_run


@pytest.fixture
async def out_of_order(receiver: Receiver) -> Receiver:
    """The receiver, refusing everything."""
    receiver.answer = refuse
    return receiver


async def redeliver(service: Service, job_id: str) -> httpx.Response:
    return await service.api.post(f"{service.jobs}/{job_id}/redeliver")


async def until_shown(look: Callable[[], Awaitable[Any]], expected: Any) -> None:
    """Wait until a look shows what is expected: visibility lags behind."""
    await eventually(look, lambda seen: seen == expected)


async def failed(service: Service, **query: Any) -> list[Any]:
    """Return the failed list, followed to its end."""
    found: list[Any] = []
    while True:
        answer = await service.api.get(f"/failed/{service.db}", params=query)
        assert answer.status_code == 200, answer.text
        found += answer.json()["failed"]
        if "next" not in answer.json():
            return found
        query["cursor"] = answer.json()["next"]


async def failed_ids(service: Service, **query: Any) -> list[str]:
    return [entry["id"] for entry in await failed(service, **query)]


# The failed list


async def test_a_failed_job_is_listed_with_its_last_error(service: Service, out_of_order: Receiver) -> None:
    job = a_job(0, retry={"waits": [0.1]})
    await service.api.post(service.jobs, json=job)
    await service.wait_for_state(job["id"], "failed")
    await until_shown(lambda: failed_ids(service), [job["id"]])

    (entry,) = await failed(service)

    assert job["trigger_time"] <= entry.pop("failed_at") <= now_ms()
    assert entry == {
        "id": job["id"],
        "collection": "c",
        "route": ROUTE,
        "trigger_time": job["trigger_time"],
        "last_error": "500 from the receiver: out of order",
    }


async def test_the_failed_list_is_filtered_and_paged(service: Service, out_of_order: Receiver) -> None:
    await service.add_route(out_of_order.url, "other")
    ids = [await fail(service) for _ in range(3)]
    other = await fail(service, route="other")
    await until_shown(lambda: failed_ids(service), [other, *reversed(ids)])

    assert await failed_ids(service, limit=1) == [other, *reversed(ids)]
    assert await failed_ids(service, limit=3) == [other, *reversed(ids)]
    assert await failed_ids(service, route="other") == [other]
    assert await failed_ids(service, route=ROUTE, collection="c", limit=2) == list(reversed(ids))
    assert await failed_ids(service, collection="d") == []


async def test_a_page_of_the_failed_list_stays_whole_while_others_fail(
    service: Service, out_of_order: Receiver
) -> None:
    ids = [await fail(service) for _ in range(3)]
    await until_shown(lambda: failed_ids(service), list(reversed(ids)))
    first = (await service.api.get(f"/failed/{service.db}", params={"limit": 1})).json()

    newer = await fail(service)
    await until_shown(lambda: failed_ids(service), [newer, *reversed(ids)])

    assert [entry["id"] for entry in first["failed"]] == [ids[2]]
    assert await failed_ids(service, limit=1, cursor=first["next"]) == [ids[1], ids[0]]


async def test_only_what_failed_in_this_very_db_is_listed(
    api: httpx.AsyncClient, service: Service, out_of_order: Receiver, db: str
) -> None:
    """A name is not a pattern, does not begin another, and is told from its other spelling."""
    services = [Service(api, name) for name in (f"{db}_A", f"{db}xA", f"{db}_a", f"{db}_Ab")]
    for each in services:
        await each.add_route(out_of_order.url)
        await fail(each, id=each.db)

    for each in services:
        await until_shown(lambda each=each: failed_ids(each), [each.db])  # type: ignore[misc]


async def test_only_what_failed_in_this_very_collection_or_on_this_very_route_is_listed(
    service: Service, out_of_order: Receiver
) -> None:
    names = ["a_b", "A_B", "aXb", "a_", "a_B"]
    for name in names:
        await service.add_route(out_of_order.url, name)
        job = a_job(0, id=name, route=name, retry=ONCE)
        assert (await service.api.post(f"/job/{service.db}/{name}", json=job)).status_code == 200
    await until_shown(lambda: sorted_ids(service), sorted(names))

    for name in names:
        assert await failed_ids(service, collection=name) == [name]
        assert await failed_ids(service, route=name) == [name]
        assert await failed_ids(service, collection=name, route=name.swapcase()) == []


async def sorted_ids(service: Service) -> list[str]:
    return sorted(await failed_ids(service))


async def test_a_job_that_was_taken_after_it_had_failed_is_not_listed(
    service: Service, out_of_order: Receiver, client: Client, another: AnotherWorker
) -> None:
    """A worker that was taken for lost has told the end of its attempt late."""
    taken_late, other = await fail(service), await fail(service)
    await until_shown(lambda: failed_ids(service), [other, taken_late])
    run = await first_run(client, service, taken_late)

    await another.end(run, uuid4(), taken())

    assert await failed_ids(service) == [other]
    assert (await service.find(taken_late))["state"] == "delivered"


async def test_a_page_of_the_failed_list_is_two_questions_to_temporal(
    service: Service, out_of_order: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many jobs are on it, and whatever has become of them."""
    ids = [await fail(service) for _ in range(5)]
    await redeliver(service, ids[0])
    await service.wait_for_end(ids[0])
    await until_shown(lambda: sorted_ids(service), sorted(ids))
    asked: list[str] = []
    made = FailFastServiceClient._rpc_call

    async def noted(client: FailFastServiceClient, rpc: str, *arguments: Any, **how: Any) -> Any:
        asked.append(rpc)
        return await made(client, rpc, *arguments, **how)

    monkeypatch.setattr(FailFastServiceClient, "_rpc_call", noted)
    assert await sorted_ids(service) == sorted(ids)

    assert asked == ["list_workflow_executions"] * 2


async def test_what_was_delivered_or_cancelled_or_waits_is_not_listed(service: Service, receiver: Receiver) -> None:
    delivered = await service.create(0)
    await service.wait_for_state(delivered, "delivered")
    await service.cancel(await service.create(3600))
    await service.create(3600)
    receiver.answer = refuse
    job_id = await fail(service)

    await until_shown(lambda: failed_ids(service), [job_id])


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"limit": 0}, "E001"),
        ({"limit": 201}, "E001"),
        ({"cursor": "nonsense"}, "E001"),
        ({"cursor": ""}, "E001"),
        ({"route": "a'b"}, "E002"),
        ({"collection": "a b"}, "E002"),
        ({"collection": ""}, "E002"),
    ],
    ids=str,
)
async def test_a_malformed_question_is_refused(
    api: httpx.AsyncClient, db: str, query: dict[str, Any], code: str
) -> None:
    assert refused(await api.get(f"/failed/{db}", params=query)) == (400, code)


async def test_a_cursor_of_another_list_is_refused(service: Service, out_of_order: Receiver) -> None:
    ids = [await fail(service) for _ in range(2)]
    await until_shown(lambda: failed_ids(service), list(reversed(ids)))
    cursor = (await service.api.get(f"/failed/{service.db}", params={"limit": 1})).json()["next"]

    for path, query in ((service.db, {"route": ROUTE}), (f"{service.db}x", {})):
        answer = await service.api.get(f"/failed/{path}", params={"cursor": cursor} | query)
        assert refused(answer) == MALFORMED


# One job


@pytest.mark.parametrize("before", [False, True], ids=["for the first time", "once more"])
async def test_a_job_that_is_said_to_have_ended_is_redelivered(
    service: Service, receiver: Receiver, client: Client, another: AnotherWorker, before: bool
) -> None:
    """The ledger knows of its end before Temporal does. None may be answered 200 and not be made."""
    ending = asyncio.Event()

    async def slow(_: Received) -> bytes:
        await ending.wait()
        return response(200)

    job_id = new_id()
    if before:
        await service.create(0, job_id=job_id)
        await client.get_workflow_handle(f"{service.db}/c/{job_id}").result()
    receiver.answer = slow
    if before:
        assert (await redeliver(service, job_id)).status_code == 200
    else:
        await service.create(0, job_id=job_id)
    sent = len(await receiver.wait_for(job_id, 1 + before))
    await another.end(await first_run(client, service, job_id), uuid4(), taken())
    assert (await service.find(job_id))["state"] == "delivered"

    asking = asyncio.create_task(redeliver(service, job_id))
    await asyncio.sleep(0.5)  # time for the answer that must not come yet
    assert not asking.done()
    ending.set()

    assert (await asking).status_code == 200
    await receiver.wait_for(job_id, sent + 1)
    await service.wait_for_state(job_id, "delivered")


async def test_a_job_that_was_cancelled_is_not_redelivered_though_temporal_does_not_know(
    service: Service, client: Client, another: AnotherWorker
) -> None:
    job_id = await service.create(3600)
    await another.ledger.cancel(await first_run(client, service, job_id), due=datetime.now(UTC))

    answer = await redeliver(service, job_id)

    assert refused(answer) == TOO_LATE
    assert "cancelled" in answer.json()["error"]


async def test_a_failed_job_is_delivered_once_more_under_the_same_webhook_id(
    service: Service, out_of_order: Receiver
) -> None:
    job_id = await fail(service, meta={"n": 1})
    await until_shown(lambda: failed_ids(service), [job_id])
    out_of_order.answer = take

    assert (await redeliver(service, job_id)).json() == {"status": "ok"}

    first, second = await out_of_order.wait_for(job_id, 2)
    assert second.body == first.body == b'{"n":1}'
    assert second.headers["webhook-id"] == first.headers["webhook-id"]
    assert second.headers["timemachine-attempt"] == "1"
    job = await service.wait_for_state(job_id, "delivered")
    assert job["attempts"] == 1
    assert await failed(service) == []


async def test_a_job_is_redelivered_as_it_last_was_and_again_and_again(service: Service, receiver: Receiver) -> None:
    job_id = await service.create(3600, meta="old")
    await service.change(job_id, 0, meta="new")
    await service.wait_for_state(job_id, "delivered")

    for count in (2, 3):
        assert (await redeliver(service, job_id)).status_code == 200
        await receiver.wait_for(job_id, count)
        await service.wait_for_state(job_id, "delivered")

    assert [received.body for received in receiver.of(job_id)] == [b'"new"'] * 3
    assert len({received.headers["webhook-id"] for received in receiver.of(job_id)}) == 1


async def test_a_job_that_fails_again_is_listed_once(service: Service, out_of_order: Receiver) -> None:
    job_id = await fail(service)
    await redeliver(service, job_id)
    await out_of_order.wait_for(job_id, 2)
    await service.wait_for_state(job_id, "failed")

    await until_shown(lambda: failed_ids(service), [job_id])
    await asyncio.sleep(0.5)  # time for the earlier failure that must not come
    assert await failed_ids(service) == [job_id]
    answer = await service.api.get(f"{service.jobs}/{job_id}/attempts")
    assert [attempt["attempt"] for attempt in answer.json()["attempts"]] == [1, 1]


async def test_asking_again_while_it_is_under_way_changes_nothing(service: Service, out_of_order: Receiver) -> None:
    job_id = await fail(service)
    answered = asyncio.Event()

    async def slow(_: Received) -> bytes:
        await answered.wait()
        return response(200)

    out_of_order.answer = slow
    answers = await asyncio.gather(*(redeliver(service, job_id) for _ in range(8)))
    await out_of_order.wait_for(job_id, 2)
    answers.append(await redeliver(service, job_id))
    answered.set()
    await service.wait_for_state(job_id, "delivered")

    assert [answer.status_code for answer in answers] == [200] * 9
    await asyncio.sleep(0.5)  # time for another delivery that must not come
    assert len(out_of_order.of(job_id)) == 2


async def test_who_saw_the_failure_but_comes_after_its_redelivery_delivers_nothing(
    service: Service, out_of_order: Receiver, client: Client, settings: Settings
) -> None:
    job_id = await fail(service)
    await wait_for_status(client, service, job_id, WorkflowExecutionStatus.FAILED)
    seen = await latest_run(client, f"{service.db}/c/{job_id}")
    out_of_order.answer = take
    await redeliver(service, job_id)
    await service.wait_for_state(job_id, "delivered")

    with pytest.raises(WorkflowAlreadyStartedError):
        await job_runs.redeliver(client, seen, None, task_queue=settings.task_queue)

    assert len(out_of_order.of(job_id)) == 2


async def test_a_create_may_still_be_repeated_after_a_redelivery(service: Service, receiver: Receiver) -> None:
    job = a_job(0, meta=1)
    await service.api.post(service.jobs, json=job)
    await service.wait_for_state(job["id"], "delivered")
    await redeliver(service, job["id"])
    await receiver.wait_for(job["id"], 2)

    assert (await service.api.post(service.jobs, json=job)).status_code == 200

    await service.wait_for_state(job["id"], "delivered")
    assert len(receiver.of(job["id"])) == 2


async def test_what_has_not_ended_or_was_cancelled_is_not_redelivered(service: Service) -> None:
    waiting = await service.create(3600)
    early = await redeliver(service, waiting)
    await service.cancel(waiting)

    assert refused(early) == TOO_LATE
    assert "not ended" in early.json()["error"]
    assert refused(await redeliver(service, waiting)) == TOO_LATE
    assert refused(await redeliver(service, new_id())) == NO_SUCH_JOB
    assert refused(await redeliver(service, "a b")) == FORBIDDEN_NAME


async def test_a_job_on_its_way_for_the_first_time_is_not_redelivered(service: Service, receiver: Receiver) -> None:
    receiver.answer = refuse
    job_id = await service.create(0)
    await receiver.wait_for(job_id)

    assert refused(await redeliver(service, job_id)) == TOO_LATE


async def test_a_job_is_not_redelivered_past_its_deadline_or_without_its_route(
    service: Service, out_of_order: Receiver
) -> None:
    deadline = now_ms(4)
    late = await fail(service, deadline=deadline)
    lost = await fail(service)
    await asyncio.sleep(max(0, (deadline + 100 - now_ms()) / 1000))

    assert refused(await redeliver(service, late)) == TOO_LATE
    await service.api.delete(f"/route/{service.db}/{ROUTE}", params={"force": "true"})
    assert refused(await redeliver(service, lost)) == NO_SUCH_ROUTE


# Many jobs


async def start(service: Service, **body: Any) -> httpx.Response:
    return await repeated(lambda: service.api.post(f"/route/{service.db}/{ROUTE}/redeliver", json=body))


async def progress(service: Service, redelivery_id: str) -> Any:
    answer = await repeated(lambda: service.api.get(f"/route/{service.db}/{ROUTE}/redeliver/{redelivery_id}"))
    assert answer.status_code == 200, answer.text
    return answer.json()


async def wait_until_done(service: Service, redelivery_id: str) -> Any:
    return await eventually(lambda: progress(service, redelivery_id), lambda seen: seen["done"])


async def test_many_are_redelivered_by_the_time_when_they_failed(service: Service, out_of_order: Receiver) -> None:
    await service.add_route(out_of_order.url, "other")
    before = await fail(service)
    # What is listed has ended in Temporal, too, whose time counts.
    await until_shown(lambda: failed_ids(service), [before])
    await asyncio.sleep(0.01)  # windows are told in milliseconds
    since = now_ms()
    ids = [await fail(service, meta=n) for n in range(5)]
    elsewhere = await fail(service, route="other")
    dealt_with = await fail(service)
    until_now = [dealt_with, elsewhere, *reversed(ids), before]
    await until_shown(lambda: failed_ids(service), until_now)
    await asyncio.sleep(0.01)  # windows are told in milliseconds
    until = now_ms()
    after = await fail(service)
    await until_shown(lambda: failed_ids(service), [after, *until_now])
    out_of_order.answer = take
    await redeliver(service, dealt_with)
    await service.wait_for_state(dealt_with, "delivered")

    redelivery_id = (await start(service, since=since, until=until)).json()["id"]

    for job_id in ids:
        first, second = await out_of_order.wait_for(job_id, 2)
        assert (second.body, second.headers["webhook-id"]) == (first.body, first.headers["webhook-id"])
    seen = await wait_until_done(service, redelivery_id)
    assert seen == {"id": redelivery_id, "found": 6, "started": 5, "skipped": 1, "done": True}
    assert [len(out_of_order.of(job_id)) for job_id in (before, elsewhere, dealt_with, after)] == [1, 1, 2, 1]


async def test_the_same_window_twice_redelivers_once(service: Service, out_of_order: Receiver) -> None:
    ids = [await fail(service) for _ in range(3)]
    await until_shown(lambda: failed_ids(service), list(reversed(ids)))
    until = now_ms()

    answers = await asyncio.gather(*(start(service, since=0, until=until) for _ in range(4)))
    (redelivery_id,) = {answer.json()["id"] for answer in answers}
    await wait_until_done(service, redelivery_id)
    for job_id in ids:
        await out_of_order.wait_for(job_id, 2)
        await service.wait_for_state(job_id, "failed")
    await start(service, since=0, until=until)
    again = await wait_until_done(service, redelivery_id)

    assert (again["found"], again["started"], again["skipped"]) == (3, 0, 3)
    assert [len(out_of_order.of(job_id)) for job_id in ids] == [2, 2, 2]


async def test_a_redelivery_does_not_run_after_what_fails_while_it_runs(
    service: Service, out_of_order: Receiver
) -> None:
    """The window ends when it is asked for, though more was asked for."""
    job_id = await fail(service)
    await until_shown(lambda: failed_ids(service), [job_id])

    redelivery_id = (await start(service, since=0, until=now_ms(3600))).json()["id"]
    seen = await wait_until_done(service, redelivery_id)

    await service.wait_for_state(job_id, "failed")
    assert (seen["found"], seen["started"]) == (1, 1)
    await asyncio.sleep(0.5)  # time for another delivery that must not come
    assert len(out_of_order.of(job_id)) == 2


async def test_progress_is_seen_while_it_goes_on(service: Service, out_of_order: Receiver, client: Client) -> None:
    ids = await asyncio.gather(*(fail(service) for _ in range(60)))

    async def listed() -> list[str]:
        return sorted(await failed_ids(service, limit=200))

    await until_shown(listed, sorted(ids))

    redelivery_id = (await start(service, since=0)).json()["id"]
    seen: list[Any] = []
    async with asyncio.timeout(LIMIT):
        while not seen or not seen[-1]["done"]:
            seen.append(await progress(service, redelivery_id))
            await asyncio.sleep(0.1)

    assert any(0 < look["started"] < 60 and look["found"] == 60 for look in seen)
    assert [look["started"] for look in seen] == sorted(look["started"] for look in seen)
    assert seen[-1] == {"id": redelivery_id, "found": 60, "started": 60, "skipped": 0, "done": True}


async def test_a_redelivery_that_was_stopped_says_so(service: Service, client: Client, db: str) -> None:
    async with asyncio.timeout(LIMIT):
        redelivery_id = (await start(service, since=0)).json()["id"]
        await wait_until_done(service, redelivery_id)
    handle = client.get_workflow_handle(f"timemachine/redelivery/{db}/{ROUTE}/stopped")
    await client.start_workflow("Redelivery", {}, id=handle.id, task_queue="nobody")
    assert (await progress(service, "stopped")) == {
        "id": "stopped",
        "found": 0,
        "started": 0,
        "skipped": 0,
        "done": False,
    }

    await handle.terminate()

    stopped = await progress(service, "stopped")
    assert stopped["done"] is True
    assert stopped["error"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"since": "yesterday"},
        {"since": -1},
        {"since": 10**18},
        {"since": 5, "until": 5},
        {"since": 5, "until": 4},
        {"since": 0, "until": 0},
        {"since": 4_102_444_800_000},
        {"since": 0, "limit": 5},
    ],
    ids=str,
)
async def test_a_malformed_window_is_refused(service: Service, body: dict[str, Any]) -> None:
    assert refused(await start(service, **body)) == MALFORMED


@pytest.mark.parametrize("field", ["since", "until"])
async def test_a_window_in_seconds_is_told_so(service: Service, field: str) -> None:
    answer = await start(service, **({"since": 0} | {field: now_ms() // 1000}))

    assert refused(answer) == MALFORMED
    assert answer.json()["error"] == f"{field}: this looks like seconds; it must be in milliseconds since the epoch"


async def test_what_is_unknown_is_refused(service: Service) -> None:
    base = f"/route/{service.db}"

    assert refused(await service.api.post(f"{base}/nowhere/redeliver", json={"since": 0})) == NO_SUCH_ROUTE
    assert refused(await service.api.get(f"{base}/{ROUTE}/redeliver/0-1")) == NO_SUCH_OPERATION
    assert refused(await service.api.get(f"{base}/{ROUTE}/redeliver/a b")) == FORBIDDEN_NAME

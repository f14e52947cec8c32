"""PUT with `create=true`: the one call of a sliding time-out."""

import asyncio

import httpx
import pytest
from temporalio.client import Client, WorkflowExecutionDescription

from api.jobs import Jobs
from tests.support.holds import pause, wait_until_held
from tests.support.receiver import Received, Receiver, response
from tests.support.refusals import BAD_TIME, MALFORMED, NO_SUCH_JOB, TOO_LATE
from tests.support.service import Service, a_job, new_id, now_ms, refused
from tests.support.waiting import eventually
from timemachine.domain.jobs import Job
from timemachine.temporal.job_runs import describe_job

OK = {"status": "ok"}


def written(answer: httpx.Response) -> str:
    """Return what a request that was taken has done."""
    assert answer.json() == OK, answer.text
    return answer.headers["timemachine-job"]


async def test_a_job_is_created_changed_and_left_as_it_is(service: Service, receiver: Receiver) -> None:
    first, second = a_job(3600, meta=1), a_job(7200, meta=2)
    job_id = first["id"]
    second["id"] = job_id

    assert [written(await service.put(job_id, job)) for job in (first, first, second, second)] == [
        "created",
        "unchanged",
        "changed",
        "unchanged",
    ]
    assert (await service.find(job_id))["meta"] == 2


async def test_the_id_in_the_body_may_be_left_out_and_must_be_the_one_in_the_path(service: Service) -> None:
    job = a_job(3600)
    job_id = job.pop("id")

    assert written(await service.put(job_id, job)) == "created"
    assert refused(await service.put(job_id, job | {"id": "other"})) == MALFORMED


async def test_a_plain_put_creates_nothing(service: Service) -> None:
    job_id = new_id()
    for query in ("", "?create=false"):
        answer = await service.api.put(f"{service.jobs}/{job_id}{query}", json=a_job(3600, id=job_id))
        assert refused(answer) == NO_SUCH_JOB
    assert refused(await service.api.put(f"{service.jobs}/{job_id}?create=perhaps", json=a_job(1))) == MALFORMED

    await service.create(3600, job_id=job_id)
    assert written(await service.change(job_id, 7200)) == "changed"


async def test_after_the_delivery_the_same_content_delivers_nothing_and_another_one_does(
    service: Service, receiver: Receiver
) -> None:
    job = a_job(0, meta=1)
    job_id = job["id"]
    assert written(await service.put(job_id, job)) == "created"
    await service.wait_for_state(job_id, "delivered")

    assert written(await service.put(job_id, job)) == "unchanged"
    assert written(await service.put(job_id, job | {"meta": 2})) == "created"

    await receiver.wait_for(job_id, 2)
    await service.wait_for_state(job_id, "delivered")
    assert [received.body for received in receiver.of(job_id)] == [b"1", b"2"]


async def test_content_that_was_put_and_delivered_is_known_long_after(service: Service, receiver: Receiver) -> None:
    """The answer of a change was lost; the job is due and past when the client asks again."""
    job_id = await service.create(3600)
    job = a_job(0, id=job_id, trigger_time=now_ms(-59), meta="moved")
    assert written(await service.put(job_id, job)) == "changed"
    await service.wait_for_state(job_id, "delivered")
    await asyncio.sleep(1.1)  # until its time is further in the past than a create may have it

    assert written(await service.put(job_id, job)) == "unchanged"
    assert refused(await service.put(job_id, job | {"meta": "other"})) == BAD_TIME
    assert len(receiver.of(job_id)) == 1


async def test_one_that_is_repeated_and_whose_first_has_just_taken_effect_changes_nothing(
    service: Service, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first, which another API was sent and answered 503, takes effect once the second has read what was there."""
    answering, change = asyncio.Event(), Jobs._change
    job_id = await service.create(3600)
    job = a_job(0, id=job_id, meta="moved")

    async def slow(_: Received) -> bytes:
        await answering.wait()
        return response(200)

    async def changed_by_the_first(
        jobs: Jobs, description: WorkflowExecutionDescription, job: Job, key_id: str | None
    ) -> None:
        await change(jobs, description, job, key_id)
        await receiver.wait_for(job_id)
        await change(jobs, description, job, key_id)

    receiver.answer = slow
    monkeypatch.setattr(Jobs, "_change", changed_by_the_first)

    assert written(await service.put(job_id, job)) == "unchanged"
    answering.set()
    await service.wait_for_state(job_id, "delivered")
    assert len(receiver.of(job_id)) == 1


async def test_after_a_cancel_it_is_created_again(service: Service, receiver: Receiver) -> None:
    job = a_job(3600)
    for _ in range(3):
        assert written(await service.put(job["id"], job)) == "created"
        assert (await service.cancel(job["id"])).json() == OK


async def test_a_job_that_is_being_delivered_is_not_replaced(service: Service, receiver: Receiver) -> None:
    async def refuse(_: Received) -> bytes:
        return response(500)

    receiver.answer = refuse
    job = a_job(0, retry={"waits": [60]})
    await service.put(job["id"], job)
    await eventually(lambda: service.find(job["id"]), lambda found: found.get("attempts") == 1)

    assert refused(await service.put(job["id"], a_job(3600, id=job["id"]))) == TOO_LATE
    assert written(await service.put(job["id"], job)) == "unchanged"
    await service.cancel(job["id"])


async def test_a_held_job_is_changed_and_one_that_is_delivered_once_more_is_not(
    service: Service, receiver: Receiver
) -> None:
    again = await service.create(0)
    await service.wait_for_state(again, "delivered")
    await pause(service)
    held = await service.create(0)
    await service.api.post(f"{service.jobs}/{again}/redeliver")
    await wait_until_held(service, held)
    await wait_until_held(service, again)

    assert written(await service.put(held, a_job(3600, id=held))) == "changed"
    assert refused(await service.put(again, a_job(3600, id=again))) == TOO_LATE


@pytest.mark.parametrize(
    ("fields", "code"),
    [({"route": "none"}, "E007"), ({"trigger_time": now_ms(-3600)}, "E003"), ({"route": "a b"}, "E002")],
)
async def test_what_no_job_may_be_is_not_created(service: Service, fields: dict[str, object], code: str) -> None:
    job = a_job(3600) | fields

    assert refused(await service.put(job["id"], job)) == (400, code)
    assert refused(await service.api.get(f"{service.jobs}/{job['id']}")) == NO_SUCH_JOB


async def test_of_many_at_once_one_creates_and_none_is_lost(service: Service, receiver: Receiver) -> None:
    job_id = new_id()
    answers = await asyncio.gather(*(service.put(job_id, a_job(3600, id=job_id, meta=n)) for n in range(9)))

    assert sorted(map(written, answers)) == ["changed"] * 8 + ["created"]
    last = written(await service.put(job_id, a_job(2, id=job_id, meta="last")))
    assert last == "changed"
    (received,) = await receiver.wait_for(job_id)
    assert received.body == b'"last"'


@pytest.mark.parametrize("is_cancelled_first", [False, True])
async def test_a_job_that_is_created_again_in_this_moment_is_changed(
    service: Service, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, is_cancelled_first: bool
) -> None:
    """Others cancel the job, and create it again, between two looks of this request."""
    job_id = await service.create(3600)
    describe = describe_job

    async def described_too_early(client: Client, workflow_id: str) -> WorkflowExecutionDescription:
        monkeypatch.setattr("api.jobs.describe_job", describe)
        if is_cancelled_first:
            await service.cancel(job_id)
        description = await describe(client, workflow_id)
        if not is_cancelled_first:
            await service.cancel(job_id)
        await service.create(3600, job_id=job_id, meta="of others")
        return description

    monkeypatch.setattr("api.jobs.describe_job", described_too_early)
    answer = await service.put(job_id, a_job(7200, id=job_id, meta="mine"))

    assert written(answer) == "changed"
    assert (await service.find(job_id))["meta"] == "mine"

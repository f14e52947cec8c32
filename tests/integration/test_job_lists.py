"""Lists and counts of jobs, and the list of routes."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from temporalio.client import Client
from temporalio.common import SearchAttributePair, TypedSearchAttributes, WorkflowIDReusePolicy

from api import job_lists
from api.job_lists import JobLists
from tests.support.holds import hold
from tests.support.ledger import AnotherWorker
from tests.support.receiver import Received, Receiver, response
from tests.support.refusals import MALFORMED
from tests.support.service import ROUTE, Service, new_id, now_ms, refused
from tests.support.waiting import eventually
from timemachine.domain import stored_names
from timemachine.domain.job_filter import JobFilter, ListedState
from timemachine.domain.jobs import Job
from timemachine.settings import Settings
from timemachine.temporal.job_lists import list_jobs
from timemachine.temporal.job_runs import start_job
from timemachine.temporal.search_attributes import ROUTE as ROUTE_KEY
from timemachine.temporal.search_attributes import TRIGGER_TIME
from timemachine.vault import Vault

Alone = tuple[Service, Settings]


async def read(service: Service, **query: Any) -> Any:
    path = query.pop("path", f"/job/{service.db}")
    answer = await service.api.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def read_all(service: Service, **query: Any) -> list[Any]:
    """Return the jobs of all pages."""
    jobs, page = [], await read(service, **query)
    while True:
        assert len(page["jobs"]) <= query.get("limit", 50)
        jobs += page["jobs"]
        if "next" not in page:
            return jobs
        page = await read(service, **query, cursor=page["next"])


async def ids(service: Service, **query: Any) -> list[str]:
    return [job["id"] for job in await read_all(service, **query)]


async def listed(service: Service, expected: list[str], **query: Any) -> None:
    """Wait until a list has these jobs, in this order; visibility lags."""
    await eventually(lambda: ids(service, **query), lambda found: found == expected)


async def known(service: Service, count: int, **query: Any) -> None:
    await eventually(lambda: ids(service, **query, limit=200), lambda found: len(found) >= count)


async def so_many(service: Service, count: int, **query: Any) -> None:
    await eventually(lambda: ids(service, **query), lambda found: len(found) == count)


async def test_the_next_due_comes_first_then_what_ended_last(service: Service) -> None:
    far, near = await service.create(86_400), await service.create(600)
    cancelled = await service.create(300)
    assert (await service.cancel(cancelled)).status_code == 200
    await service.wait_for_state(cancelled, "cancelled")
    delivered = await service.create(0, labels=["a", "b"])
    await service.wait_for_state(delivered, "delivered")

    await listed(service, [near, far, delivered, cancelled])
    await listed(service, [near, far, delivered, cancelled], limit=1)
    await listed(service, [near, far, delivered, cancelled], path=f"/job/{service.db}/c")
    await listed(service, [], path=f"/job/{service.db}/other")
    for state, expected in {
        "scheduled": [near, far],
        "due": [],
        "held": [],
        "delivered": [delivered],
        "failed": [],
        "cancelled": [cancelled],
    }.items():
        await listed(service, expected, state=state)
    job = (await read(service, state="delivered"))["jobs"][0]
    assert now_ms(-600) < job.pop("created_at") <= job.pop("ended_at") <= now_ms(60)
    assert job == {
        "collection": "c",
        "id": delivered,
        "trigger_time": (await service.find(delivered))["trigger_time"],
        "route": ROUTE,
        "state": "delivered",
        "labels": ["a", "b"],
    }


async def test_filters_are_exact_to_the_letter(alone: Alone) -> None:
    service, _ = alone
    await service.add_route("http://127.0.0.1:1/", "Hook")
    base = now_ms(3600)
    for number, (job_id, route) in enumerate([("a_1", "hook"), ("aX1", "hook"), ("A_1", "Hook"), ("b", "hook")]):
        body = {"id": job_id, "trigger_time": base + number, "route": route, "labels": [f"n={number}", "All", job_id]}
        assert (await service.api.post(service.jobs, json=body)).status_code == 200
    await known(service, 4)
    c = f"/job/{service.db}/c"

    assert await ids(service, path=c, id_prefix="a") == ["a_1", "aX1"]
    assert await ids(service, path=c, id_prefix="a_") == ["a_1"]
    assert await ids(service, route="Hook") == ["A_1"]
    assert await ids(service, label="All") == ["a_1", "aX1", "A_1", "b"]
    assert await ids(service, label="all") == []
    assert await ids(service, label="n=1") == ["aX1"]
    assert await ids(service, label="A_1", route="hook") == []
    assert await ids(service, due_from=base + 1, due_to=base + 3) == ["aX1", "A_1"]
    assert await ids(service, due_from=base + 3) == ["b"]
    assert await ids(service, due_to=base) == []
    assert await ids(service, created_by="nobody") == []
    assert await ids(service, path=f"/job/{service.db.upper()}/c") == []


ODD_LABELS = ["100%", "_", "a b", "café", "cafe", "漢字", "🎲=6", "a:b/c#d", "-x", "NOT", "*", "(a)", "x" * 64, "!"]


async def test_labels_of_any_kind_are_found(alone: Alone) -> None:
    service, _ = alone
    created = {label: await service.create(3600, labels=[label, "other"]) for label in ODD_LABELS}
    await known(service, len(created))

    for label, job_id in created.items():
        (job,) = await read_all(service, label=label)
        assert (job["id"], job["labels"]) == (job_id, [label, "other"])


@pytest.mark.parametrize("label", ["", " a", "a ", "it's", '"', "a\\b", "a?", "a\u2661b", "\n", "\x00", "x" * 65])
async def test_a_label_that_could_not_be_found_is_refused(alone: Alone, label: str) -> None:
    service, _ = alone
    body = {"id": new_id(), "trigger_time": now_ms(60), "route": ROUTE, "labels": [label]}

    assert refused(await service.api.post(service.jobs, json=body)) == MALFORMED
    assert refused(await service.api.get(f"/job/{service.db}", params={"label": label})) == MALFORMED


async def test_many_jobs_of_one_millisecond_are_listed_once_each(alone: Alone) -> None:
    service, _ = alone
    at = now_ms(7200)
    crowd = [await service.create(0, trigger_time=at) for _ in range(120)]
    first = await service.create(60)
    last = await service.create(9000)
    await known(service, 122)

    found = await ids(service, limit=50)

    assert (found[0], found[-1]) == (first, last)
    assert Counter(found) == Counter([first, last, *crowd])


async def test_what_stays_is_listed_once_while_others_come_and_go(service: Service) -> None:
    staying = [await service.create(600 + 30 * number) for number in range(12)]
    going = [await service.create(615 + 30 * number) for number in range(12)]
    await known(service, 24)
    found: list[str] = []
    page = await read(service, limit=3)
    while True:
        found += [job["id"] for job in page["jobs"]]
        if "next" not in page:
            break
        if going:
            assert (await service.cancel(going.pop())).status_code == 200
            await service.create(500 + 10 * len(going))
        page = await read(service, limit=3, cursor=page["next"])

    assert max(Counter(found).values()) == 1
    assert set(staying) <= set(found)


async def test_a_job_that_is_moved_or_relabelled_is_listed_as_it_is_now(service: Service) -> None:
    moved, other = await service.create(60, labels=["before"]), await service.create(120)
    await listed(service, [moved, other])

    assert (await service.change(moved, 600, labels=["after"])).status_code == 200

    await listed(service, [other, moved])
    await listed(service, [moved], label="after")
    await listed(service, [], label="before")
    assert (await service.change(moved, 600)).status_code == 200
    await listed(service, [], label="after")


async def test_held_jobs_are_not_due(service: Service) -> None:
    assert (await service.api.post(f"/route/{service.db}/{ROUTE}/pause")).status_code == 200
    held = await service.create(0)
    await service.add_route("http://127.0.0.1:1/", "dead")
    due = await service.create(0, route="dead")

    await listed(service, [held], state="held")
    await listed(service, [due], state="due")
    counts = await eventually(
        lambda: read(service, path=f"/count/{service.db}", due_from=now_ms(-3600)), lambda found: found["states"]["due"]
    )
    assert (counts["states"]["held"], counts["states"]["due"], counts["states"]["scheduled"]) == (1, 1, 0)


async def test_a_job_that_was_created_again_is_listed_as_it_is_now(service: Service) -> None:
    job_id = await service.create(600)
    await service.cancel(job_id)
    await listed(service, [job_id], state="cancelled")

    await service.create(900, job_id=job_id)

    await listed(service, [job_id], state="scheduled")
    await listed(service, [], state="cancelled")
    assert await ids(service) == [job_id]


async def test_jobs_from_before_the_attributes_are_listed(alone: Alone, client: Client) -> None:
    service, settings = alone
    job = Job(db=service.db, collection="c", id="old", trigger_time=now_ms(3600), route=ROUTE, meta=b"null")  # type: ignore[arg-type]
    await client.start_workflow(
        stored_names.JOB,
        job,
        id=job.workflow_id,
        task_queue=settings.task_queue,
        start_delay=timedelta(hours=1),
        search_attributes=TypedSearchAttributes(
            [SearchAttributePair(ROUTE_KEY, job.route_key), SearchAttributePair(TRIGGER_TIME, job.trigger_at)]
        ),
    )

    await listed(service, ["old"])
    await listed(service, ["old"], path=f"/job/{service.db}/c", state="scheduled")
    assert await ids(service, path=f"/job/{service.db}/other") == []
    for filter_ in ({}, {"collection": "c"}, {"route": ROUTE}):
        assert await scheduled(service, **filter_) == 1


async def test_a_continued_job_keeps_when_it_was_created(cut: Service, client: Client) -> None:
    job_id = await cut.create(3600)
    await known(cut, 1)
    (before,) = await read_all(cut)
    first = await client.get_workflow_handle(f"{cut.db}/c/{job_id}").describe()

    async def is_continued() -> bool:
        await cut.change(job_id, 3600)
        return (await client.get_workflow_handle(first.id).describe()).run_id != first.run_id

    await eventually(is_continued)

    (after,) = await eventually(
        lambda: read_all(cut), lambda jobs: jobs and jobs[0]["trigger_time"] != before["trigger_time"]
    )
    assert after["created_at"] == before["created_at"]


class Counting:
    """A client of Temporal that may be asked for lists and counts only, and counts them."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.asked = 0

    def list_workflows(self, query: str, **options: Any) -> Any:
        self.asked += 1
        return self._client.list_workflows(query, **options)

    async def count_workflows(self, query: str) -> Any:
        self.asked += 1
        return await self._client.count_workflows(query)


async def test_a_page_takes_a_few_queries_and_no_describe(
    service: Service, client: Client, another: AnotherWorker
) -> None:
    for number in range(6):
        await service.create(60 * number + 60)
    done = await service.create(0)
    await service.wait_for_state(done, "delivered")
    await listed(service, [done], state="delivered")
    counting: Any = Counting(client)

    whole = await list_jobs(
        counting, another.ledger.states, JobFilter(db=service.db), None, limit=50, now=datetime.now(UTC)
    )
    # What is due within a day, and the rest, what has ended, and later runs of that.
    assert (len(whole.jobs), whole.next, counting.asked) == (7, None, 4)

    counting.asked = 0
    part = await list_jobs(
        counting, another.ledger.states, JobFilter(db=service.db), None, limit=2, now=datetime.now(UTC)
    )
    assert len(part.jobs) == 2
    assert part.next
    assert counting.asked <= 8
    counting.asked = 0
    await list_jobs(
        counting, another.ledger.states, JobFilter(db=service.db), part.next, limit=2, now=datetime.now(UTC)
    )
    assert counting.asked <= 3


async def test_a_cursor_is_of_use_for_its_own_list_only(alone: Alone, api: httpx.AsyncClient) -> None:
    service, _ = alone
    for number in range(3):
        await service.create(60 + number, labels=["x"])
    await known(service, 3)
    cursor = (await read(service, limit=1))["next"]
    db = service.db

    assert len((await read(service, limit=200, cursor=cursor))["jobs"]) == 2
    for path in (f"/job/{db}/c", f"/job/{db}x", f"/failed/{db}", f"/route/{db}"):
        assert refused(await service.api.get(path, params={"cursor": cursor})) == MALFORMED, path
    for query in ({"label": "x"}, {"state": "scheduled"}, {"due_from": 1}, {"route": ROUTE}, {"created_by": "k"}):
        answer = await service.api.get(f"/job/{db}", params=query | {"cursor": cursor})
        assert refused(answer) == MALFORMED, query
    for forged in (cursor[:-2] + "AA", cursor[::-1], "x", ""):
        assert refused(await service.api.get(f"/job/{db}", params={"cursor": forged})) == MALFORMED, forged


async def test_a_window_that_ends_with_the_epoch_has_no_jobs(alone: Alone) -> None:
    service, _ = alone
    for _ in range(3):
        await service.create(60)
    await known(service, 3)

    assert await ids(service, due_to=0, limit=1) == []
    counts = await read(service, path=f"/count/{service.db}", due_to=0)
    assert counts["states"]["scheduled"] == 0
    assert counts["due_within"] == {"5m": 0, "1h": 0, "24h": 0}


async def test_a_state_that_is_none_is_told_by_the_name_of_its_parameter(service: Service) -> None:
    for path in (f"/job/{service.db}", service.jobs, f"/count/{service.db}"):
        answer = await service.api.get(path, params={"state": "delivering"})

        assert refused(answer) == MALFORMED
        assert answer.json()["error"].startswith("state: it must be one of `scheduled`, ")


async def test_jobs_are_counted_by_state_and_by_when_they_are_due(service: Service) -> None:
    for seconds in (60, 1800, 43_200, 864_000):
        await service.create(seconds, labels=["l"] if seconds == 60 else [])
    done = await service.create(0)
    await service.wait_for_state(done, "delivered")
    await known(service, 5)
    await listed(service, [done], state="delivered")
    path = f"/count/{service.db}"

    counts = await read(service, path=path)

    assert counts["states"] == {
        "scheduled": 4,
        "due": 0,
        "held": 0,
        "delivered": 1,
        "failed": 0,
        "cancelled": 0,
    }
    assert counts["due_within"] == {"5m": 1, "1h": 2, "24h": 3}
    assert now_ms(-60) < counts["as_of"] <= now_ms()
    # Kept for some seconds, for each filter.
    await service.create(120)
    assert (await read(service, path=path))["as_of"] == counts["as_of"]
    assert (await read(service, path=path, label="l"))["states"]["scheduled"] == 1
    assert (await read(service, path=path, state="delivered"))["states"]["scheduled"] == 0
    assert (await read(service, path=path, collection="other"))["states"]["scheduled"] == 0
    assert (await read(service, path=path, collection="c", id_prefix=done))["states"]["delivered"] == 1


async def scheduled(service: Service, **query: Any) -> int:
    counts = await read(service, **({"path": f"/count/{service.db}"} | query))
    return int(counts["states"]["scheduled"])


async def refuse(_: Received) -> bytes:
    return response(500)


async def test_a_state_is_counted_as_it_is_listed(service: Service, receiver: Receiver, client: Client) -> None:
    """Also beside jobs of every other state, of which some are open, too."""
    receiver.answer = refuse
    due = await service.create(0, retry={"waits": [3600]})
    await receiver.wait_for(due)
    failed = await service.create(0, retry={"maximum_attempts": 1})
    await service.wait_for_state(failed, "failed")
    await hold(service, client, 2)
    for _ in range(3):
        await service.create(60)
    assert (await service.cancel(await service.create(60))).status_code == 200
    counts = {"scheduled": 3, "due": 1, "held": 2, "delivered": 0, "failed": 1, "cancelled": 1}
    for state, count in counts.items():
        await so_many(service, count, state=state)

    path = f"/count/{service.db}"
    assert (await read(service, path=path))["states"] == counts
    for state, count in counts.items():
        found = await read(service, path=path, state=state)
        assert found["states"] == dict.fromkeys(counts, 0) | {state: count}
        assert found["due_within"]["5m"] == (3 if state == "scheduled" else 0)


async def test_jobs_of_names_that_differ_in_case_are_counted_apart(alone: Alone) -> None:
    service, _ = alone
    for group in ("c", "C", "C", "cc"):
        body = {"id": new_id(), "trigger_time": now_ms(3600), "route": ROUTE}
        assert (await service.api.post(f"/job/{service.db}/{group}", json=body)).status_code == 200
    await known(service, 4)

    assert [await scheduled(service, collection=group) for group in ("c", "C", "cc", "CC")] == [1, 2, 1, 0]
    assert await scheduled(service) == 4
    for other in (service.db.upper(), service.db.capitalize(), service.db[:-1]):
        assert await scheduled(service, path=f"/count/{other}") == 0


async def test_routes_are_listed_with_how_their_attempts_went(service: Service, receiver: Receiver) -> None:
    await service.add_route("http://127.0.0.1:1/", "dead")
    await service.add_route(receiver.url, "idle")
    done = await service.create(0)
    failed = await service.create(0, route="dead", retry={"maximum_attempts": 1})
    await service.wait_for_state(done, "delivered")
    await service.wait_for_state(failed, "failed")
    assert (await service.api.post(f"/route/{service.db}/idle/pause", json={"reason": "test"})).status_code == 200
    path = f"/route/{service.db}"

    page = await read(service, path=path)

    shown = {route["id"]: route for route in page["routes"]}
    assert list(shown) == ["dead", ROUTE, "idle"]
    assert "next" not in page
    assert (shown["dead"]["attempts"], shown["dead"]["success_rate"]) == (1, 0.0)
    assert (shown[ROUTE]["attempts"], shown[ROUTE]["success_rate"]) == (1, 1.0)
    assert (shown["idle"]["attempts"], "success_rate" in shown["idle"]) == (0, False)
    assert (shown["idle"]["state"], shown["idle"]["reason"]) == ("paused", "test")
    first = await read(service, path=path, limit=2)
    rest = await read(service, path=path, limit=2, cursor=first["next"])
    assert [route["id"] for route in first["routes"] + rest["routes"]] == list(shown)
    assert "next" not in rest


async def test_a_list_knows_who_created_a_job(alone: Alone, client: Client) -> None:
    service, settings = alone
    job = Job(db=service.db, collection="c", id="j", trigger_time=now_ms(3600), route=ROUTE, meta=b"null")  # type: ignore[arg-type]
    await start_job(
        client,
        job,
        task_queue=settings.task_queue,
        reuse=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
        created_by="key1",
    )
    await service.create(60)
    await known(service, 2)

    (found,) = await read_all(service, created_by="key1", state=ListedState.SCHEDULED.value)

    assert (found["id"], found["created_by"]) == ("j", "key1")


async def test_counts_are_shared_by_those_who_ask_at_once_and_kept_for_some_filters_only(
    client: Client, settings: Settings, db: str, another: AnotherWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting: Any = Counting(client)
    lists = JobLists(counting, another.ledger, Vault(settings), settings)

    counts = await asyncio.gather(*(lists.counts(JobFilter(db=db)) for _ in range(20)))

    assert len({id(each) for each in counts}) == 1
    assert counting.asked == 6
    monkeypatch.setattr(job_lists, "MAX_COUNTS_KEPT", 5)
    for number in range(20):
        await lists.counts(JobFilter(db=db, label=str(number), state=ListedState.DELIVERED))
    assert len(lists._counted) <= 5
    monkeypatch.setattr(job_lists, "COUNTS_KEPT", 0.0)
    counting.asked = 0
    await lists.counts(JobFilter(db=db))
    assert counting.asked == 6

"""All jobs that match a filter, cancelled: each as exactly as one by itself, and no other is touched."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import pytest
from msgspec.structs import replace
from temporalio.client import Client, WorkflowExecution, WorkflowHandle
from temporalio.testing import ActivityEnvironment

from activities.cancel_many import CancelsOfMany
from activities.rate_limit import RateLimiter
from api.app import create_app
from devstack.temporal import Temporal
from tests.conftest import serving, working
from tests.support.holds import hold
from tests.support.ledger import AnotherWorker, first_run, taken
from tests.support.postgres_proxy import Cut, PostgresProxy
from tests.support.receiver import Received, Receiver, response
from tests.support.refusals import FORBIDDEN_NAME, MALFORMED
from tests.support.resets import reset
from tests.support.service import ROUTE, Service, a_job, now_ms, refused
from tests.support.waiting import eventually
from tests.support.worker_process import worker_process
from timemachine.domain.cancels import CancelProgress, OpenJobs
from timemachine.domain.job_filter import JobFilter
from timemachine.postgres.delivery_ledger import DeliveryLedger
from timemachine.postgres.pool import open_pool
from timemachine.postgres.route_store import RouteStore
from timemachine.settings import Settings
from timemachine.vault import Vault
from timemachine.webhooks.client import WebhookClient

LABEL = "order=1234"


async def test_the_audit_log_tells_a_label_from_the_rest_of_a_filter(service: Service) -> None:
    await cancel(service, label="nobody route=hook")
    await cancel(service, label="nobody", route="hook")

    entries = (await service.api.get(f"/audit/{service.db}")).json()["entries"]
    targets = [entry["target"] for entry in entries if entry["action"] == "jobs.cancel"]

    assert targets == ['route=hook label="nobody"', 'label="nobody route=hook"']


async def cancel(service: Service, **wanted: Any) -> dict[str, Any]:
    """Start a cancel, and return the operation."""
    answer = await service.api.post(f"/cancel/{service.db}", json=wanted)
    assert answer.status_code == 202, answer.text
    operation: dict[str, Any] = answer.json()
    return operation


async def count(service: Service, **wanted: Any) -> int:
    answer = await service.api.post(f"/cancel/{service.db}?dry_run=true", json=wanted)
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"matched"}
    return int(answer.json()["matched"])


async def until_counted(service: Service, expected: int, **wanted: Any) -> None:
    """Wait until visibility shows as many jobs, which it does a moment late."""
    await eventually(lambda: count(service, **wanted), lambda found: found == expected)


async def find(service: Service, operation_id: str) -> dict[str, Any]:
    answer = await service.api.get(f"/operation/{service.db}/{operation_id}")
    assert answer.status_code == 200, answer.text
    operation: dict[str, Any] = answer.json()
    return operation


async def until_ended(service: Service, operation_id: str, *, limit: float = 60) -> dict[str, Any]:
    return await eventually(
        lambda: find(service, operation_id), lambda operation: operation["state"] != "running", limit=limit
    )


def counts(operation: dict[str, Any]) -> dict[str, Any]:
    return {name: operation.get(name) for name in ("state", "matched", "done", "failed", "delivered")}


def done(matched: int, *, failed: int = 0, delivered: int = 0) -> dict[str, Any]:
    return {
        "state": "done",
        "matched": matched,
        "done": matched - failed,
        "failed": failed,
        "delivered": delivered,
    }


async def state_of(service: Service, job_id: str, collection: str = "c") -> str:
    answer = await service.api.get(f"/job/{service.db}/{collection}/{job_id}")
    return str(answer.json()["state"])


async def test_jobs_with_a_label_are_cancelled_and_no_others(service: Service, receiver: Receiver) -> None:
    mine = [await service.create(3600, labels=[LABEL, "checkout"]) for _ in range(5)]
    others = [
        await service.create(3600, labels=labels) for labels in ([], ["checkout"], [LABEL.upper()], [f"{LABEL}5"])
    ]
    await until_counted(service, 5, label=LABEL)

    operation = await cancel(service, label=LABEL)

    assert operation["kind"] == "cancel"
    assert operation["filter"] == {"label": LABEL}
    assert counts(await until_ended(service, operation["id"])) == done(5)
    assert {await state_of(service, job_id) for job_id in mine} == {"cancelled"}
    assert {await state_of(service, job_id) for job_id in others} == {"scheduled"}
    assert receiver.received == []


async def test_every_part_of_a_filter_is_kept(service: Service, receiver: Receiver) -> None:
    await service.add_route(receiver.url, "other")

    async def a_job_in(collection: str, job_id: str, due_in: float, route: str, *labels: str) -> None:
        job = a_job(due_in, id=job_id, route=route, labels=labels)
        assert (await service.api.post(f"/job/{service.db}/{collection}", json=job)).status_code == 200

    wanted = {"collection": "c", "route": ROUTE, "label": LABEL, "id_prefix": "cart-", "state": "scheduled"}
    window = {"due_from": now_ms(1800), "due_to": now_ms(5400)}
    await a_job_in("c", "cart-1", 3600, ROUTE, LABEL)
    await a_job_in("c", "cart-2", 600, ROUTE, LABEL)
    await a_job_in("c", "cart-3", 7200, ROUTE, LABEL)
    await a_job_in("c", "cart-4", 3600, "other", LABEL)
    await a_job_in("c", "cart-5", 3600, ROUTE)
    await a_job_in("c", "Cart-6", 3600, ROUTE, LABEL)
    await a_job_in("d", "cart-7", 3600, ROUTE, LABEL)
    await until_counted(service, 6, due_from=1, state="scheduled", route=ROUTE)
    assert await count(service, **wanted, **window) == 1

    operation = await cancel(service, **wanted, **window)

    assert operation["filter"] == wanted | window
    assert counts(await until_ended(service, operation["id"])) == done(1)
    left = [await state_of(service, f"cart-{n}", "d" if n == 7 else "c") for n in range(1, 8) if n != 6]
    assert left == ["cancelled", *["scheduled"] * 5]
    assert await state_of(service, "Cart-6") == "scheduled"


async def test_a_dry_run_starts_nothing(service: Service) -> None:
    ids = [await service.create(3600) for _ in range(3)]
    await until_counted(service, 3, collection="c")

    assert await count(service, collection="d") == 0
    assert await count(service, route=ROUTE, due_to=now_ms(7200)) == 3
    assert await count(service, created_by="nobody") == 0

    assert (await service.api.get(f"/operation/{service.db}")).json() == {"operations": []}
    assert {await state_of(service, job_id) for job_id in ids} == {"scheduled"}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"label": ""},
        {"label": None},
        {"label": " x"},
        {"label": "x" * 65},
        {"id_prefix": "x"},
        {"id_prefix": "x", "route": "r"},
        {"state": "delivered"},
        {"state": "SCHEDULED"},
        {"due_from": 1_795_429_472},
        {"due_from": -1},
        {"due_from": 2, "due_to": 2},
        {"route": "r", "extra": 1},
    ],
    ids=str,
)
async def test_a_filter_that_is_none_is_refused(service: Service, body: dict[str, Any]) -> None:
    for query in ("", "?dry_run=true"):
        assert refused(await service.api.post(f"/cancel/{service.db}{query}", json=body)) == MALFORMED


@pytest.mark.parametrize("body", [{"collection": "a b"}, {"route": "a'b"}, {"collection": "c", "id_prefix": "a/b"}])
async def test_a_name_in_a_filter_that_is_not_allowed(service: Service, body: dict[str, Any]) -> None:
    assert refused(await service.api.post(f"/cancel/{service.db}", json=body)) == FORBIDDEN_NAME


async def test_nothing_matches(service: Service) -> None:
    (other,) = [await service.create(3600)]

    operation = await cancel(service, label="nobody has it")

    assert counts(await until_ended(service, operation["id"])) == done(0)
    assert await state_of(service, other) == "scheduled"


async def test_what_came_too_late_is_counted(
    service: Service, client: Client, another: AnotherWorker, receiver: Receiver
) -> None:
    """One was taken, of which Temporal does not know yet; one fails under way; one is delivered while it is asked."""
    waiting, taken_before = await service.create(3600, labels=[LABEL]), await service.create(3600, labels=[LABEL])
    await until_counted(service, 2, label=LABEL)
    run = await first_run(client, service, taken_before)
    await another.end(run, uuid.uuid4(), taken())

    operation = await cancel(service, label=LABEL)

    assert counts(await until_ended(service, operation["id"])) == done(2, failed=1, delivered=1)
    assert await state_of(service, waiting) == "cancelled"
    assert await state_of(service, taken_before) == "delivered"


async def test_an_attempt_in_flight_does_not_hold_the_others_up(service: Service, receiver: Receiver) -> None:
    """Its end counts: one is taken, one is refused and so cancelled."""
    answered = asyncio.Event()

    async def slow(received: Received) -> bytes:
        await answered.wait()
        return response(200 if received.job_id == in_flight[0] else 500)

    receiver.answer = slow
    in_flight = [f"{name}-{uuid.uuid4().hex}" for name in ("taken", "refused")]
    for job_id in in_flight:
        await service.create(0, job_id=job_id, labels=[LABEL])
        await receiver.wait_for(job_id)
    waiting = [await service.create(3600, labels=[LABEL]) for _ in range(3)]
    await until_counted(service, 5, label=LABEL)

    operation = await cancel(service, label=LABEL)

    for job_id in waiting:
        await service.wait_for_state(job_id, "cancelled")
    seen = await eventually(lambda: find(service, operation["id"]), lambda seen: seen.get("done") == 3)
    assert counts(seen) == {"state": "running", "matched": 5, "done": 3, "failed": 0, "delivered": 0}
    answered.set()
    assert counts(await until_ended(service, operation["id"])) == done(5, failed=1, delivered=1)
    assert [await state_of(service, job_id) for job_id in in_flight] == ["delivered", "cancelled"]
    assert len(receiver.received) == 2


async def test_held_jobs_are_cancelled(service: Service, client: Client, receiver: Receiver) -> None:
    held = await hold(service, client, 3)
    waiting = await service.create(3600)
    await until_counted(service, 3, state="held")
    assert await count(service, state="due") == 0

    operation = await cancel(service, state="held")

    assert counts(await until_ended(service, operation["id"])) == done(3)
    await service.api.post(f"/route/{service.db}/{ROUTE}/resume", json={"spread": 0})
    assert {await state_of(service, job_id) for job_id in held} == {"cancelled"}
    assert await state_of(service, waiting) == "scheduled"
    assert receiver.received == []


async def test_jobs_of_a_route_that_is_gone_are_cancelled(service: Service) -> None:
    ids = [await service.create(3600) for _ in range(2)]
    await until_counted(service, 2, route=ROUTE)
    assert (await service.api.delete(f"/route/{service.db}/{ROUTE}?force=true")).status_code == 200

    operation = await cancel(service, route=ROUTE)

    assert counts(await until_ended(service, operation["id"])) == done(2)
    assert {await state_of(service, job_id) for job_id in ids} == {"cancelled"}


async def test_jobs_that_were_created_meanwhile_are_not_touched(service: Service, receiver: Receiver) -> None:
    """Neither new ones nor one that was cancelled by it and then created again."""
    answered = asyncio.Event()

    async def slow(_: Received) -> bytes:
        await answered.wait()
        return response(500)

    receiver.answer = slow
    in_flight = await service.create(0, labels=[LABEL])
    await receiver.wait_for(in_flight)
    old = await service.create(3600, labels=[LABEL])
    await until_counted(service, 2, label=LABEL)
    operation = await cancel(service, label=LABEL)
    await service.wait_for_state(old, "cancelled")

    new = await service.create(3600, labels=[LABEL])
    await service.create(3600, labels=[LABEL], job_id=old)
    await until_counted(service, 3, label=LABEL)  # with the one that holds the cancel open
    answered.set()

    assert counts(await until_ended(service, operation["id"])) == done(2)
    assert await state_of(service, new) == "scheduled"
    assert await state_of(service, old) == "scheduled"


async def test_two_equal_cancels_are_one(service: Service, receiver: Receiver) -> None:
    answered = asyncio.Event()

    async def slow(_: Received) -> bytes:
        await answered.wait()
        return response(500)

    receiver.answer = slow
    in_flight = await service.create(0, labels=[LABEL])
    await receiver.wait_for(in_flight)
    await until_counted(service, 1, label=LABEL)

    operations = await asyncio.gather(*(cancel(service, label=LABEL) for _ in range(5)))
    other = await cancel(service, label=LABEL, collection="c")

    assert len({operation["id"] for operation in operations}) == 1
    assert other["id"] != operations[0]["id"]
    answered.set()
    for operation in (operations[0], other):
        assert counts(await until_ended(service, operation["id"])) == done(1)
    again = await cancel(service, label=LABEL)
    assert again["id"] != operations[0]["id"]
    assert counts(await until_ended(service, again["id"])) == done(0)
    assert counts(await find(service, operations[0]["id"])) == done(1)


async def cancel_as_of(at: datetime, client: Client, settings: Settings, service: Service) -> CancelProgress:
    """Do what a cancel does that was started at a time."""
    jobs = OpenJobs(filter=JobFilter(db=service.db, label=LABEL), at=at)
    async with open_pool(settings) as pool:
        ledger = DeliveryLedger(pool, RouteStore(pool, Vault(settings)), attempt_time=1)
        cancels = CancelsOfMany(client, ledger, RateLimiter(100))
        return await ActivityEnvironment().run(cancels.cancel_matching, jobs)


async def continue_as_new(service: Service, job: WorkflowHandle[Any, Any]) -> WorkflowExecution:
    """Change a job until it goes on as a new run, and return that."""
    first = await job.describe()
    async with asyncio.timeout(30):
        while (latest := await job.describe()).run_id == first.run_id:
            await service.change(job.id.split("/")[2], 3600, labels=[LABEL])
    return latest


async def test_a_job_that_has_continued_as_new_meanwhile_is_cancelled(
    cut: Service, client: Client, settings: Settings
) -> None:
    """Its present run was started after the cancel was. Another job like it was not there."""
    there, ended, later = [f"{name}-{uuid.uuid4().hex}" for name in ("there", "ended", "later")]
    jobs = {name: client.get_workflow_handle(f"{cut.db}/c/{name}") for name in (there, ended, later)}
    for job_id in (there, ended):
        await cut.create(3600, job_id=job_id, labels=[LABEL])
    await until_counted(cut, 2, label=LABEL)
    at = datetime.now(UTC)
    await cut.create(3600, job_id=later, labels=[LABEL])
    for job in jobs.values():
        assert (await continue_as_new(cut, job)).start_time > at
    await cut.change(ended, 0, labels=[LABEL])
    await cut.wait_for_state(ended, "delivered")
    await until_counted(cut, 2, label=LABEL)

    progress = await cancel_as_of(at, client, settings, cut)

    assert progress == CancelProgress(matched=2, cancelled=1, delivered=1)
    assert await state_of(cut, there) == "cancelled"
    assert await state_of(cut, later) == "scheduled"


async def test_a_job_that_an_operator_has_reset_meanwhile_is_cancelled_and_one_that_was_terminated_is_counted(
    service: Service, client: Client, settings: Settings
) -> None:
    """Both runs are terminated, and the reset one goes on as another."""
    ids = [await service.create(3600, labels=[LABEL]) for _ in range(4)]
    jobs = [client.get_workflow_handle(f"{service.db}/c/{job_id}") for job_id in ids]
    for job_id in ids:
        assert (await service.change(job_id, 3600, labels=[LABEL])).status_code == 200
    await until_counted(service, 4, label=LABEL)
    at = datetime.now(UTC)
    await reset(client, jobs[0])
    await jobs[1].terminate()
    await jobs[2].terminate()
    await service.create(3600, job_id=ids[2], labels=[LABEL])
    await until_counted(service, 3, label=LABEL)

    progress = await cancel_as_of(at, client, settings, service)

    assert progress == CancelProgress(matched=4, cancelled=4)
    assert [await state_of(service, job_id) for job_id in ids] == ["cancelled", "cancelled", "scheduled", "cancelled"]


async def test_an_attempt_that_was_lost_with_its_worker_is_counted_as_failed(
    alone: tuple[Service, Settings], client: Client, another: AnotherWorker
) -> None:
    """Nobody knows whether the receiver took the job. No worker of the job is there, so its workflow does not close."""
    service, settings = alone
    waiting = await service.create(3600, labels=[LABEL])
    job_id = await service.create(3600, labels=[LABEL])
    run = await first_run(client, service, job_id)
    await another.begin(service.db, run)
    await another.die(run)
    await until_counted(service, 2, label=LABEL)

    progress = await cancel_as_of(datetime.now(UTC), client, settings, service)

    assert progress == CancelProgress(matched=2, cancelled=1, failed=1)
    assert await state_of(service, waiting) == "cancelled"
    assert await state_of(service, job_id) == "failed"


@asynccontextmanager
async def serving_alone(settings: Settings, temporal: Temporal, receiver: Receiver, db: str) -> AsyncIterator[Service]:
    """An API whose task queue no worker serves yet."""
    with pytest.MonkeyPatch.context() as env:
        env.setenv("TEMPORAL_ADDRESS", temporal.address)
        async with serving(create_app(settings)) as api:
            service = Service(api, db)
            await service.add_route(receiver.url)
            yield service


@pytest.fixture
def own(settings: Settings) -> Settings:
    """Settings with a task queue that no other worker serves."""
    return replace(settings, task_queue=f"many-{uuid.uuid4().hex}", bulk_per_second=40)


async def create_many(service: Service, count: int, **fields: Any) -> list[str]:
    ids: list[str] = []
    while len(ids) < count:
        ids += await asyncio.gather(*(service.create(3600, **fields) for _ in range(min(25, count - len(ids)))))
    return ids


async def states(service: Service, ids: list[str]) -> set[str]:
    return set(await asyncio.gather(*(state_of(service, job_id) for job_id in ids)))


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("client")  # which registers the search attributes
async def test_it_goes_on_after_its_worker_was_killed_half_way(
    own: Settings, temporal: Temporal, receiver: Receiver, db: str
) -> None:
    jobs, own = 50, replace(own, bulk_per_second=10)
    async with serving_alone(own, temporal, receiver, db) as service:
        mine, others = await create_many(service, jobs, labels=[LABEL]), await create_many(service, 10)
        await until_counted(service, jobs, label=LABEL)
        operation_id = (await cancel(service, label=LABEL))["id"]
        async with worker_process(own, temporal.address) as process:
            await eventually(lambda: find(service, operation_id), lambda seen: seen.get("done", 0) > 15, limit=90)
            process.kill()
        killed = await find(service, operation_id)
        later = await create_many(service, 10, labels=[LABEL])

        assert killed["state"] == "running"
        assert killed["matched"] == jobs
        async with worker_process(own, temporal.address):
            assert counts(await until_ended(service, operation_id, limit=180)) == done(jobs)
        assert await states(service, mine) == {"cancelled"}
        assert await states(service, others + later) == {"scheduled"}
        assert receiver.received == []


async def test_it_stops_in_the_middle(
    own: Settings, client: Client, temporal: Temporal, receiver: Receiver, db: str
) -> None:
    jobs = 50
    async with (
        serving_alone(replace(own, bulk_per_second=10), temporal, receiver, db) as service,
        open_pool(own) as pool,
        WebhookClient(timeout=5, max_connections=9, address_guard=own.address_guard) as webhooks,
        working(client, pool, webhooks, replace(own, bulk_per_second=10)),
    ):
        ids = await create_many(service, jobs, labels=[LABEL])
        await until_counted(service, jobs, label=LABEL)
        operation_id = (await cancel(service, label=LABEL))["id"]
        path = f"/operation/{db}/{operation_id}"
        await eventually(lambda: find(service, operation_id), lambda seen: seen.get("done", 0) > 5)

        assert (await service.api.delete(path)).json() == {"status": "ok"}

        stopped = await until_ended(service, operation_id)
        assert stopped["state"] == "stopped"
        assert stopped["matched"] == jobs
        assert 5 < stopped["done"] < jobs
        after = [await state_of(service, job_id) for job_id in ids]
        assert after.count("cancelled") == stopped["done"]
        assert after.count("scheduled") == jobs - stopped["done"]
        assert (await service.api.delete(path)).json() == {"status": "ok"}
        assert await find(service, operation_id) == stopped


async def test_it_stops_while_no_worker_is_there(
    own: Settings, client: Client, temporal: Temporal, receiver: Receiver, db: str
) -> None:
    """Before its activity was begun; and nothing is cancelled."""
    async with serving_alone(own, temporal, receiver, db) as service:
        (job_id,) = await create_many(service, 1, labels=[LABEL])
        await until_counted(service, 1, label=LABEL)
        operation = await cancel(service, label=LABEL)
        assert "matched" not in operation
        assert (await service.api.delete(f"/operation/{db}/{operation['id']}")).status_code == 200
        async with (
            open_pool(own) as pool,
            WebhookClient(timeout=5, max_connections=9, address_guard=own.address_guard) as webhooks,
            working(client, pool, webhooks, own),
        ):
            seen = await until_ended(service, operation["id"])
        assert seen["state"] == "stopped"
        assert seen.get("done", 0) == 0
        assert await state_of(service, job_id) == "scheduled"


@pytest.mark.parametrize("cut", list(Cut))
async def test_it_goes_on_when_postgres_was_away_in_the_middle(
    own: Settings, client: Client, temporal: Temporal, receiver: Receiver, db: str, cut: Cut
) -> None:
    dsn = urlsplit(own.postgres_dsn or "")
    proxy = PostgresProxy(dsn.hostname or "", dsn.port or 0, "delivery_ledger")
    port = await proxy.start()
    address = dsn._replace(netloc=f"{dsn.netloc.rpartition(':')[0]}:{port}", query="sslmode=disable").geturl()
    behind = replace(own, postgres_dsn=address)
    async with (
        serving_alone(own, temporal, receiver, db) as service,
        open_pool(behind) as pool,
        WebhookClient(timeout=5, max_connections=9, address_guard=own.address_guard) as webhooks,
        working(client, pool, webhooks, behind),
    ):
        ids = await create_many(service, 10, labels=[LABEL])
        await until_counted(service, 10, label=LABEL)
        proxy.cut(cut, skipped=4)

        operation = await cancel(service, label=LABEL)

        assert counts(await until_ended(service, operation["id"])) == done(10)
        assert proxy.has_cut
        assert await states(service, ids) == {"cancelled"}
    proxy.stop()


async def test_everything_of_a_collection_is_cancelled(service: Service) -> None:
    ids = await create_many(service, 30)
    await until_counted(service, 30, collection="c")

    operation = await cancel(service, collection="c")

    assert counts(await until_ended(service, operation["id"])) == done(30)
    assert await states(service, ids) == {"cancelled"}
    assert await count(service, collection="c") == 0

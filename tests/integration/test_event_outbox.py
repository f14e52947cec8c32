"""An event is written with what it tells of, once, and only where its db asks for it. No worker sends any here."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import msgspec
import pytest
from asyncpg import Pool
from msgspec.structs import replace

from tests.integration.test_ledger import (
    CLAIMS,
    DUE,
    ENDS,
    MINE,
    NUMBER,
    OTHERS,
    ROWS,
    SIGHTED,
    Run,
    an_end,
    logged_of,
    name_of,
)
from tests.support import ledger_rules as rules
from tests.support.cases import each_case
from tests.support.ledger_rules import Row
from tests.support.own_database import own_database
from tests.support.waiting import eventually
from timemachine.domain.errors import NoSuchRouteError, RouteInUseError, UnavailableError
from timemachine.domain.events import EventKind, EventSettings, JobFacts
from timemachine.domain.jobs import to_ms
from timemachine.domain.outcomes import LedgerRow, RowState
from timemachine.domain.routes import RestRoute, RouteNews, RouteState
from timemachine.domain.stored_names import EVENTS_COLLECTION
from timemachine.postgres import delivery_ledger
from timemachine.postgres.delivery_ledger import AttemptReport, Begun, RouteClosed
from timemachine.postgres.event_store import EventStore
from timemachine.postgres.migrate import migrate
from timemachine.postgres.pool import open_pool
from timemachine.postgres.route_store import RouteStore, write_news
from timemachine.settings import Settings
from timemachine.vault import Vault

ALL = EventSettings(route_id="ops", kinds=tuple(EventKind))
LEASE = timedelta(seconds=30)
WAITING_FOR_A_ROW = "SELECT true FROM pg_locks WHERE NOT granted AND locktype = 'transactionid' LIMIT 1"
WRITTEN = {RowState.TAKEN: EventKind.JOB_DELIVERED, RowState.FAILED: EventKind.JOB_FAILED}


@pytest.fixture(scope="module")
async def own_settings(settings: Settings) -> AsyncIterator[Settings]:
    """A database of the tests' own, whose events no worker takes."""
    async with own_database(settings) as own:
        await migrate(own)
        yield own


@pytest.fixture(scope="module")
async def pool(own_settings: Settings) -> AsyncIterator[Pool]:
    async with open_pool(own_settings) as pool:
        yield pool


@pytest.fixture
async def store(pool: Pool, settings: Settings, db: str) -> RouteStore:
    store = RouteStore(pool, Vault(settings))
    for route in ("hook", "ops"):
        await store.add(db, RestRoute(id=route, webhook_url="http://x"), {})
    return store


@pytest.fixture
async def events(pool: Pool, store: RouteStore, db: str) -> EventStore:
    """The events of a db that asks for all."""
    events = EventStore(pool)
    await events.replace(db, ALL)
    return events


class RunOfJob(Run):
    """A run of which events may tell."""

    @property
    def job(self) -> JobFacts:
        return JobFacts(db=self.db, collection="c", id=self.id, trigger_time=7, route="hook")

    async def begin(
        self,
        claim: str = MINE,
        *,
        expired_claim: str | None = None,
        route: str = "hook",
        attempts_made: int = 0,
        holds: int | None = None,
    ) -> Begun | LedgerRow | RouteClosed:
        return await self.ledger.begin(
            self.id,
            self.db,
            route,
            uuid.UUID(claim),
            expired_claim=expired_claim,
            attempts_made=attempts_made,
            holds=holds,
            job=self.job,
        )

    async def end(self, how: str, claim: str = MINE) -> LedgerRow | None:
        return await self.ledger.end(self.id, uuid.UUID(claim), an_end(self, how), job=self.job)

    async def cancel(self, *, expired_claim: str | None = None) -> LedgerRow:
        return await self.ledger.cancel(self.id, due=DUE, expired_claim=expired_claim, job=self.job)

    async def check_events(self, before: Row | None, after: Row | None) -> None:
        """Compare the events with what the rules say that has become of the row."""
        is_decided = after is not None and (before is None or before.state != after.state)
        kind = WRITTEN.get(RowState(after.state)) if after and is_decided else None
        found = [(event["kind"], event["what"]) for event in await written(self.pool, self.id)]
        assert [told for told, _ in found] == ([kind] if kind else [])
        if kind:
            assert after
            outcome = msgspec.to_builtins(ENDS[after.end or ""])
            job = msgspec.to_builtins(self.job)
            assert found[0][1] == {"job": job, "attempts": after.attempts_made, "outcome": outcome}


@pytest.fixture
def own_claim() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def run(pool: Pool, store: RouteStore, events: EventStore, db: str) -> RunOfJob:
    return RunOfJob(pool, store, db)


async def written(pool: Pool, run_id: str) -> list[dict[str, Any]]:
    """Return the events about a run's job."""
    rows = await pool.fetch("SELECT kind, what FROM events WHERE what -> 'job' ->> 'id' = $1 ORDER BY at", run_id)
    return [{"kind": row["kind"], "what": msgspec.json.decode(row["what"])} for row in rows]


async def about_route(pool: Pool, db: str) -> list[tuple[str, dict[str, Any]]]:
    """Return kind and content of the events about a db's routes."""
    rows = await pool.fetch("SELECT kind, what FROM events WHERE db = $1 AND kind LIKE 'route.%' ORDER BY at", db)
    return [(row["kind"], msgspec.json.decode(row["what"])) for row in rows]


@each_case("row", ROWS, ids=name_of)
async def test_a_run_that_begin_decides_is_told_once(run: RunOfJob, row: Row | None) -> None:
    for claim, expired_claim in CLAIMS:
        await run.put(row)
        expected, _ = rules.begin(row, claim, expired_claim)

        await run.begin(claim, expired_claim=expired_claim)
        await run.check_events(row, expected)

        await run.begin(claim, expired_claim=expired_claim)
        await run.check_events(row, expected)


@each_case("row", ROWS, ids=name_of)
async def test_a_run_that_is_given_back_on_a_closed_route_is_told_once(
    run: RunOfJob, store: RouteStore, row: Row | None
) -> None:
    await store.set_state(run.db, "hook", RouteState.PAUSED)
    for claim, expired_claim in CLAIMS:
        await run.put(row)
        expected, _ = rules.begin_on_closed(row, claim, expired_claim)

        await run.begin(claim, expired_claim=expired_claim)

        await run.check_events(row, expected)


@each_case("row", ROWS, ids=name_of)
async def test_a_run_that_cancel_decides_is_told_once(run: RunOfJob, row: Row | None) -> None:
    for expired_claim in SIGHTED:
        await run.put(row)
        expected = rules.cancel(row, expired_claim)

        await run.cancel(expired_claim=expired_claim)
        await run.check_events(row, expected)

        await run.cancel(expired_claim=expired_claim)
        await run.check_events(row, rules.cancel(expected, expired_claim))


@each_case("row", ROWS, ids=name_of)
async def test_a_run_that_end_decides_is_told_once(run: RunOfJob, row: Row | None) -> None:
    for claim, how in product((OTHERS, MINE), ("taken", "again", "final", "not made")):
        await run.put(row)
        expected = rules.end(row, claim, how, NUMBER)

        await run.end(how, claim)
        await run.check_events(row, expected)

        await run.end(how, claim)
        await run.check_events(row, expected)


async def test_many_who_decide_at_once_tell_it_once(run: RunOfJob) -> None:
    for how in ("taken", "final"):
        await run.put(None)
        await run.begin()
        await asyncio.gather(*(run.end(how) for _ in range(10)))
        assert len(await written(run.pool, run.id)) == 1


async def test_a_job_that_was_taken_after_all_is_told_to_be_delivered(run: RunOfJob) -> None:
    """Its receiver's answer came after the attempt had been given up."""
    await run.begin()
    await run.expire()
    assert (await run.cancel(expired_claim=MINE)).state is RowState.FAILED
    await run.end("taken")

    assert [event["kind"] for event in await written(run.pool, run.id)] == ["job.failed", "job.delivered"]


@pytest.mark.parametrize(
    ("asked", "job"),
    [
        (None, {}),
        (EventSettings(route_id="ops", kinds=(EventKind.JOB_DELIVERED, EventKind.ROUTE_DISABLED)), {}),
        (EventSettings(route_id="hook", kinds=tuple(EventKind)), {}),
        (ALL, {"route": "ops"}),
        (ALL, {"collection": EVENTS_COLLECTION}),
        (ALL, {"db": "another"}),
    ],
    ids=["none", "others", "on the events' route", "the same", "an event's own job", "another db's"],
)
async def test_nothing_is_told_that_was_not_asked_for(
    run: RunOfJob, events: EventStore, asked: EventSettings | None, job: dict[str, str]
) -> None:
    await (events.replace(run.db, asked) if asked else events.remove(run.db))
    facts = replace(run.job, **job)
    await run.begin()

    row = await run.ledger.end(run.id, uuid.UUID(MINE), an_end(run, "final"), job=facts)

    assert row
    assert row.state is RowState.FAILED
    assert await written(run.pool, run.id) == []


async def gone(run: RunOfJob, claim: str = MINE) -> LedgerRow | None:
    """Write the end of an attempt whose receiver is gone."""
    return await _end_with_news(run, claim, "final", RouteNews.GONE, None)


async def taken(run: RunOfJob, since: datetime | None, claim: str = MINE) -> LedgerRow | None:
    """Write the end of an attempt that was taken, and began when the route had failed since then."""
    return await _end_with_news(run, claim, "taken", RouteNews.RECOVERED, since)


async def _end_with_news(
    run: RunOfJob, claim: str, how: str, news: RouteNews, since: datetime | None
) -> LedgerRow | None:
    logged = logged_of(run, ENDS[how])
    end = AttemptReport(
        counts=True, attempts=NUMBER, outcome=ENDS[how], logged=logged, route_news=news, failing_since=since
    )
    return await run.ledger.end(run.id, uuid.UUID(claim), end, job=run.job)


DISABLED = {"route": "hook", "reason": "the receiver answered 410 Gone"}


async def test_a_receiver_that_is_gone_disables_its_route_and_is_told_once(run: RunOfJob, store: RouteStore) -> None:
    for _ in range(2):
        await run.begin()
        await gone(run)
        await gone(run)
        run.id = uuid.uuid4().hex

    assert (await store.find(run.db, "hook")).status.state is RouteState.DISABLED
    assert await about_route(run.pool, run.db) == [("route.disabled", DISABLED | {"db": run.db})]


async def test_an_end_and_what_it_means_for_its_route_are_written_together_or_not_at_all(
    run: RunOfJob, store: RouteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a worker dies in between: nobody else would disable the route, or tell of it."""

    async def cut(*_: object) -> None:
        raise UnavailableError

    await run.begin()
    with monkeypatch.context() as patched:
        patched.setattr(delivery_ledger, "write_news", cut)
        with pytest.raises(UnavailableError):
            await gone(run)
    row = await run.find()
    assert row
    assert row.state is RowState.UNDER_WAY
    assert await written(run.pool, run.id) == []
    assert await run.log() == []

    await gone(run)

    assert [event["kind"] for event in await written(run.pool, run.id)] == ["job.failed"]
    assert (await store.find(run.db, "hook")).status.state is RouteState.DISABLED


async def test_a_route_that_fails_for_too_long_is_told_once(run: RunOfJob, store: RouteStore) -> None:
    await asyncio.gather(*(store.note_failure(run.db, "hook", disable_after=timedelta()) for _ in range(10)))
    await store.note_failure(run.db, "hook", disable_after=timedelta())

    reason = "everything failed for 0 hours"
    disabled = {"db": run.db, "route": "hook", "reason": reason}
    assert (await store.find(run.db, "hook")).status.reason == reason
    assert await about_route(run.pool, run.db) == [("route.disabled", disabled)]


async def fail(store: RouteStore, db: str) -> None:
    await store.note_failure(db, "hook", disable_after=timedelta(hours=1))


async def failing_since(pool: Pool, db: str) -> datetime | None:
    since: datetime | None = await pool.fetchval("SELECT failing_since FROM routes WHERE db = $1 AND id = 'hook'", db)
    return since


def recovered(db: str, by: str, since: datetime) -> tuple[str, dict[str, Any]]:
    return "route.recovered", {"db": db, "route": "hook", "by": by, "since": to_ms(since)}


async def test_the_first_success_after_failures_is_told_once(run: RunOfJob, store: RouteStore) -> None:
    await fail(store, run.db)
    since = await failing_since(run.pool, run.db)
    assert since

    for _ in range(2):
        await run.begin()
        await asyncio.gather(*(taken(run, since) for _ in range(5)))
        run.id = uuid.uuid4().hex

    assert await failing_since(run.pool, run.db) is None
    assert await about_route(run.pool, run.db) == [recovered(run.db, "success", since)]


async def test_a_disabled_route_recovers_by_a_resume_and_not_by_what_was_in_flight(
    run: RunOfJob, store: RouteStore
) -> None:
    await fail(store, run.db)
    since = await failing_since(run.pool, run.db)
    assert since
    await run.begin()
    await gone(run)
    run.id = uuid.uuid4().hex
    await taken(run, since)
    assert [kind for kind, _ in await about_route(run.pool, run.db)] == ["route.disabled"]

    await asyncio.gather(*(store.set_state(run.db, "hook", RouteState.ACTIVE) for _ in range(5)))

    assert (await about_route(run.pool, run.db))[1:] == [recovered(run.db, "resume", since)]


async def test_an_end_that_is_repeated_disables_no_route_that_was_resumed(
    run: RunOfJob, store: RouteStore, own_claim: str
) -> None:
    """The answer to the first one was lost."""
    await run.begin(own_claim)
    await gone(run, own_claim)
    await store.set_state(run.db, "hook", RouteState.ACTIVE)

    await gone(run, own_claim)

    assert (await store.find(run.db, "hook")).status.state is RouteState.ACTIVE
    assert [kind for kind, _ in await about_route(run.pool, run.db)] == ["route.disabled", "route.recovered"]


async def test_an_attempt_that_began_before_the_failures_does_not_end_them(run: RunOfJob, store: RouteStore) -> None:
    """Nor does an end that is repeated."""
    await fail(store, run.db)
    since = await failing_since(run.pool, run.db)
    await run.begin()
    await taken(run, since)
    await fail(store, run.db)

    await taken(run, since)
    run.id = uuid.uuid4().hex
    await run.begin()
    await taken(run, since)

    assert await failing_since(run.pool, run.db)
    assert len(await about_route(run.pool, run.db)) == 1


async def test_a_resume_that_races_with_what_disables_the_route_tells_that_it_recovered(
    run: RunOfJob, store: RouteStore
) -> None:
    await store.set_state(run.db, "hook", RouteState.PAUSED)
    async with run.pool.acquire() as postgres, postgres.transaction():
        await write_news(postgres, run.db, "hook", RouteNews.GONE, failing_since=None)
        resuming = asyncio.create_task(store.set_state(run.db, "hook", RouteState.ACTIVE))
        await eventually(lambda: run.pool.fetchval(WAITING_FOR_A_ROW), bool)
    await resuming

    assert (await store.find(run.db, "hook")).status.state is RouteState.ACTIVE
    assert [kind for kind, _ in await about_route(run.pool, run.db)] == ["route.disabled", "route.recovered"]


async def test_a_disabled_route_that_is_paused_recovers_when_it_is_resumed(run: RunOfJob, store: RouteStore) -> None:
    await run.begin()
    await gone(run)
    since = (await store.find(run.db, "hook")).status.since
    await store.set_state(run.db, "hook", RouteState.PAUSED)
    assert [kind for kind, _ in await about_route(run.pool, run.db)] == ["route.disabled"]

    await store.set_state(run.db, "hook", RouteState.ACTIVE)

    assert (await about_route(run.pool, run.db))[1:] == [recovered(run.db, "resume", since)]


async def test_a_route_that_was_merely_paused_does_not_recover(run: RunOfJob, store: RouteStore) -> None:
    for state in (RouteState.PAUSED, RouteState.ACTIVE, RouteState.ACTIVE):
        await store.set_state(run.db, "hook", state)

    assert await about_route(run.pool, run.db) == []


async def test_nothing_is_told_of_the_route_that_events_go_to(
    run: RunOfJob, store: RouteStore, events: EventStore
) -> None:
    await events.replace(run.db, EventSettings(route_id="hook", kinds=tuple(EventKind)))
    await run.begin()
    await gone(run)
    await store.set_state(run.db, "hook", RouteState.ACTIVE)
    await fail(store, run.db)
    run.id = uuid.uuid4().hex
    await run.begin()
    await taken(run, await failing_since(run.pool, run.db))

    assert await failing_since(run.pool, run.db) is None
    assert await run.pool.fetchval("SELECT count(*) FROM events WHERE db = $1", run.db) == 0


async def fail_jobs(run: RunOfJob, count: int) -> None:
    for _ in range(count):
        await run.put(None)
        await run.begin()
        await run.end("final")


async def ours(events: EventStore, db: str, limit: int = 1000) -> list[uuid.UUID]:
    return [event.id for event in await events.claim(limit, lease=LEASE) if event.db == db]


async def test_an_event_is_given_to_one_of_those_who_ask(run: RunOfJob, events: EventStore) -> None:
    await fail_jobs(run, 30)

    given = [one for few in await asyncio.gather(*(events.claim(5, lease=LEASE) for _ in range(30))) for one in few]

    found = [event.id for event in given if event.db == run.db]
    assert len(set(found)) == len(found) == 30
    assert {event.route_id for event in given if event.db == run.db} == {"ops"}
    await events.discard(found)


async def test_no_more_events_are_given_than_were_asked_for(
    run: RunOfJob, own_settings: Settings, events: EventStore
) -> None:
    """Also by a statement that was planned while there were none."""
    async with open_pool(replace(own_settings, postgres_pool_size=1)) as one_session:
        await one_session.execute("DELETE FROM events")
        await one_session.execute("VACUUM ANALYZE events")
        for _ in range(10):
            assert await EventStore(one_session).claim(5, lease=LEASE) == []
        await fail_jobs(run, 20)

        assert len(await EventStore(one_session).claim(5, lease=LEASE)) == 5


async def test_an_event_that_was_not_sent_is_given_again_when_its_lease_is_over(
    run: RunOfJob, events: EventStore
) -> None:
    await fail_jobs(run, 2)
    (first, second) = await ours(events, run.db)
    assert await ours(events, run.db) == []
    await events.discard([first])

    await run.pool.execute("UPDATE events SET send_at = clock_timestamp() WHERE db = $1", run.db)

    assert await ours(events, run.db) == [second]


async def test_an_event_goes_where_events_go_when_it_is_sent(
    run: RunOfJob, store: RouteStore, events: EventStore
) -> None:
    await fail_jobs(run, 1)
    await store.add(run.db, RestRoute(id="other", webhook_url="http://x"), {})
    await events.replace(run.db, replace(ALL, route_id="other"))
    (event,) = [event for event in await events.claim(1000, lease=LEASE) if event.db == run.db]
    assert event.route_id == "other"


async def test_what_waits_and_is_not_asked_for_any_more_is_not_sent(run: RunOfJob, events: EventStore) -> None:
    await fail_jobs(run, 1)
    await events.remove(run.db)
    await events.replace(run.db, ALL)
    assert await ours(events, run.db) == []

    await fail_jobs(run, 1)
    await events.replace(run.db, replace(ALL, kinds=(EventKind.ROUTE_DISABLED,)))
    await events.replace(run.db, ALL)
    assert await ours(events, run.db) == []


async def test_what_waits_is_not_sent_to_the_route_that_it_is_about(run: RunOfJob, events: EventStore) -> None:
    await run.begin()
    await gone(run)
    await events.replace(run.db, replace(ALL, route_id="hook"))

    found = [event for event in await events.claim(1000, lease=LEASE) if event.db == run.db]

    assert sorted((event.kind, event.route_id) for event in found) == [("job.failed", None), ("route.disabled", None)]


async def test_what_is_asked_for_is_kept_as_it_was_given(store: RouteStore, events: EventStore, db: str) -> None:
    assert await events.find(db) == ALL
    for kinds in (ALL.kinds, ALL.kinds[::-1]):
        await events.replace(db, replace(ALL, kinds=kinds))
        assert await events.find(db) == replace(ALL, kinds=kinds)
    asked = EventSettings(route_id="hook", kinds=(EventKind.ROUTE_DISABLED,))
    await events.replace(db, asked)
    assert await events.find(db) == asked
    await events.remove(db)
    await events.remove(db)
    assert await events.find(db) is None


async def test_events_go_to_no_route_that_is_not_there(events: EventStore, db: str) -> None:
    with pytest.raises(NoSuchRouteError):
        await events.replace(db, replace(ALL, route_id="nowhere"))
    assert await events.find(db) == ALL


async def test_a_route_that_events_go_to_is_removed_by_force_only_and_ends_them(
    store: RouteStore, events: EventStore, db: str
) -> None:
    with pytest.raises(RouteInUseError):
        await store.remove(db, "ops")
    await store.remove(db, "hook")

    await store.remove(db, "ops", force=True)

    assert await events.find(db) is None


async def test_a_route_is_not_removed_while_events_are_made_to_go_to_it(
    store: RouteStore, events: EventStore, db: str
) -> None:
    """Whoever comes second sees what the first one has done."""
    for turn in range(20):
        route = RestRoute(id=f"r{turn}", webhook_url="http://x")
        await store.add(db, route, {})
        answers = await asyncio.gather(
            store.remove(db, route.id), events.replace(db, replace(ALL, route_id=route.id)), return_exceptions=True
        )
        refused = [type(answer) for answer in answers if isinstance(answer, BaseException)]
        assert refused in ([RouteInUseError], [NoSuchRouteError])
        await events.replace(db, ALL)


async def test_an_end_of_a_db_without_events_looks_up_one_row(run: RunOfJob, events: EventStore) -> None:
    """Of a table that is as large as there are dbs that ask for events."""
    await run.pool.execute(
        "INSERT INTO routes (db, id, route) SELECT 'db' || n, 'ops', '{}' FROM generate_series(1, 5000) AS n "
        "ON CONFLICT DO NOTHING"
    )
    await run.pool.execute(
        "INSERT INTO event_routes (db, route_id, kinds) "
        "SELECT 'db' || n, 'ops', ARRAY['job.failed'] FROM generate_series(1, 5000) AS n ON CONFLICT DO NOTHING"
    )
    await run.pool.execute("ANALYZE event_routes")
    facts = msgspec.json.encode(run.job).decode()
    async with run.pool.acquire() as postgres, postgres.transaction():
        plan = await postgres.fetch(
            f"EXPLAIN {delivery_ledger._END_TAKEN}", run.id, uuid.UUID(MINE), 1, '{"number": 1}', facts
        )
    text = "\n".join(row[0] for row in plan)

    assert "Index Scan using event_routes_pkey" in text, text
    assert "Seq Scan on event_routes" not in text, text


async def test_the_time_of_an_event_is_that_of_what_happened(run: RunOfJob, events: EventStore) -> None:
    before = datetime.now(UTC)
    await fail_jobs(run, 1)

    (event,) = [event for event in await events.claim(1000, lease=LEASE) if event.db == run.db]

    assert before - timedelta(seconds=5) < event.at < datetime.now(UTC) + timedelta(seconds=5)

"""What runs by itself: the clean-up of the log of attempts, and the schedule that runs it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from msgspec.structs import replace
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionExecutionStartWorkflow,
    ScheduleActionStartWorkflow,
    ScheduleDescription,
    ScheduleHandle,
)
from temporalio.testing import ActivityEnvironment

from activities.retention import BATCH, RemoveBefore, Retention
from tests.support.own_database import own_database
from tests.support.service import new_id
from tests.support.waiting import eventually
from timemachine.domain.errors import SlowStatementError
from timemachine.domain.outcomes import RowState
from timemachine.domain.retention import Cleaned
from timemachine.domain.stored_names import CLEAN_ATTEMPTS_SCHEDULE
from timemachine.postgres.attempt_log import AttemptLog
from timemachine.postgres.audit_log import AuditLog
from timemachine.postgres.delivery_ledger import DeliveryLedger
from timemachine.postgres.migrate import migrate
from timemachine.postgres.pool import Pool, connection, open_pool
from timemachine.postgres.route_store import RouteStore
from timemachine.settings import Settings
from timemachine.temporal.schedules import ensure_schedules
from timemachine.vault import Vault

ROWS = """
    INSERT INTO attempts (db, collection, job_id, route_id, run_id, message_id, attempt, started_at, duration_ms, kind,
        answer, worker)
    SELECT $1, 'c', 'j', 'hook', 'r', 'm', n, now() - $2::interval - n * interval '1 s', 1, 'taken', '', 'w'
    FROM generate_series(1, $3) AS n
"""


async def fill(settings: Settings, db: str, count: int, age: timedelta) -> None:
    async with open_pool(settings) as pool, connection(pool) as postgres:
        await postgres.execute(ROWS, db, age, count)


async def rows(settings: Settings, db: str) -> int:
    async with open_pool(settings) as pool, connection(pool) as postgres:
        count: int = await postgres.fetchval("SELECT count(*) FROM attempts WHERE db = $1", db)
        return count


async def test_attempts_are_kept_for_as_long_as_it_is_set(
    settings: Settings, client: Client, worker: None, db: str
) -> None:
    kept = timedelta(days=settings.attempts_kept_days)
    await fill(settings, db, 4, kept - timedelta(hours=1))
    await fill(settings, db, 3, kept)

    cleaned = await client.execute_workflow(
        "CleanAttempts", id=new_id(), task_queue=settings.task_queue, result_type=Cleaned
    )

    assert cleaned.removed >= 3  # and what other tests have left
    assert await rows(settings, db) == 4


async def test_the_audit_log_is_kept_for_as_long_as_it_is_set(
    settings: Settings, client: Client, worker: None, db: str
) -> None:
    kept = timedelta(days=settings.audit_kept_days)
    async with open_pool(settings) as pool, connection(pool) as postgres:
        for age in (kept + timedelta(minutes=1), kept - timedelta(hours=1), timedelta()):
            await postgres.execute(
                "INSERT INTO audit (at, action, db, target, address) VALUES (now() - $2::interval, 'a', $1, 't', 'x')",
                db,
                age,
            )

        await client.execute_workflow("CleanAttempts", id=new_id(), task_queue=settings.task_queue, result_type=Cleaned)

        assert await postgres.fetchval("SELECT count(*) FROM audit WHERE db = $1", db) == 2


async def test_a_cancel_is_kept_until_a_held_job_has_checked_its_route(settings: Settings) -> None:
    """However short the retention is: the job may know of its cancel by the row alone."""
    runs = {timedelta(hours=25): new_id(), timedelta(hours=49): new_id()}
    async with open_pool(settings) as pool, connection(pool) as postgres:
        for age, run in runs.items():
            await postgres.execute(
                "INSERT INTO delivery_ledger (run_id, state, at, made, created_at)"
                " VALUES ($1, 'cancelled', now() - $2::interval, 0, now() - $2::interval)",
                run,
                age,
            )

        await clean(replace(settings, attempts_kept_days=0.01))

        kept = await postgres.fetch("SELECT run_id FROM delivery_ledger WHERE run_id = ANY($1)", list(runs.values()))
    assert [row["run_id"] for row in kept] == [runs[timedelta(hours=25)]]


async def test_very_many_are_removed_in_batches(settings: Settings, db: str) -> None:
    await fill(settings, db, 2 * BATCH + 5, timedelta(days=400))
    environment = ActivityEnvironment()
    beats = []
    environment.on_heartbeat = lambda *_: beats.append(1)

    async with open_pool(settings) as pool:
        ledger = DeliveryLedger(pool, RouteStore(pool, Vault(settings)), attempt_time=1)
        cleaned = await environment.run(Retention(AttemptLog(pool), ledger, AuditLog(pool), settings).clean_attempts)

    assert cleaned.removed >= 2 * BATCH + 5
    assert len(beats) >= 3
    assert await rows(settings, db) == 0


@asynccontextmanager
async def slow_deletes(settings: Settings, db: str, seconds: float) -> AsyncIterator[None]:
    """Let Postgres take so long to remove each of the db's attempts."""
    admin = await asyncpg.connect(settings.postgres_dsn)
    await admin.execute(f"""
        CREATE FUNCTION slow_delete() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN IF OLD.db = '{db}' THEN PERFORM pg_sleep({seconds}); END IF; RETURN OLD; END $$;
        CREATE TRIGGER slow_delete BEFORE DELETE ON attempts FOR EACH ROW EXECUTE FUNCTION slow_delete()
    """)
    try:
        yield
    finally:
        await admin.execute("DROP TRIGGER slow_delete ON attempts; DROP FUNCTION slow_delete()")
        await admin.close()


async def clean(settings: Settings) -> tuple[Cleaned, int]:
    """Return what a clean-up came to, and how often it gave a sign of life."""
    environment, beats = ActivityEnvironment(), []
    environment.on_heartbeat = lambda *_: beats.append(1)
    async with open_pool(settings) as pool:
        ledger = DeliveryLedger(pool, RouteStore(pool, Vault(settings)), attempt_time=1)
        cleaned: Cleaned = await environment.run(
            Retention(AttemptLog(pool), ledger, AuditLog(pool), settings).clean_attempts
        )
    return cleaned, len(beats)


async def test_what_postgres_has_no_time_for_at_once_is_removed_in_parts(
    settings: Settings, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activities.retention.BATCH", 16)
    monkeypatch.setattr("timemachine.postgres.pool.STATEMENT_TIMEOUT", 0.4)
    await clean(settings)  # what other tests have left
    await fill(settings, db, 16, timedelta(days=400))

    async with slow_deletes(settings, db, 0.06):
        cleaned, beats = await clean(settings)

    assert cleaned.removed == 16
    assert await rows(settings, db) == 0
    assert beats > 16 // 8


async def test_what_cannot_be_removed_does_not_keep_the_rest(
    settings: Settings, db: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("activities.retention.BATCH", 4)
    monkeypatch.setattr("timemachine.postgres.pool.STATEMENT_TIMEOUT", 0.4)
    await clean(settings)
    await fill(settings, db, 4, timedelta(days=400))
    async with open_pool(settings) as pool, connection(pool) as postgres:
        await postgres.execute(
            "INSERT INTO delivery_ledger (run_id, state, at, made, created_at) "
            "VALUES ($1, 'taken', now() - interval '400 days', 1, now() - interval '400 days')",
            db,
        )

    async with slow_deletes(settings, db, 2):
        cleaned, _ = await clean(settings)

    assert cleaned.removed == 0
    assert [record.__dict__["table"] for record in caplog.records if "not removed" in record.message] == ["attempts"]
    async with open_pool(settings) as pool, connection(pool) as postgres:
        assert not await postgres.fetchval("SELECT count(*) FROM delivery_ledger WHERE run_id = $1", db)


async def test_a_wait_for_a_connection_does_not_hide_that_a_batch_is_too_large(
    settings: Settings, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken for an outage, it would be tried again with as many rows, for as long as the pool is busy."""
    monkeypatch.setattr("timemachine.postgres.pool.STATEMENT_TIMEOUT", 1)
    monkeypatch.setattr("timemachine.postgres.pool.ANSWER_LIMIT", 1.2)
    await fill(settings, db, 1, timedelta(days=400))

    async with slow_deletes(settings, db, 5), open_pool(replace(settings, postgres_pool_size=1)) as pool:
        async with connection(pool):
            removing = asyncio.create_task(AttemptLog(pool).remove_before(datetime.now(UTC) - timedelta(days=399), 9))
            await asyncio.sleep(0.7)
        with pytest.raises(SlowStatementError):
            await removing

    await clean(settings)


OLD_ROWS = {
    "attempts": """INSERT INTO attempts
            (db, collection, job_id, route_id, run_id, message_id, attempt, started_at, duration_ms, kind, answer,
            worker)
        SELECT 'db', 'c', 'j', 'hook', 'r', 'm', n, now() - interval '1 year', 1, 'taken', '', 'w'
        FROM generate_series(1, 20) AS n""",
    "delivery_ledger": """INSERT INTO delivery_ledger (run_id, state, claim, at, made, created_at)
        SELECT n, 'taken', gen_random_uuid(), now() - interval '1 year', 1, now() - interval '1 year'
        FROM generate_series(1, 20) AS n""",
    "audit": """INSERT INTO audit (at, action, db, target, address)
        SELECT now() - interval '1 year', 'key.create', 'db', n, '' FROM generate_series(1, 20) AS n""",
}


def removal(table: str, pool: Pool, settings: Settings) -> RemoveBefore:
    """Return what removes a table's old rows."""
    match table:
        case "attempts":
            return AttemptLog(pool).remove_before
        case "audit":
            return AuditLog(pool).remove_before
        case _:
            return DeliveryLedger(pool, RouteStore(pool, Vault(settings)), attempt_time=1).remove_before


@pytest.mark.parametrize("table", OLD_ROWS)
async def test_no_more_is_removed_than_was_asked_for(settings: Settings, table: str) -> None:
    """Also by a statement that was planned while there was nothing."""
    async with own_database(settings) as own:
        await migrate(own)
        async with open_pool(replace(own, postgres_pool_size=1)) as one_session:
            await one_session.execute(f"VACUUM ANALYZE {table}")
            remove_before, yesterday = removal(table, one_session, own), datetime.now(UTC) - timedelta(days=1)
            for _ in range(10):
                assert await remove_before(yesterday, 5) == 0
            await one_session.execute(OLD_ROWS[table])

            assert await remove_before(yesterday, 5) == 5


async def test_what_somebody_holds_does_not_keep_the_rest(settings: Settings, db: str) -> None:
    await fill(settings, db, 5, timedelta(days=400))
    admin = await asyncpg.connect(settings.postgres_dsn)
    async with admin.transaction():
        await admin.execute("SELECT 1 FROM attempts WHERE db = $1 ORDER BY started_at LIMIT 1 FOR UPDATE", db)
        await clean(settings)
        left = await rows(settings, db)
    await admin.close()

    assert left == 1
    await clean(settings)
    assert await rows(settings, db) == 0


LEDGER_ROWS = """
    INSERT INTO delivery_ledger (run_id, state, claim, at, made, created_at)
    SELECT $1 || name || state, state, gen_random_uuid(), now() - due, 1, now() - created
    FROM unnest($2::text[]) AS state, (
        VALUES ('old ', $3::interval, $3::interval), ('young ', '1 hour', '1 hour'), ('due lately ', '1 hour', $3)
    ) AS age (name, due, created)
"""


async def test_the_ledger_keeps_what_is_not_decided_and_what_was_due_lately(settings: Settings) -> None:
    """A row that goes too early lets a worker that wakes begin what was cancelled."""
    mine, age = new_id(), timedelta(days=settings.attempts_kept_days + 1)
    async with open_pool(settings) as pool, connection(pool) as postgres:
        await postgres.execute(LEDGER_ROWS, mine, list(RowState), age)

        await clean(settings)

        kept = await postgres.fetch("SELECT run_id FROM delivery_ledger WHERE starts_with(run_id, $1)", mine)
    removed = {f"old {state}" for state in ("taken", "failed", "cancelled")}
    everything = {f"{name} {state}" for name in ("old", "young", "due lately") for state in RowState}
    assert {row["run_id"].removeprefix(mine) for row in kept} == everything - removed


def task_queue(schedule: Schedule) -> str:
    assert isinstance(schedule.action, ScheduleActionStartWorkflow)
    return schedule.action.task_queue


async def until(handle: ScheduleHandle, condition: Callable[[Schedule], bool]) -> Schedule:
    """Return the schedule once a condition holds: what is asked of it takes effect a moment later."""
    return (await eventually(handle.describe, lambda described: condition(described.schedule))).schedule


async def test_the_clean_up_is_scheduled_once_however_often_it_is_set_up(
    settings: Settings, client: Client, worker: None
) -> None:
    await asyncio.gather(*(ensure_schedules(client, task_queue="old") for _ in range(2)))
    handle = client.get_schedule_handle(CLEAN_ATTEMPTS_SCHEDULE)

    async def pause() -> ScheduleDescription:
        # Temporal may take up a pause before an update that was sent earlier, which then takes it back.
        await handle.pause(note="by an operator")
        return await handle.describe()

    await eventually(pause, lambda described: described.schedule.state.paused)

    await ensure_schedules(client, task_queue=settings.task_queue)

    described = await until(handle, lambda schedule: task_queue(schedule) == settings.task_queue)
    assert isinstance(described.action, ScheduleActionStartWorkflow)
    assert described.action.workflow == "CleanAttempts"
    assert [interval.every for interval in described.spec.intervals] == [timedelta(hours=1)]
    assert (described.state.paused, described.state.note) == (True, "by an operator")
    await handle.delete()


async def test_what_the_schedule_starts_works(settings: Settings, client: Client, worker: None) -> None:
    await ensure_schedules(client, task_queue=settings.task_queue)
    handle = client.get_schedule_handle(CLEAN_ATTEMPTS_SCHEDULE)

    await handle.trigger()

    described = await eventually(handle.describe, lambda described: described.info.recent_actions)
    action = described.info.recent_actions[-1].action
    assert isinstance(action, ScheduleActionExecutionStartWorkflow)
    started = client.get_workflow_handle(action.workflow_id, result_type=Cleaned)
    assert isinstance(await started.result(), Cleaned)
    await handle.delete()

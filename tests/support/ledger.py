"""The ledger and the log of attempts, as a test writes to them in the place of another worker."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from asyncpg import Pool
from temporalio.client import Client

from tests.support.service import ROUTE, Service
from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.outcomes import AttemptResult, LedgerRow
from timemachine.postgres.attempt_log import ATTEMPT_COLUMNS, Attempt, attempt_values
from timemachine.postgres.delivery_ledger import AttemptReport, Begun, DeliveryLedger
from timemachine.postgres.pool import connection
from timemachine.postgres.route_store import RouteStore, Target
from timemachine.settings import Settings
from timemachine.temporal.job_runs import latest_run
from timemachine.vault import Vault

_VALUES = ", ".join(f"${n + 1}" for n in range(len(ATTEMPT_COLUMNS.split(", "))))


async def log_attempt(pool: Pool, attempt: Attempt) -> None:
    """Write a row of the log."""
    async with connection(pool) as postgres:
        query = f"INSERT INTO attempts ({ATTEMPT_COLUMNS}) VALUES ({_VALUES})"  # noqa: S608 - constants
        await postgres.execute(query, *attempt_values(attempt, uuid4()))


async def read_target(pool: Pool, store: RouteStore, db: str, route: str = ROUTE) -> Target:
    """Return what an attempt is given to know of a route."""
    begun = await DeliveryLedger(pool, store, attempt_time=1).begin(f"run-{uuid4()}", db, route, uuid4())
    assert isinstance(begun, Begun)
    assert begun.target
    return begun.target


async def first_run(client: Client, service: Service, job_id: str) -> str:
    """Return what the ledger knows a job by."""
    return (await latest_run(client, f"{service.db}/c/{job_id}")).first_run_id


def taken(number: int = 1) -> AttemptReport:
    """Return the end of an attempt that was taken."""
    now = int(datetime.now(UTC).timestamp() * 1000)
    return AttemptReport(
        counts=True,
        attempts=number,
        outcome=AttemptResult(number=number, kind=AttemptKind.TAKEN, status=200, ended_at=now),
    )


def refused_by_receiver(wait: timedelta | None, number: int = 1) -> AttemptReport:
    """Return the end of an attempt that the receiver did not take."""
    reason = "500 from the receiver"
    outcome = AttemptResult(number=number, kind=AttemptKind.REFUSED, status=500, reason=reason, ended_at=0)
    return AttemptReport(counts=True, attempts=number, outcome=outcome, wait=wait)


class AnotherWorker:
    """What another worker writes to the ledger, of attempts that no receiver sees."""

    def __init__(self, pool: Pool, settings: Settings) -> None:
        self._pool = pool
        self.ledger = DeliveryLedger(pool, RouteStore(pool, Vault(settings)), attempt_time=settings.delivery_timeout)

    async def begin(self, db: str, run_id: str, route: str = ROUTE) -> UUID:
        """Begin an attempt, and return its claim."""
        claim = uuid4()
        assert isinstance(await self.ledger.begin(run_id, db, route, claim), Begun)
        return claim

    async def end(self, run_id: str, claim: UUID, end: AttemptReport) -> LedgerRow:
        row = await self.ledger.end(run_id, claim, end)
        assert row
        return row

    async def die(self, run_id: str) -> None:
        """Let the claim expire, as that of a worker that does not live any more."""
        async with connection(self._pool) as postgres:
            await postgres.execute(
                "UPDATE delivery_ledger SET at = clock_timestamp() - interval '1 s' WHERE run_id = $1", run_id
            )

    async def row(self, run_id: str) -> LedgerRow:
        row = await self.ledger.find(run_id)
        assert row
        return row

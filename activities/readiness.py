"""Whether a program can do its work."""

import asyncio

from temporalio.client import Client
from temporalio.service import RPCError

from timemachine.domain.errors import BusyError, UnavailableError
from timemachine.outages import OutageLog
from timemachine.postgres.pool import Pool, ping
from timemachine.settings import Settings
from timemachine.temporal.client import asked_together, check_access, check_namespace, temporal_timeout
from timemachine.temporal.registered_attributes import check_search_attributes

_OUTAGES = OutageLog("Temporal does not answer")


class Readiness:
    """Knows what API and worker cannot do without."""

    def __init__(self, client: Client, pool: Pool, settings: Settings) -> None:
        """Take the clients of Temporal and Postgres."""
        self._client = client
        self._pool = pool
        self._limit = settings.request_timeout
        self.stop = asyncio.Event()
        """To be set once the program is about to stop."""

    async def check(self) -> None:
        """Ask Temporal and Postgres whether they answer, and have what requests and jobs need.

        Raises:
            UnavailableError: One of them does not, or the program is about to stop. The message names each part.
        """
        if self.stop.is_set():
            raise UnavailableError("this process is about to stop")
        temporal, postgres = await asyncio.gather(self._fault_of_temporal(), self._fault_of_postgres())
        if temporal or postgres:
            raise UnavailableError(f"{temporal or 'Temporal answers'}; {postgres or 'Postgres answers'}")

    async def _fault_of_temporal(self) -> str | None:
        try:
            async with temporal_timeout(self._limit), asked_together() as tasks:
                tasks.create_task(check_namespace(self._client, retry=False))
                tasks.create_task(check_search_attributes(self._client))
                tasks.create_task(check_access(self._client))
        except BusyError:
            # It answers. If all APIs were out of the balancer for it, clients would be told that none is there.
            return None
        except UnavailableError as error:
            return str(error)
        except RPCError as error:
            _OUTAGES.note(error)
            return f"Temporal answers {error.status.name}: {error.message}"
        return None

    async def _fault_of_postgres(self) -> str | None:
        try:
            await ping(self._pool)
        except UnavailableError as error:
            return str(error)
        return None

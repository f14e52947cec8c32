"""An implementation's run in a scenario: the jobs it creates, how they fare, and what they cost."""

import asyncio
import time
from http import HTTPStatus
from itertools import islice

import msgspec

from benchmarks.implementations import Implementation, new_id
from benchmarks.load import due_in
from benchmarks.meter import Meter, ms_per
from benchmarks.results import Measurement, spread
from benchmarks.testbed import Testbed

SETTLE = 120.0
"""Seconds that the jobs of a scenario get to be delivered, and then to be closed, after its end."""

SAMPLE = 10
"""Jobs whose histories are looked at."""

_POLL = 0.2


class ScenarioRun:
    """Begins when it is made, with nothing at the receiver; each of its jobs has an id that begins with the run's."""

    def __init__(self, testbed: Testbed, implementation: Implementation, scenario: str, round_: int) -> None:
        """Begin now; `begun` first waits until all is quiet."""
        self.testbed, self.sink, self.implementation = testbed, testbed.sink, implementation
        self.sink.clear()
        self._scenario, self._round = scenario, round_
        self._id, self._created = new_id()[:12], 0
        self._meter = Meter({name: testbed.pids(part) for name, part in implementation.parts.items()})
        self._cpu = self._meter.cpu_seconds()
        self._began = time.time()

    def new_id(self) -> str:
        """Return the id of the run's next job."""
        self._created += 1
        return f"{self._id}-{self._created}"

    async def create(self, trigger_time: int) -> str:
        """Create a job due at a time, in milliseconds since the epoch, and return its id.

        Raises:
            RuntimeError: It was refused.
        """
        job_id = self.new_id()
        status = await self.implementation.create(job_id, trigger_time)
        if status != HTTPStatus.OK:
            raise RuntimeError(f"{self._scenario}, {self.implementation.name}: a create was answered {status}")
        return job_id

    async def create_in(self, seconds: float) -> str:
        """Create a job due so many seconds ahead, and return its id."""
        return await self.create(due_in(seconds))

    def cpu_per_job(self, jobs: int) -> dict[str, float]:
        """Return the CPU milliseconds per job of each process since the beginning."""
        return ms_per(max(jobs, 1), self._cpu, self._meter.cpu_seconds())

    def cpu_per_second(self) -> dict[str, float]:
        """Return the CPU milliseconds per second of each process since the beginning."""
        return ms_per(time.time() - self._began, self._cpu, self._meter.cpu_seconds())

    def resident(self) -> dict[str, int]:
        """Return the bytes of memory that each process holds now."""
        return self._meter.resident()

    async def all_taken(self, count: int) -> None:
        """Wait until the receiver has taken so many jobs.

        Raises:
            RuntimeError: It has not, in time.
        """
        try:
            async with asyncio.timeout(SETTLE):
                await self.sink.wait_for_count(count)
        except TimeoutError as error:
            raise self._overdue(f"{len(self.sink.taken)} of {count} jobs taken") from error

    async def all_closed(self) -> float:
        """Wait until all jobs that were taken are closed in Temporal, and return when the last was, in epoch seconds.

        So that a measurement pays for all that its jobs cost.

        Raises:
            RuntimeError: They are not, in time.
        """
        return await self._closed(len(self.sink.taken))

    async def _closed(self, jobs: int) -> float:
        closed = 0
        for _ in range(int(SETTLE / _POLL)):
            closed = await self.implementation.count_closed(self._id)
            if closed >= jobs:
                return (await self.implementation.last_close(self._id)).timestamp()
            await asyncio.sleep(_POLL)
        raise self._overdue(f"{closed} of {jobs} jobs closed")

    async def closed(self, jobs: int, *, since: float) -> Measurement:
        """Wait until so many jobs are closed that call nobody, and return what was measured until the last one."""
        last = await self._closed(jobs)
        return msgspec.structs.replace(
            self.result(jobs, since=since, until=last),
            notes={"closed_per_second": round(jobs / (last - since), 2)},
        )

    def result(self, jobs: int, *, since: float | None = None, until: float) -> Measurement:
        """Return what was measured; CPU from the beginning to now.

        Args:
            since: When rates begin to count, in epoch seconds; from the beginning without it.
            until: When they end.
        """
        seconds = until - (since or self._began)
        return Measurement(
            scenario=self._scenario,
            implementation=self.implementation.name,
            round=self._round,
            jobs=jobs,
            seconds=round(seconds, 3),
            per_second=round(jobs / seconds, 2),
            cpu_ms_per_job=self.cpu_per_job(jobs),
            cpu_seconds=round(time.time() - self._began, 3),
            lateness=spread(self.sink.late_ms.values()),
        )

    def with_cpu_until_now(self, measured: Measurement) -> Measurement:
        """Return what was measured of the run, with what its processes have used until now."""
        return msgspec.structs.replace(
            measured,
            cpu_ms_per_job=self.cpu_per_job(measured.jobs),
            cpu_seconds=round(time.time() - self._began, 3),
        )

    async def delivered(self, *, since: float | None = None) -> Measurement:
        """Wait until what was taken is closed, and return what was measured until the last arrival."""
        closed = await self.all_closed()
        arrived = max(self.sink.taken.values())
        measured = self.result(len(self.sink.taken), since=since, until=arrived)
        events, size = await self._histories()
        notes = {
            "closed_per_second": round(measured.jobs / (closed - (since or self._began)), 2),
            "requests": float(sum(self.sink.requests.values())),
        }
        return msgspec.structs.replace(measured, events=events, history_bytes=size, notes=notes)

    async def _histories(self) -> tuple[float, float]:
        """Return the mean number of events, and of bytes, of some jobs' histories; nothing where they have none."""
        client, implementation = self.testbed.client, self.implementation
        if not implementation.has_history:
            return 0.0, 0.0
        handles = [
            client.get_workflow_handle(implementation.workflow_id(one)) for one in islice(self.sink.taken, SAMPLE)
        ]
        infos = [(await handle.describe()).raw_description.workflow_execution_info for handle in handles]
        return (
            sum(info.history_length for info in infos) / len(infos),
            sum(info.history_size_bytes for info in infos) / len(infos),
        )

    def _overdue(self, what: str) -> RuntimeError:
        return RuntimeError(f"{self._scenario}, {self.implementation.name}: {what} within {SETTLE:g} s")


async def begun(testbed: Testbed, implementation: Implementation, scenario: str, round_: int) -> ScenarioRun:
    """Wait until all is quiet, and begin a run."""
    await testbed.quiet()
    return ScenarioRun(testbed, implementation, scenario, round_)

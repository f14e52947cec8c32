"""What a batch costs others: how long it works without giving way, and what it makes of a body before it refuses it."""

import asyncio
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec
import pytest

from api.batch import ARRAY_FORM, MAX_ARRAY_BYTES, MAX_JOBS, Batch, BatchAnswer, Batches, read_batch
from api.litestar_json import WholeRequest
from timemachine.domain.audit import Caller
from timemachine.domain.errors import TooLargeError

JOB = b'{"id": "first", "trigger_time": 4102444800000, "route": "hook"}'
REFUSED = b"1"


class Turns:
    """Counts what is done while others wait for their turn."""

    def __init__(self) -> None:
        self.done = 0
        self.most = 0
        """Steps between two turns of another task, at the most."""

    def step(self) -> None:
        self.done += 1
        self.most = max(self.most, self.done)

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Take every turn there is."""

        async def take() -> None:
            while True:
                self.done = 0
                await asyncio.sleep(0)

        taking = asyncio.create_task(take())
        yield
        taking.cancel()


class Jobs:
    """Says of each job, once it may, that it is created."""

    def __init__(self) -> None:
        self.may = asyncio.Event()

    async def create(self, *_: object, **__: object) -> str:
        await self.may.wait()
        return "created"


def batch_with(jobs: Jobs) -> Batch:
    batches = Batches(cast("Any", jobs), cast("Any", None))
    return Batch(batches, "db", "c", Caller(key=None, address="127.0.0.1"))


async def answer_to(batch: Batch, entries: AsyncGenerator[bytes | None, None], sent: Turns) -> list[dict[str, Any]]:
    body = b""

    async def send(message: Any) -> None:
        nonlocal body
        sent.step()
        body += message.get("body", b"")

    await BatchAnswer(batch, entries, ARRAY_FORM)(cast("Any", {}), cast("Any", None), send)
    found: list[dict[str, Any]] = msgspec.json.decode(body)["results"]
    return found


async def test_jobs_that_are_refused_leave_others_their_turn() -> None:
    begun, sent = Turns(), Turns()

    async def entries() -> AsyncGenerator[bytes | None, None]:
        for _ in range(MAX_JOBS):
            begun.step()
            yield REFUSED

    async with begun.taken(), sent.taken():
        results = await answer_to(batch_with(Jobs()), entries(), sent)

    assert [result["code"] for result in results] == ["E001"] * MAX_JOBS
    assert begun.most <= 2
    assert sent.most <= 4


async def test_results_that_have_waited_for_one_leave_others_their_turn() -> None:
    jobs, sent = Jobs(), Turns()

    async def entries() -> AsyncGenerator[bytes | None, None]:
        yield JOB
        for _ in range(MAX_JOBS - 1):
            yield REFUSED
        jobs.may.set()

    async with sent.taken():
        results = await answer_to(batch_with(jobs), entries(), sent)

    assert [result.get("code") for result in results] == [None] + ["E001"] * (MAX_JOBS - 1)
    assert sent.most <= 4


async def test_an_id_that_is_too_long_is_neither_kept_nor_sent_back() -> None:
    jobs = Jobs()
    jobs.may.set()
    batch = batch_with(jobs)

    async def entries() -> AsyncGenerator[bytes | None, None]:
        yield JOB.replace(b"first", b"x" * 1000)
        yield JOB.replace(b"first", b"a b")

    results = await answer_to(batch, entries(), Turns())

    assert [(result["id"], result["code"]) for result in results] == [(None, "E002"), ("a b", "E002")]
    assert "1000" in results[0]["error"]
    assert batch._latest == {}


class Whole(WholeRequest):
    """A request whose body has come."""

    def __init__(self, body: bytes) -> None:
        super().__init__(cast("Any", {"type": "http", "headers": []}))
        self._whole = body

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        yield self._whole


@pytest.mark.parametrize("job", [b"1", b"[]", b"{}", b'""', b" 1\n"])
@pytest.mark.own_process
async def test_of_an_array_that_is_far_too_long_few_jobs_are_made(job: bytes) -> None:
    count = (MAX_ARRAY_BYTES - 2) // (len(job) + 1)
    request = Whole(b"[" + (job + b",") * (count - 1) + job + b"]")

    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError):
            await read_batch(request)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * MAX_ARRAY_BYTES


@pytest.mark.parametrize("count", [0, 1, MAX_JOBS])
async def test_an_array_has_the_jobs_that_are_in_it(count: int) -> None:
    jobs = [b" %d " % number for number in range(count)]

    entries, _ = await read_batch(Whole(b"[" + b",".join(jobs) + b"]"))

    assert [entry async for entry in entries] == [job.strip() for job in jobs]

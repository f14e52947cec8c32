"""Attempts outlive who waits for them, and are found by who asks again."""

import asyncio

import pytest
from msgspec import Raw
from msgspec.structs import replace

from activities.attempt import Attempts
from activities.in_progress import InProgress
from timemachine.domain.delivery import Delivery
from timemachine.domain.jobs import Job
from timemachine.domain.outcomes import Cancelled, Deferred, Outcome

DELIVERY = Delivery(
    job=Job(db="d", collection="c", id="i", trigger_time=0, route="r", meta=Raw(b"1")), message_id="m", run_id="run"
)


class Slow(Attempts):
    """Makes attempts that end when a test says so."""

    def __init__(self, in_progress: InProgress) -> None:
        self._in_progress = in_progress
        self.ending = asyncio.Event()
        self.made = 0

    async def _attempt(self, delivery: Delivery) -> Outcome:
        self.made += 1
        await self.ending.wait()
        return Cancelled()


async def test_an_attempt_goes_on_when_who_waits_for_it_is_cancelled() -> None:
    slow = Slow(InProgress(1))
    waiting = asyncio.create_task(slow.outcome(DELIVERY, patience=60))
    while not slow.made:
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    joining = asyncio.create_task(slow.outcome(DELIVERY, patience=60))
    await asyncio.sleep(0)
    slow.ending.set()

    assert await joining == Cancelled()
    assert slow.made == 1


async def test_who_is_out_of_patience_is_told_nothing() -> None:
    slow = Slow(InProgress(1))

    assert await slow.outcome(DELIVERY, patience=0) is None
    slow.ending.set()
    assert await slow.outcome(DELIVERY, patience=60) == Cancelled()

    assert slow.made == 1


async def test_a_stop_waits_for_all_and_one_that_has_ended_is_forgotten() -> None:
    in_progress = InProgress(2)
    slow = Slow(in_progress)
    await slow.outcome(DELIVERY, patience=0)
    draining = asyncio.create_task(in_progress.drain())
    await asyncio.sleep(0)
    assert not draining.done()

    slow.ending.set()
    await draining

    assert in_progress.get("run") is None


async def test_an_attempt_that_breaks_off_is_logged_and_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> Outcome:
        raise RuntimeError("unforeseen")

    in_progress = InProgress(2)
    attempt = in_progress.start("run", broken())
    await in_progress.drain()

    with pytest.raises(RuntimeError, match="unforeseen"):
        attempt.result()
    assert "attempt broke off" in caplog.text
    assert in_progress.get("run") is None


async def test_a_worker_that_makes_as_many_as_it_may_takes_no_other_however_patient() -> None:
    """The activities wait for their attempts with patience; there are more of them than a worker can make."""
    slow = Slow(InProgress(1))
    assert await slow.outcome(DELIVERY, patience=0) is None

    assert isinstance(await slow.outcome(replace(DELIVERY, run_id="another"), patience=1), Deferred)

    assert slow.made == 1
    # The one that is under way is joined all the same.
    slow.ending.set()
    assert await slow.outcome(DELIVERY, patience=60) == Cancelled()

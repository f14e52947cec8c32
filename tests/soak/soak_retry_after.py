"""A receiver that is away for minutes while its proxy says `Retry-After: 1`: no reason to use up a schedule of days."""

import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.soak.cluster import Cluster
from tests.soak.hook import Answer, Arrival, Hook
from tests.soak.report import Row, report
from tests.soak.size import size
from tests.soak.story import Callers, Story, now_ms

AWAY = size("AWAY", smoke=20, full=600)
"""Seconds for which the receiver answers 503."""

WISHES = {"a-second": "1", "at-once": "0", "long-ago": "Wed, 21 Oct 2015 07:28:00 GMT", "nothing": ""}
"""What the receiver's proxy says of when to come again, by job."""

MOST_ATTEMPTS = 12
"""Of 13: the schedule has more to give."""

LONGEST = 4 * AWAY + 30
"""Seconds within which the next planned attempt falls: each wait is three times the one before, and a fifth."""


def away_until(end: float) -> Callable[[Arrival, str], Answer]:
    def answer(arrival: Arrival, _: str) -> Answer:
        wish = WISHES[arrival.job.rpartition("/")[2]]
        if time.monotonic() < end:
            return Answer(status=503, headers=f"retry-after: {wish}\r\n" if wish else "")
        return Answer()

    return answer


def goes_by_its_schedule(story: Story, arrivals: Sequence[Arrival]) -> Iterator[str]:
    """The schedule of two days holds whatever a receiver says."""
    if story.state != "delivered" or len(arrivals) > MOST_ATTEMPTS:
        yield f"{story.state} after {len(arrivals)} attempts, in {AWAY} s and a little more"


@pytest.mark.timeout(120 + LONGEST)
async def test_retry_after(running: Cluster, hook: Hook, callers: Callers) -> None:
    hook.answer = away_until(time.monotonic() + AWAY)
    await callers.add_route("away", "hook", hook.url())
    stories = [Story(db="away", id=job_id, route="hook") for job_id in WISHES]
    for story in stories:
        await callers.create(story, now_ms())
    await callers.settle(stories, limit=LONGEST)

    rows = [Row(name=story.id, stories=[story], also=(goes_by_its_schedule,)) for story in stories]
    assert await report(f"Retry-After, away for {AWAY} s", rows, hook, running) == []

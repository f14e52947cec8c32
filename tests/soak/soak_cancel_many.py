"""Thousands of jobs cancelled by their label while workers are killed: those, exactly, and no others."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.soak.cluster import Cluster
from tests.soak.hook import Arrival, Hook
from tests.soak.report import Row, report
from tests.soak.size import size
from tests.soak.story import Callers, Story, now_ms
from tests.support.waiting import eventually

JOBS = size("CANCELS", smoke=300, full=10_000)
"""Of the label, when the cancel begins."""

OTHERS = max(JOBS // 20, 100)
"""Of another label, and of the label but created later: neither are to be touched."""

PER_SECOND = 20
"""Jobs that an operation cancels in a second, by the default settings."""

TAKES = JOBS / PER_SECOND
"""Seconds."""

CREATED_IN = JOBS / 200
"""Seconds within which those that come due meanwhile are created, however busy the machine."""

GIVE_UP = 3 * TAKES + 120
"""Seconds after which an operation is taken for lost."""

DB, LABEL = "many", "order=1"


def stories_of(kind: str, count: int) -> list[Story]:
    return [Story(db=DB, id=f"{kind}-{number}", route="hook") for number in range(count)]


async def find(callers: Callers, operation: str) -> dict[str, Any]:
    answer = await callers.clients[0].get(f"/operation/{DB}/{operation}")
    return dict(answer.raise_for_status().json())


async def start(callers: Callers, stories: Sequence[Story], label: str) -> str:
    """Start a cancel of all jobs with a label once visibility shows them, and return the operation's id."""
    api = callers.clients[0]

    async def matched() -> int:
        answer = await api.post(f"/cancel/{DB}", params={"dry_run": True}, json={"label": label})
        return int(answer.raise_for_status().json()["matched"])

    await eventually(matched, lambda found: found == len(stories), limit=60)
    answer = await api.post(f"/cancel/{DB}", json={"label": label})
    for story in stories:
        callers.note_cancel(story, answer)
    return str(answer.raise_for_status().json()["id"])


async def reach(callers: Callers, operation: str, done: float) -> dict[str, Any]:
    """Wait until an operation has cancelled so many jobs, or has ended, and return how far it is."""
    return await eventually(
        lambda: find(callers, operation),
        lambda seen: seen["state"] != "running" or seen.get("done", 0) >= done,
        limit=GIVE_UP,
    )


async def end_while_workers_die(callers: Callers, operation: str, running: Cluster) -> list[dict[str, Any]]:
    """Kill each worker once while an operation goes on, and return how far it was each time, and in the end."""
    seen = []
    for worker, part in enumerate((1 / 3, 2 / 3)):
        seen.append(await reach(callers, operation, part * JOBS))
        running.kill_worker(worker)
        await asyncio.sleep(5)
        await running.start_worker(worker)
    return [*seen, await reach(callers, operation, float("inf"))]


def is_cancelled_or_delivered(story: Story, arrivals: Sequence[Arrival]) -> Iterator[str]:
    """What an operation that has ended says of every job that it meant."""
    if story.state not in ("cancelled", "delivered"):
        yield f"meant by the cancel, and {story.state}"
    if story.state == "cancelled" and any(arrival.taken for arrival in arrivals):
        yield "cancelled, but the receiver took it"


async def untouched(callers: Callers, stories: Sequence[Story], hook: Hook) -> bool:
    """Return whether jobs wait as they did, and none came."""
    for story in stories:
        await callers.look(story)
    return {story.state for story in stories} == {"scheduled"} and not any(hook.arrivals[s.job] for s in stories)


async def stop_half_way(callers: Callers, stories: Sequence[Story], label: str) -> None:
    """Stop a cancel, and check that it says truly how many jobs it has cancelled."""
    operation = await start(callers, stories, label)
    await reach(callers, operation, len(stories) / 4)
    (await callers.clients[0].delete(f"/operation/{DB}/{operation}")).raise_for_status()
    ended = await reach(callers, operation, float("inf"))
    for story in stories:
        await callers.look(story)
    states = Counter(story.state for story in stories)
    print(f"stopped: {ended['done']} of {len(stories)} cancelled")
    assert ended["state"] == "stopped"
    assert states == {"cancelled": ended["done"], "scheduled": len(stories) - ended["done"]}


@pytest.mark.timeout(2 * GIVE_UP + JOBS / 5)
async def test_cancel_many(running: Cluster, hook: Hook, callers: Callers) -> None:
    await callers.add_route(DB, "hook", hook.url())
    due_meanwhile, waiting = stories_of("soon", JOBS // 20), stories_of("later", JOBS - JOBS // 20)
    others, newcomers = stories_of("other", OTHERS), stories_of("new", OTHERS)
    await callers.create_many(others, [now_ms(7200)] * OTHERS, label="order=2")
    await callers.create_many(waiting, [now_ms(7200)] * len(waiting), label=LABEL)
    soon = [now_ms(12 + CREATED_IN + random.uniform(0, TAKES)) for _ in due_meanwhile]
    await callers.create_many(due_meanwhile, soon, label=LABEL)

    operation = await start(callers, [*waiting, *due_meanwhile], LABEL)
    await callers.create_many(newcomers, [now_ms(7200)] * OTHERS, label=LABEL)
    progress = await end_while_workers_die(callers, operation, running)
    await callers.settle([*waiting, *due_meanwhile])

    for seen in progress:
        print("progress:", {name: seen.get(name) for name in ("state", "matched", "done", "failed", "delivered")})
    rows = [
        Row(name="due later", stories=waiting, also=(is_cancelled_or_delivered,)),
        Row(name="due meanwhile", stories=due_meanwhile, also=(is_cancelled_or_delivered,)),
    ]
    assert await report(f"{JOBS} jobs cancelled by their label, two workers killed", rows, hook, running) == []
    states = Counter(story.state for story in (*waiting, *due_meanwhile))
    assert (progress[-1]["state"], progress[-1]["done"]) == ("done", states["cancelled"])
    assert [seen["state"] for seen in progress[:-1]] == ["running"] * 2
    assert await untouched(callers, [*others, *newcomers], hook)
    await stop_half_way(callers, newcomers, LABEL)

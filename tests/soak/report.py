"""What a soak found: one table for all jobs, and the whole story of each job with which a promise was broken."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import msgspec
from temporalio.service import RPCError

from tests.soak.cluster import Cluster, Loss
from tests.soak.hook import Arrival, Hook
from tests.soak.promises import Check, broken, duplicates, late_ms
from tests.soak.story import Call, Story

STORIES_SHOWN = 10
CALLS_SHOWN = 40
HISTORY_LIMIT = 10.0
"""Seconds in which Temporal has to tell a job's history."""


class Row(msgspec.Struct, kw_only=True):
    """The jobs of one kind."""

    name: str
    stories: list[Story] = []
    late_limit: float | None = None
    """Seconds."""
    also: tuple[Check, ...] = ()
    """What is promised of these jobs beyond what is promised of all."""
    more: dict[str, str] = {}
    """Further columns of the table."""
    wrong: list[str] = []
    """What was wrong of no single job, in words."""

    def broken(self, hook: Hook, losses: Sequence[Loss]) -> list[tuple[Story, list[str]]]:
        """Return the jobs with which a promise was broken, and which."""
        found = [
            (story, broken(story, hook.arrivals[story.job], losses, late_limit=self.late_limit, also=self.also))
            for story in self.stories
        ]
        return [(story, words) for story, words in found if words]


def table(title: str, rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows as text; a row may lack columns."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, *([str(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(columns))]
    text = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(["", title, *text])


async def report(title: str, rows: Iterable[Row], hook: Hook, cluster: Cluster) -> list[str]:
    """Print the table and what is broken, and return that in words: of jobs, and what was wrong of no single one."""
    shown, wrong, others = [], [], list[str]()
    for row in rows:
        found = row.broken(hook, cluster.losses)
        shown.append(summary(row, hook, cluster.losses) | {"broken": len(found) + len(row.wrong)})
        wrong += found
        others += [f"{row.name}: {words}" for words in row.wrong]
    print(table(title, shown), f"logs: {cluster.logs}", sep="\n")
    for story, words in wrong[:STORIES_SHOWN]:
        print(told(story, words, hook.arrivals[story.job], cluster.losses))
        print("\n".join(await _history(cluster, story)))
    told_all = others + [f"{story.job}: {'; '.join(words)}" for story, words in wrong]
    print("", *(f"BROKEN: {words}" for words in told_all), sep="\n")
    return told_all


async def _history(cluster: Cluster, story: Story) -> list[str]:
    """Return what Temporal has of a job, or why it does not tell."""
    try:
        async with asyncio.timeout(HISTORY_LIMIT):
            return await cluster.history(story.job)
    except (RPCError, RuntimeError, TimeoutError) as error:
        return [f"  no history: {error!r}"]


def summary(row: Row, hook: Hook, losses: Sequence[Loss]) -> dict[str, object]:
    """Return a line of the table: how requests were answered, how jobs ended, and what the receiver saw."""
    stories = row.stories
    arrivals = [hook.arrivals[story.job] for story in stories]
    late = sorted(late_ms(found) for found in arrivals if found)
    excused, wrong = (sum(len(duplicates(found, losses)[n]) for found in arrivals) for n in (0, 1))
    states = Counter(story.state for story in stories)
    return {
        "kind": row.name,
        "jobs": len(stories),
        "POST": _answers(stories, "POST"),
        "PUT": _answers(stories, "PUT"),
        "DELETE": _answers(stories, "DELETE"),
        "TRIGGER": _answers(stories, "TRIGGER"),
        "GET": _answers(stories, "GET"),
        "LIST": _answers(stories, "LIST"),
        "end d/f/c": "/".join(str(states[state]) for state in ("delivered", "failed", "cancelled")),
        "requests": sum(map(len, arrivals)),
        "twice (excused)": f"{wrong + excused} ({excused})",
        "late s p50/p99/max": "/".join(f"{late[int(part * (len(late) - 1))] / 1000:.2f}" for part in (0.5, 0.99, 1))
        if late
        else "",
        **row.more,
    }


def _answers(stories: Sequence[Story], method: str) -> str:
    """Return how often each answer was given, as in `200:31 E006:9`."""
    found = Counter(_answer(call) for story in stories for call in story.of(method))
    return " ".join(f"{answer}:{count}" for answer, count in sorted(found.items()))


def _answer(call: Call) -> str:
    return call.code if call.code and call.status == 400 else str(call.status or "none")


def told(story: Story, words: Sequence[str], arrivals: Sequence[Arrival], losses: Sequence[Loss]) -> str:
    """Return the whole story of a job in the order of time."""
    lines = [(call.sent_ms, _call_line(call)) for call in _shortened(story.calls)]
    lines += [(arrival.arrived_ms, _arrival_line(arrival)) for arrival in arrivals]
    times = [time for time, _ in lines] or [0]
    lines += [
        (loss.began_ms, f"worker {loss.worker} was lost, until {_clock(loss.ended_ms)}")
        for loss in losses
        if min(times) <= loss.began_ms <= max(times)
    ]
    text = [f"  {_clock(time)} {line}" for time, line in sorted(lines)]
    return "\n".join(
        ["", f"BROKEN: {story.job} on {story.route}: {'; '.join(words)}", *text, f"  in the end: {_end(story)}"]
    )


def _shortened(calls: Sequence[Call]) -> list[Call]:
    """Return calls without looks that saw nothing new, and without the middle of very many."""
    told = [call for call, before in zip(calls, [None, *calls], strict=False) if not before or _differ(call, before)]
    return told if len(told) <= CALLS_SHOWN else [*told[:3], *told[-CALLS_SHOWN:]]


def _differ(call: Call, before: Call) -> bool:
    return (call.method, call.text) != (before.method, before.text) or call.method != "GET"


def _end(story: Story) -> object:
    """Return what GET said, without a meta of many kilobytes."""
    return str(story.end)[:300]


def _call_line(call: Call) -> str:
    version = "" if call.version is None else f" version {call.version} for {_clock(call.trigger_time)}"
    return (
        f"{call.method}{version} to API {call.api}: at {_clock(call.done_ms)} {call.status or 'no answer'} {call.text}"
    )


def _arrival_line(arrival: Arrival) -> str:
    return (
        f"    receiver: attempt {arrival.attempt}, version {arrival.version}, from port {arrival.port}; at "
        f"{_clock(arrival.answered_ms)} {arrival.status}, {'heard' if arrival.heard else 'NOT heard'}"
    )


def _clock(ms: int | None) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%H:%M:%S.%f")[:-3] if ms else "never"

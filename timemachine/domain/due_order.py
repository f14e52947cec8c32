"""Next due first, from a store that has another order: it is asked for windows of time, each of which is sorted.

A window that holds more than fits a page is made narrower, or read whole if that takes less. A millisecond that alone
holds more is read page by page in the store's own order.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from timemachine.domain.job_filter import ListedJob

BEGINNING = 1_000_000_000_000
"""No job is due before, since none is created that is due in the past. Milliseconds since the epoch."""

END = 253_402_300_800_000
"""The end of time as windows have it: the year 10000, in milliseconds since the epoch."""

LOOKS = 10
"""Windows that one page asks for at most. With fewer jobs than it should have by then, the page is short."""

DIVISIONS = 30
"""Times that a window which holds too many is divided at most, by a count each, before it is looked at."""

READ_WHOLE = 4
"""Pages that a window may hold so that all of it is read, which takes less time than to divide it."""

_MINUTE = 60_000
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR

# Where the parts end, from now on, of which the first window has its jobs counted if it holds more than a page.
_SOON_ENDS = (0, 5 * _MINUTE, _HOUR)

_WIDEN = 12
"""By how much a window is widened at most."""


class Found(msgspec.Struct, frozen=True):
    """Some jobs, and the store's token for more; empty where these are all."""

    jobs: Sequence[ListedJob]
    token: bytes = b""


class WaitingJobs(Protocol):
    """What the order asks of a store. Times are milliseconds since the epoch; `until` is not part of a window."""

    async def look(self, since: int, until: int, *, size: int, token: bytes = b"") -> Found:
        """Return at most `size` jobs that are due within a window, in the store's own order."""

    async def count(self, since: int, until: int) -> int:
        """Return about how many jobs are due within a window."""


class DuePosition(msgspec.Struct, frozen=True, array_like=True):
    """How far a list is. Handed out in cursors: fields may only be added, with defaults."""

    since: int
    """What is due before has been listed. Milliseconds since the epoch."""
    width: int = 0
    """Milliseconds of the window to ask for next; 0 for what is due within a day from now, and then for the rest."""
    next_width: int = 0
    """Milliseconds of the window after that one, if that one was counted as empty; 0 otherwise."""
    token: bytes | None = None
    """Where within the millisecond `since` the list is, as the store has it; None where it is at its beginning, and the
    millisecond may be asked for together with others."""


async def next_due_first(
    store: WaitingJobs, at: DuePosition, until: int, *, limit: int, now: int
) -> tuple[list[ListedJob], DuePosition | None]:
    """Return at most `limit` jobs that are due before a time, the next due first, and where to go on; None at the end.

    A page may be short, or empty, although there are more. Each job is on it once, also one that
    is put off meanwhile, or of which the store has two runs for a moment.
    """
    page: dict[str, ListedJob] = {}
    position: DuePosition | None = at
    looks = 0
    counted: _Window | None = None
    while position and len(page) < limit and looks < LOOKS:
        step = _Step(store, position, until, wanted=limit - len(page), limit=limit, now=now)
        found, position = await step.take(counted)
        counted = step.counted or counted
        for job in found:
            page.pop(job.workflow_id, None)
            page[job.workflow_id] = job
        looks += 1
    return list(page.values()), position


_Window = tuple[int, int]
"""From when on, and before when, in milliseconds since the epoch."""


class _Step:
    """One window: what it gives, and where to go on."""

    def __init__(self, store: WaitingJobs, at: DuePosition, until: int, *, wanted: int, limit: int, now: int) -> None:
        self._store = store
        self._at = at
        self._until = until
        self._wanted, self._limit = wanted, limit
        self._aim = (3 * limit + 1) // 2
        self._now = now
        self._first_end = now + _DAY
        self._end = self._window_end()
        self.counted: _Window | None = None
        """A later window, where it was counted and holds no more than is read whole."""

    def _window_end(self) -> int:
        if self._at.width:
            return min(self._at.since + self._at.width, self._until)
        return min(self._first_end, self._until) if self._at.since < self._first_end else self._until

    def _look_size(self, counted: _Window | None) -> int:
        """Return how many jobs to ask for: so many that it is all, or enough to tell that they are to be counted."""
        if counted == (self._at.since, self._end):
            return READ_WHOLE * self._limit + 1
        # What is due within a day, and all the rest, are few or very many.
        return 2 * self._limit if self._at.width else self._limit + 1

    async def take(self, counted: _Window | None) -> tuple[Sequence[ListedJob], DuePosition | None]:
        """Return the next jobs of the page, and where to go on; None at the end.

        Args:
            counted: A window that was counted and holds no more than is read whole. It may be another one.
        """
        if self._at.token is not None:
            return await self._one_millisecond(self._at.token)
        found = await self._store.look(self._at.since, self._end, size=self._look_size(counted))
        if not found.token:
            return self._whole_window(found.jobs)
        seen = sorted(map(_due, found.jobs))
        if at_once := self._narrower_at_once(seen):
            return (), at_once
        if self._at.next_width:  # it was counted as empty, so counts tell nothing here
            return (), self._first_half()
        since, end, count = await self._first_counted()
        if count > READ_WHOLE * self._limit or (since, end) != (self._at.since, self._end):
            return (), await self._first_of_many(since, end, count, seen)
        rest = await self._store.look(self._at.since, self._end, size=READ_WHOLE * self._limit, token=found.token)
        if rest.token:  # others have come meanwhile
            return (), self._first_half()
        return self._whole_window([*found.jobs, *rest.jobs])

    def _first_half(self) -> DuePosition:
        return DuePosition(self._at.since, max(1, (self._end - self._at.since) // 2))

    async def _first_counted(self) -> tuple[int, int, int]:
        """Return the first part of this window in which jobs are counted, from and before when it is, and how many."""
        since = self._at.since
        ends = () if self._at.width else (self._now + end for end in _SOON_ENDS)
        for end in [*(end for end in ends if since < end < self._end), self._end]:
            if count := await self._store.count(since, end):
                return since, end, count
            since = end
        return self._at.since, self._end, 0

    async def _first_of_many(self, since: int, end: int, count: int, seen: list[int]) -> DuePosition:
        """Return the window to ask for next, found by counts, which take less time than looks.

        It ends before the first window of which a look gives all, and that is the one after it. What was counted as
        empty is looked at all the same: a store may count a job later than it lists it.

        Args:
            since: From when on a part of this window is, before which none are counted.
            end: Before when that part is.
            count: How many jobs are due within it.
            seen: When some of the jobs of this window are due, in order.
        """
        seen = [due for due in seen if since <= due < end]
        if len(seen) < 2 and end < self._end and count > READ_WHOLE * self._limit:
            return DuePosition(self._at.since, end - self._at.since)  # a look at this part will tell where to divide it
        middle = self._guess(seen, since, end, count)
        for division in range(DIVISIONS):
            if count <= READ_WHOLE * self._limit or end - since == 1:
                break
            if earlier := await self._store.count(since, middle):
                end, count = middle, earlier
            else:
                since = middle
            middle = (since + end) // 2
            if not division:
                middle = min(middle, since + self._width(end - since, count))
        self.counted = (since, end) if count <= READ_WHOLE * self._limit else None
        empty = since - self._at.since
        return DuePosition(self._at.since, empty or end - since, next_width=end - since if empty else 0)

    async def _one_millisecond(self, token: bytes) -> tuple[Sequence[ListedJob], DuePosition | None]:
        at = self._at
        found = await self._store.look(at.since, at.since + 1, size=self._wanted, token=token)
        if found.token:
            return found.jobs, DuePosition(at.since, at.width, token=found.token)
        return found.jobs, self._from(at.since + 1, at.width)

    def _whole_window(self, found: Sequence[ListedJob]) -> tuple[Sequence[ListedJob], DuePosition | None]:
        jobs = sorted(found, key=_due)
        if len(jobs) <= self._wanted:
            return jobs, self._from(self._end, self._at.next_width or self._wider(len(jobs)))
        # A page ends between two milliseconds, or within one that is read by the store's tokens from its beginning.
        next_due = jobs[self._wanted].trigger_time
        fitting = [job for job in jobs[: self._wanted] if job.trigger_time < next_due]
        token = None if len(fitting) == self._wanted else b""
        return fitting, DuePosition(next_due, self._width(self._end - self._at.since, len(jobs)), token=token)

    def _narrower_at_once(self, seen: list[int]) -> DuePosition | None:
        """Return where to go on after a window that holds too many, where that is known without a count of them.

        Args:
            seen: When some of its jobs are due, in order.
        """
        since, last = self._at.since, self._end - 1
        if last == since:
            return DuePosition(since, self._at.width, token=b"")
        if seen and not self._at.width and since >= self._first_end:
            # Of all the rest a count would take long, and of what is due before any that was seen hardly.
            return DuePosition(since, max(1, seen[0] - since))
        if len(seen) >= self._wanted and seen[self._wanted - 1] == last:
            return DuePosition(since, last - since)
        return None

    def _guess(self, seen: list[int], since: int, end: int, count: int) -> int:
        """Return where to divide a window that holds too many: before the first of them, or where they suffice."""
        begin = _begin(seen, count)
        if begin - since > (end - since) // 8:
            return begin
        enough = [seen[self._wanted - 1] + 1 - since] if len(seen) >= self._wanted else []
        return since + max(1, min(self._width(end - since, count), (end - since) // 2, *enough))

    def _width(self, width: int, count: int) -> int:
        """Return the part of a width that would hold a page and a half, if so many were spread evenly over it."""
        return max(1, width * self._aim // max(count, 1))

    def _wider(self, count: int) -> int:
        """Return how wide the next window is after one that was not enough; 0 where nothing tells."""
        if not self._at.width or self._at.since < self._now <= self._end:
            return 0
        width = self._end - self._at.since
        return min(self._width(width, count), width * _WIDEN) if count else width * _WIDEN

    def _from(self, since: int, width: int) -> DuePosition | None:
        return DuePosition(since, width) if since < self._until else None


def _begin(seen: list[int], count: int) -> int:
    """Return when the first of a number of jobs is due at the earliest, if others are as far apart as those seen.

    Those seen are the last ones that were created. They may be a sample of all, or the last of them that are due.
    """
    return seen[0] - (seen[-1] - seen[0]) * count // len(seen) if seen else 0


def _due(job: ListedJob) -> int:
    return job.trigger_time

"""Next due first, from a store that lists what was created last first."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from timemachine.domain.due_order import BEGINNING, DIVISIONS, END, LOOKS, DuePosition, Found, next_due_first
from timemachine.domain.job_filter import ListedJob, ListedState

NOW = 1_800_000_000_000
MINUTE, DAY = 60_000, 86_400_000


def a_job(number: int, due: int) -> ListedJob:
    return ListedJob(
        db="arena",
        collection="c",
        id=str(number),
        run_id=str(number),
        trigger_time=due,
        route="hook",
        state=ListedState.SCHEDULED,
        created_at=number,
    )


class Store:
    """Jobs in the order of a store of visibility: the last one that was created first. Counts what it is asked for."""

    def __init__(self, due: Sequence[int]) -> None:
        self.jobs = {number: a_job(number, at) for number, at in enumerate(due)}
        self.created = len(self.jobs)
        self.looks = self.counts = 0
        self.sizes: list[int] = []
        self.read = self.counted = 0

    def add(self, due: int) -> None:
        self.jobs[self.created] = a_job(self.created, due)
        self.created += 1

    def _within(self, since: int, until: int) -> list[int]:
        return [number for number, job in self.jobs.items() if since <= job.trigger_time < until]

    async def look(self, since: int, until: int, *, size: int, token: bytes = b"") -> Found:
        assert since < until
        self.looks += 1
        self.sizes.append(size)
        before = int(token) if token else self.created
        found = sorted((number for number in self._within(since, until) if number < before), reverse=True)[:size]
        token = str(found[-1]).encode() if len(found) == size else b""
        self.read += len(found)
        return Found([self.jobs[number] for number in found], token)

    async def count(self, since: int, until: int) -> int:
        assert since < until
        self.counts += 1
        found = len(self._within(since, until))
        self.counted += found
        return found


async def pages(store: Store, limit: int, *, since: int = BEGINNING, until: int = END) -> list[list[ListedJob]]:
    """Read to the end, and check what every page must keep to."""
    position: DuePosition | None = DuePosition(since)
    read = []
    while position:
        store.looks = store.counts = 0
        page, position = await next_due_first(store, position, until, limit=limit, now=NOW)
        assert len(page) <= limit
        assert store.looks <= 2 * LOOKS  # a window may be read in two parts
        assert store.counts <= 2 * DIVISIONS + LOOKS
        read.append(page)
    return read


def ids(read: list[list[ListedJob]]) -> list[str]:
    return [job.id for page in read for job in page]


def check_whole(store: Store, read: list[list[ListedJob]]) -> None:
    """Each job once, and next due first."""
    assert Counter(ids(read)) == Counter(job.id for job in store.jobs.values())
    due = [job.trigger_time for page in read for job in page]
    assert due == sorted(due)


ANY_TIME = st.one_of(
    st.integers(BEGINNING, NOW + 36_500 * DAY),
    st.integers(NOW - DAY, NOW + DAY),
    st.integers(NOW + 1000, NOW + 1003),
    st.sampled_from([BEGINNING, NOW, NOW + 5 * MINUTE, NOW + 5 * MINUTE - 1, NOW + 36_500 * DAY]),
)


@given(due=st.lists(ANY_TIME, max_size=120), limit=st.integers(1, 12))
async def test_each_job_is_listed_once_and_the_next_due_first(due: list[int], limit: int) -> None:
    store = Store(due)

    check_whole(store, await pages(store, limit))


@given(due=st.lists(ANY_TIME, max_size=80), since=ANY_TIME, until=ANY_TIME, limit=st.integers(1, 12))
async def test_only_what_is_due_within_a_window_is_listed(due: list[int], since: int, until: int, limit: int) -> None:
    store = Store(due)

    read = await pages(store, limit, since=since, until=max(until, since + 1))

    inside = [job for job in store.jobs.values() if since <= job.trigger_time < max(until, since + 1)]
    assert Counter(ids(read)) == Counter(job.id for job in inside)


@pytest.mark.parametrize("limit", [1, 50, 200])
async def test_a_millisecond_with_more_jobs_than_a_page_is_listed_whole(limit: int) -> None:
    crowd = 5000 if limit > 1 else 300
    store = Store([NOW + DAY] * crowd + [NOW + DAY - 1, NOW + DAY + 1, NOW + MINUTE])

    read = await pages(store, limit)

    check_whole(store, read)
    assert len(read) <= (crowd + 3) / limit + 3


SPREADS = {
    "evenly over a month": [NOW + number * 30 * DAY // 20_000 for number in range(20_000)],
    "within five minutes": [NOW + number * 5 * MINUTE // 20_000 for number in range(20_000)],
    "half an hour after they were created": [NOW + number * 30 * MINUTE // 20_000 for number in range(20_000)],
    "each time half of those before": [NOW + int(2 ** (number / 500)) for number in range(20_000)],
    "in a year, within an hour": [NOW + 366 * DAY + number for number in range(20_000)],
    "overdue for up to a week": [NOW - number * 7 * DAY // 20_000 for number in range(20_000)],
    "at full minutes": [NOW + number // 30 * MINUTE for number in range(20_000)],
}


@pytest.mark.parametrize("spread", SPREADS)
async def test_a_page_takes_few_looks_however_jobs_are_spread(spread: str) -> None:
    store = Store(SPREADS[spread])
    position: DuePosition | None = DuePosition(BEGINNING)
    asked, sizes = [], []
    for _ in range(20):
        store.looks = store.counts = 0
        assert position
        page, position = await next_due_first(store, position, END, limit=50, now=NOW)
        asked.append(store.looks + store.counts)
        sizes.append(len(page))

    assert sizes[2:] == [50] * 18
    assert sum(asked[3:]) / len(asked[3:]) <= 3.5


IN_BURSTS = [NOW + DAY - 10 * MINUTE + number // 200 * 20_000 + number % 200 * 7 for number in range(6000)]


async def test_what_is_due_late_in_a_window_is_found_by_the_first_page() -> None:
    """As all jobs that are created to be called after a day, soon after the first was."""
    store = Store([*IN_BURSTS, *(NOW + 2 * DAY + number * MINUTE for number in range(20_000))])

    page, _ = await next_due_first(store, DuePosition(BEGINNING), END, limit=50, now=NOW)

    assert [job.trigger_time for job in page] == IN_BURSTS[:50]


class PutOff(Store):
    """After each look the job that is due next is put off."""

    async def look(self, since: int, until: int, *, size: int, token: bytes = b"") -> Found:
        found = await super().look(since, until, size=size, token=token)
        number = min(self.jobs, key=lambda number: self.jobs[number].trigger_time)
        self.jobs[number] = a_job(number, NOW + 2 * MINUTE + number)
        return found


async def test_a_job_that_is_put_off_while_a_page_is_read_is_listed_once_and_as_it_is_then() -> None:
    store = PutOff([NOW - MINUTE + number for number in range(40)] + [NOW + 3 * MINUTE + n for n in range(400)])
    page, _ = await next_due_first(store, DuePosition(BEGINNING), END, limit=400, now=NOW)

    counted = Counter(job.id for job in page)
    assert counted.most_common(1)[0][1] == 1
    assert page == sorted(page, key=lambda job: job.trigger_time)
    assert [job for job in page if NOW + 2 * MINUTE <= job.trigger_time < NOW + 3 * MINUTE]


class TwoRuns(Store):
    """Has two open runs of each job, as a store may for a moment when one follows the other."""

    async def look(self, since: int, until: int, *, size: int, token: bytes = b"") -> Found:
        found = await super().look(since, until, size=size, token=token)
        return replace(found, jobs=[*found.jobs, *(replace(job, run_id="before") for job in found.jobs)])


async def test_a_job_of_two_runs_is_listed_once() -> None:
    store = TwoRuns([NOW + DAY, NOW + 2 * DAY])
    page, _ = await next_due_first(store, DuePosition(BEGINNING), END, limit=50, now=NOW)

    assert [job.id for job in page] == ["0", "1"]


class OtherSpelling(Store):
    """Finds and counts jobs that are not of the filter, as a store may that compares without case."""

    async def look(self, since: int, until: int, *, size: int, token: bytes = b"") -> Found:
        found = await super().look(since, until, size=size, token=token)
        return replace(found, jobs=[job for job in found.jobs if int(job.id) < 3])


@pytest.mark.parametrize("ahead", [-DAY, 2 * MINUTE, 600 * MINUTE, 20 * DAY])
async def test_jobs_are_listed_among_many_that_the_store_finds_wrongly(ahead: int) -> None:
    store = OtherSpelling([NOW + ahead + number for number in range(500)])
    position: DuePosition | None = DuePosition(BEGINNING)
    listed: list[str] = []
    while position:
        page, position = await next_due_first(store, position, END, limit=50, now=NOW)
        listed += [job.id for job in page]

    assert listed == ["0", "1", "2"]


class WrongCounts(Store):
    """Counts as stores may that are read from copies, and not as it lists."""

    def __init__(self, due: Sequence[int], count: Callable[[int], int]) -> None:
        super().__init__(due)
        self._count = count

    async def count(self, since: int, until: int) -> int:
        return self._count(await super().count(since, until))


def few_as_none(count: int) -> int:
    return count if count > 2 else 0


WRONG_COUNTS: list[Callable[[int], int]] = [
    few_as_none,
    lambda _: 0,
    lambda count: (count + 1) // 2,
    lambda count: 2 * count,
    lambda count: 1_000_000 * count,
]


@given(st.lists(ANY_TIME, max_size=60), st.integers(1, 5), st.sampled_from(WRONG_COUNTS))
@example([NOW + 2 * DAY, *(NOW + 10 * DAY + 100 * number for number in range(30))], 1, few_as_none)
@example([NOW + 40 * DAY - 2**number for number in range(17, 23)], 1, few_as_none)
@example([*(NOW + 20 * 60 * MINUTE - 2**number for number in range(24, 13, -1)), NOW + MINUTE], 1, few_as_none)
async def test_each_job_is_listed_once_whatever_is_counted(
    due: list[int], limit: int, count: Callable[[int], int]
) -> None:
    store = WrongCounts(due, count)
    position: DuePosition | None = DuePosition(BEGINNING)
    read = []
    while position:
        page, position = await next_due_first(store, position, END, limit=limit, now=NOW)
        read.append(page)
        assert len(read) < 1000  # it ends

    check_whole(store, read)


async def test_a_first_window_of_a_few_pages_is_read_whole() -> None:
    """Its other jobs take less time than a narrower window, and the first page takes no more looks than those."""
    store = Store([NOW + 10 * MINUTE + number * number for number in range(180)])

    page, position = await next_due_first(store, DuePosition(BEGINNING), END, limit=50, now=NOW)

    assert [job.id for job in page] == [str(number) for number in range(50)]
    # The day; up to now, for five minutes and for an hour, which are counted; and the hour, and what is before it.
    assert (store.looks, store.counts) == (3, 3)
    assert position


async def test_what_was_counted_is_read_in_one_look() -> None:
    store = Store([NOW + 120 * MINUTE + number * 6 * MINUTE for number in range(206)])

    page, _ = await next_due_first(store, DuePosition(BEGINNING), END, limit=50, now=NOW)

    assert [job.id for job in page] == [str(number) for number in range(50)]
    # The day; its four parts, of which the last is divided once more; and half of that, and what is before it.
    assert (store.looks, store.counts) == (3, 5)


async def test_what_is_due_soon_is_read_no_further_than_to_know_that_it_is_too_much() -> None:
    store = Store([NOW + DAY - 5 * MINUTE + number for number in range(1400)])

    page, _ = await next_due_first(store, DuePosition(BEGINNING), END, limit=50, now=NOW)

    assert [job.id for job in page] == [str(number) for number in range(50)]
    # Nothing but these and what the page is chosen from.
    assert store.sizes[0] == 51
    assert store.read <= 51 + 200


async def test_no_more_is_read_of_a_window_that_was_not_counted_than_tells_that_it_holds_too_many() -> None:
    crowds = [NOW + day * DAY for day in range(1, 60) for _ in range(201)]
    store = Store([*crowds, *(NOW + hour * 60 * MINUTE + 1 for hour in range(60 * 24))])

    page, _ = await next_due_first(store, DuePosition(BEGINNING), END, limit=50, now=NOW)

    assert page
    assert store.read <= 400


async def test_four_pages_that_were_counted_are_read_in_one_look() -> None:
    store = Store(
        [NOW + 61 * MINUTE + number for number in range(200)] + [NOW + DAY - number for number in range(1, 9)]
    )

    page, _ = await next_due_first(store, DuePosition(BEGINNING), END, limit=50, now=NOW)

    assert [job.id for job in page] == [str(number) for number in range(50)]
    assert store.sizes[-1] == 201


def before(end: int, count: int) -> list[int]:
    return [NOW + end - 1] * count


@given(st.one_of([st.tuples(st.lists(ANY_TIME, max_size=limit - 1), st.just(limit)) for limit in (1, 2, 7, 50, 1000)]))
@example(([NOW + at for at in (48_498, 3_477_470, 5_659_686, 36_500 * DAY)], 50))
# The last window of the first day is short, and full of jobs.
@example(([*before(60 * MINUTE, 600), *before(11_850_000, 166), *before(DAY, 126)], 1000))
async def test_less_than_a_page_is_on_one_and_is_not_counted(few: tuple[list[int], int]) -> None:
    due, limit = few
    store = Store(due)

    read = await pages(store, limit)

    check_whole(store, read)
    assert len(read) == 1
    assert store.counts == 0


@pytest.mark.parametrize("soon", [0, 3, 20, 40])
@pytest.mark.parametrize("ahead", [-DAY, 4 * MINUTE, 20 * 60 * MINUTE])
@pytest.mark.parametrize(("stride", "times"), [(16_019, 0.5), (1, 2)])
async def test_a_few_jobs_before_very_many_have_few_of_those_counted(
    soon: int, ahead: int, stride: int, times: float
) -> None:
    """Hardly any if they were created in any order; in the order in which they are due, each twice at most."""
    many = [NOW + 2 * DAY + number * stride % 28_000 * 3 * MINUTE // 2 for number in range(28_000)]
    store = Store([*many, *(NOW + ahead + number for number in range(soon))])

    page, _ = await next_due_first(store, DuePosition(BEGINNING), END, limit=50, now=NOW)

    assert len(page) == 50
    assert store.counted <= times * len(many)


async def test_a_pause_between_bursts_does_not_have_the_rest_of_the_day_counted() -> None:
    """As where jobs are due at full quarters of an hour."""
    store = Store([NOW + quarter * 15 * MINUTE + number for quarter in range(1, 96) for number in range(200)])
    position: DuePosition | None = DuePosition(BEGINNING)
    for _ in range(20):
        assert position
        store.counted = 0
        page, position = await next_due_first(store, position, END, limit=50, now=NOW)

        assert page
        assert store.counted <= len(store.jobs) // 4


async def test_few_jobs_take_two_looks() -> None:
    store = Store([NOW - DAY, NOW, NOW + 40 * DAY])

    (page,) = await pages(store, 50)

    assert [job.id for job in page] == ["0", "1", "2"]
    # The day, and the rest.
    assert (store.looks, store.counts) == (2, 0)


async def test_of_very_many_that_are_due_within_a_day_only_those_of_the_next_minutes_are_counted() -> None:
    store = Store([NOW + number * 3000 for number in range(28_000)])

    page, _ = await next_due_first(store, DuePosition(BEGINNING), END, limit=50, now=NOW)

    assert len(page) == 50
    assert store.counted <= 400


async def test_a_backlog_of_more_than_is_read_whole_takes_few_queries() -> None:
    """As when a receiver was down for a moment, while jobs are created that are due later on the day."""
    store = Store(
        [*(NOW - number * 10 for number in range(300)), *(NOW + number * 4000 for number in range(1, 20_000))]
    )

    page, _ = await next_due_first(store, DuePosition(BEGINNING), END, limit=50, now=NOW)

    assert [job.trigger_time for job in page] == sorted(NOW - number * 10 for number in range(300))[:50]
    assert store.looks + store.counts <= 20


async def test_what_is_not_due_yet_is_listed_from_the_next_moment_on() -> None:
    store = Store([NOW + 1 + number * MINUTE for number in range(300)])

    check_whole(store, await pages(store, 50, since=NOW + 1))


async def test_a_lot_that_is_due_at_one_time_far_away_is_counted_a_few_times() -> None:
    lot = [NOW + 365 * DAY + number for number in range(20_000)]
    store = Store(lot)

    page, _ = await next_due_first(store, DuePosition(BEGINNING), END, limit=50, now=NOW)

    assert [job.trigger_time for job in page] == lot[:50]
    assert store.counted <= 4 * len(lot)


async def test_what_is_overdue_tells_nothing_of_what_is_due_next() -> None:
    store = Store(
        [*(NOW - number for number in range(30)), *(NOW + MINUTE + number * 3000 for number in range(28_000))]
    )

    page, _ = await next_due_first(store, DuePosition(BEGINNING), END, limit=50, now=NOW)

    assert len(page) == 50
    assert store.counted <= 400


@given(
    due=st.lists(ANY_TIME, min_size=1, max_size=60),
    limit=st.integers(1, 7),
    meanwhile=st.lists(st.one_of(ANY_TIME, st.none()), max_size=40),
    data=st.data(),
)
async def test_what_is_there_throughout_is_listed_once_whatever_comes_and_goes(
    due: list[int], limit: int, meanwhile: list[int | None], data: st.DataObject
) -> None:
    store = Store(due)
    ended = set()
    position: DuePosition | None = DuePosition(BEGINNING)
    listed: list[ListedJob] = []
    while position:
        page, position = await next_due_first(store, position, END, limit=limit, now=NOW)
        listed += page
        for _ in range(2):
            if meanwhile and store.jobs:
                if (comes := meanwhile.pop()) is not None:
                    store.add(comes)
                else:
                    number = data.draw(st.sampled_from(sorted(store.jobs)))
                    ended.add(store.jobs.pop(number).id)

    assert max(Counter(job.id for job in listed).values(), default=1) == 1
    assert {str(number) for number in range(len(due))} - ended <= {job.id for job in listed}
    assert all(one.trigger_time <= other.trigger_time for one, other in pairwise(listed))

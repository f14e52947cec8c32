"""What the service promises of one job, as checks of its story against what the receiver saw. No I/O."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

from tests.soak.cluster import Loss
from tests.soak.hook import Arrival
from tests.soak.story import ENDED, NO_SUCH_JOB, TOO_LATE, Call, Story

TOLD_AFTER_MS = 500
"""How long after an answer a worker may still be about to write it down: a kill within counts as a cut attempt."""

PUT_OFF = (429, 503)
ANSWERED_WELL = (200, 202, *PUT_OFF)
"""Done, begun, or put off."""

Check = Callable[[Story, Sequence[Arrival]], Iterator[str]]


def broken(
    story: Story,
    arrivals: Sequence[Arrival],
    losses: Sequence[Loss] = (),
    *,
    late_limit: float | None = None,
    also: Iterable[Check] = (),
) -> list[str]:
    """Return which promises were broken, in words.

    Args:
        arrivals: All requests for the job, in the order in which they came.
        losses: Of workers, which alone excuse a duplicate, and that it is not known what the receiver took.
        late_limit: Seconds.
        also: What is promised of this job beyond what is promised of all.
    """
    found = [words for check in (*CHECKS, *also) for words in check(story, arrivals)]
    found += _changed_after_the_end(story, arrivals, losses)
    found += _failed_for_a_reason(story, arrivals, losses) if story.state == "failed" else []
    found += [f"delivered again at {again.arrived_ms}" for again in duplicates(arrivals, losses)[1]]
    if late_limit is not None and (late := late_ms(arrivals)) > late_limit * 1000:
        found.append(f"late by {late / 1000:.1f} s")
    return found


def late_ms(arrivals: Sequence[Arrival]) -> int:
    """Return by how much the first request came after its time; 0 where none came."""
    return max(0, arrivals[0].arrived_ms - arrivals[0].trigger_time) if arrivals else 0


def duplicates(arrivals: Sequence[Arrival], losses: Sequence[Loss]) -> tuple[list[Arrival], list[Arrival]]:
    """Return the requests that came although an earlier one was answered 2xx: the excused ones, and the others.

    A duplicate is excused where every earlier one was cut by the loss of the worker that made it.
    """
    excused: list[Arrival] = []
    wrong: list[Arrival] = []
    for number, arrival in enumerate(arrivals):
        before = [earlier for earlier in arrivals[:number] if earlier.status is None or earlier.status < 300]
        if before:
            (excused if all(was_cut(earlier, losses) for earlier in before) else wrong).append(arrival)
    return excused, wrong


def was_cut(arrival: Arrival, losses: Sequence[Loss]) -> bool:
    """Return whether its sender was lost before it could have written the answer down."""
    answered = arrival.arrived_ms if arrival.answered_ms is None else arrival.answered_ms
    return any(
        loss.began_ms <= answered + TOLD_AFTER_MS
        and (loss.ended_ms is None or arrival.arrived_ms <= loss.ended_ms)
        and _came_from_the_lost(arrival, answered, loss)
        for loss in losses
    )


def _came_from_the_lost(arrival: Arrival, answered: int, loss: Loss) -> bool:
    # A connection that was closed after its answer is nobody's any more when the worker is lost.
    return arrival.port in loss.own or (answered <= loss.began_ms and arrival.port not in loss.others)


def _failed_for_a_reason(story: Story, arrivals: Sequence[Arrival], losses: Sequence[Loss]) -> Iterator[str]:
    # Of an attempt that was lost with its worker nobody can know; a cancel of such a job ends it as failed.
    if any(arrival.taken and not was_cut(arrival, losses) for arrival in arrivals):
        yield "said to have failed, but the receiver took it"
    refused = any(arrival.status is not None and arrival.status >= 300 for arrival in arrivals[-1:])
    cancelled = bool(story.of("DELETE")) and any(was_cut(arrival, losses) for arrival in arrivals)
    if not refused and not cancelled:
        yield "failed, but its last attempt was not refused"


def _changed_after_the_end(story: Story, arrivals: Sequence[Arrival], losses: Sequence[Loss]) -> Iterator[str]:
    seen = sorted((call for call in story.of("GET") if call.state), key=lambda call: call.done_ms)
    for end in [call for call in seen if call.state in ENDED][:1]:
        later = {call.state for call in seen if call.sent_ms >= end.done_ms} - {end.state}
        # A cancel ends a job as failed whose attempt was lost, until a worker that was frozen tells that it was taken.
        cancelled = end.state == "failed" and any(call.sent_ms < end.done_ms for call in story.of("DELETE"))
        told_late = cancelled and any(arrival.taken and was_cut(arrival, losses) for arrival in arrivals)
        if later and not (told_late and later == {story.state} == {"delivered"}):
            yield f"was {end.state}, and later {later}"


def most_at_once(arrivals: Iterable[Sequence[Arrival]]) -> int:
    """Return how many requests were under way at the receiver at a time, of those that it has answered."""
    spans = [(one.arrived_ms, one.answered_ms) for found in arrivals for one in found if one.answered_ms is not None]
    # What ends in the millisecond in which another begins is not beside it.
    changes = sorted([(began, 1) for began, _ in spans] + [(ended, -1) for _, ended in spans])
    return max(itertools.accumulate(change for _, change in changes), default=0)


def is_created(story: Story) -> bool:
    return any(call.took for call in story.of("POST"))


def answers_make_sense(story: Story, _: Sequence[Arrival]) -> Iterator[str]:
    for call in story.calls:
        if call.excused:
            continue
        if call.status not in ANSWERED_WELL and call.code not in _allowed_codes(story, call):
            yield f"{call.method} was answered {call.status or 'nothing'} {call.code or ''} {call.text}"


def _allowed_codes(story: Story, call: Call) -> set[str]:
    created = any(create.took and create.done_ms <= call.sent_ms for create in story.of("POST"))
    allowed = set() if created else {NO_SUCH_JOB}
    return allowed | {TOO_LATE} if call.method in ("PUT", "DELETE", "TRIGGER") else allowed


def is_never_early(story: Story, arrivals: Sequence[Arrival]) -> Iterator[str]:
    versions = story.versions
    for arrival in arrivals:
        wanted = versions[arrival.version].trigger_time
        if arrival.trigger_time != wanted and not _is_triggered(story, arrival):
            yield f"version {arrival.version} came with trigger time {arrival.trigger_time}, not {wanted}"
        if arrival.arrived_ms < arrival.trigger_time:
            yield f"early by {arrival.trigger_time - arrival.arrived_ms} ms"


def _is_triggered(story: Story, arrival: Arrival) -> bool:
    """Return whether its trigger time is when somebody asked for it to go out now."""
    return any(
        call.sent_ms <= arrival.trigger_time and (call.in_doubt or arrival.trigger_time <= call.done_ms)
        for call in story.of("TRIGGER")
        if not call.refused
    )


def is_too_late_for_a_reason(story: Story, _: Sequence[Arrival]) -> Iterator[str]:
    """Only a job that was due, triggered or cancelled takes no change any more."""
    for call in (call for call in story.calls if call.code == TOO_LATE):
        others = [other for other in story.calls if other is not call and not other.refused]
        ended = [other.sent_ms for other in others if other.method in ("DELETE", "TRIGGER")]
        if call.done_ms < min(_trigger_times_before(call, others) + ended, default=0):
            yield f"{call.method} was answered E006 at {call.done_ms}, before the job was due, triggered or cancelled"


def _trigger_times_before(call: Call, others: Sequence[Call]) -> list[int]:
    """Return the times that the job may have had when a request was answered."""
    written = [other for other in others if other.trigger_time is not None]
    confirmed = [other for other in written if other.took and other.done_ms <= call.sent_ms]
    since = max((other.sent_ms for other in confirmed), default=0)
    return [other.trigger_time or 0 for other in written if other.sent_ms >= since or other.in_doubt]


def is_never_lost(story: Story, arrivals: Sequence[Arrival]) -> Iterator[str]:
    if story.state not in ENDED:
        if story.state or is_created(story) or not _is_known_to_be_missing(story):
            yield f"has not ended: {story.state or story.end}"
    elif story.state == "delivered" and not any(arrival.status == 200 for arrival in arrivals):
        yield "said to be delivered, but no receiver took it"
    elif story.state == "cancelled" and not any(call.took or call.in_doubt for call in story.of("DELETE")):
        yield "cancelled, but nobody was told so"


def _is_known_to_be_missing(story: Story) -> bool:
    return story.end is not None and story.end.get("code") == NO_SUCH_JOB


def a_trigger_is_true(story: Story, arrivals: Sequence[Arrival]) -> Iterator[str]:
    """A job that was told to go out now does not wait for its time, unless it is changed again."""
    for call in (call for call in story.of("TRIGGER") if call.took):
        changed = any(change.done_ms > call.sent_ms and not change.refused for change in story.of("PUT"))
        if not changed and any(arrival.trigger_time > call.done_ms for arrival in arrivals):
            yield "TRIGGER was answered 200, but the job went out at its time"


def a_cancel_is_true(story: Story, arrivals: Sequence[Arrival]) -> Iterator[str]:
    for call in story.of("DELETE"):
        if call.took and any(arrival.taken for arrival in arrivals):
            yield "DELETE was answered 200, but the receiver took it"
        if call.took and any(arrival.arrived_ms > call.done_ms for arrival in arrivals):
            yield "a request came after DELETE was answered 200"
        if call.took and story.state != "cancelled":
            yield f"DELETE was answered 200, but the job is {story.state}"
        if call.code == TOO_LATE and story.state == "cancelled" and not _others_cancelled(story, call):
            yield "DELETE was answered E006, but the job is cancelled"


def _others_cancelled(story: Story, refused: Call) -> bool:
    return any(call.took or call.in_doubt for call in story.of("DELETE") if call is not refused)


def a_change_is_true(story: Story, arrivals: Sequence[Arrival]) -> Iterator[str]:
    came = {arrival.version for arrival in arrivals}
    versions = story.versions
    confirmed = max((version for version, call in versions.items() if call.took), default=0)
    if old := [version for version in came if version < confirmed]:
        yield f"version {old[0]} was delivered, although PUT of version {confirmed} was answered 200"
    if refused := [version for version in came if versions[version].refused]:
        yield f"version {refused[0]} was delivered, although its request was refused"


def is_one_message(_: Story, arrivals: Sequence[Arrival]) -> Iterator[str]:
    """All attempts of a job have one webhook-id, by which a receiver knows duplicates, and none is counted twice."""
    if any(one.webhook_id != other.webhook_id for one, other in itertools.pairwise(arrivals)):
        yield "its attempts differ in webhook-id"


CHECKS: tuple[Check, ...] = (
    answers_make_sense,
    is_too_late_for_a_reason,
    is_never_early,
    is_never_lost,
    a_trigger_is_true,
    a_cancel_is_true,
    a_change_is_true,
    is_one_message,
)

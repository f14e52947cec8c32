"""What the servers that a test used wrote last: a test that fails may do so because of them."""

from collections.abc import Iterable, Mapping
from itertools import chain

from devstack.parts import Part

_LINES = 20


def ends_of_logs(fixtures: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return a heading and the last lines of the log of each server among the fixtures of a test."""
    logs = {part.program.log for fixture in fixtures.values() for part in _parts_of(fixture)}
    there = sorted(log for log in logs if log and log.exists())
    return [(f"end of {log}", "\n".join(log.read_text(errors="replace").splitlines()[-_LINES:])) for log in there]


def _parts_of(fixture: object) -> Iterable[Part]:
    match fixture:
        case Part():
            yield fixture
        case tuple() | list():
            yield from chain.from_iterable(map(_parts_of, fixture))
        case object(part=Part() as part):
            yield part
        case object(parts=dict() as parts):
            yield from chain.from_iterable(map(_parts_of, parts.values()))

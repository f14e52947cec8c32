"""Pages: how lists are asked for."""

from typing import Annotated

from litestar.params import QueryParameter
from msgspec import Meta

from timemachine.domain.errors import MalformedError
from timemachine.domain.jobs import looks_like_seconds, seconds_given

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
MAX_CURSOR = 4096

MAX_TIME = 253_402_300_799_999
"""The end of the year 9999, in milliseconds since the epoch."""

Limit = Annotated[int, QueryParameter(ge=1, le=MAX_LIMIT, description="Entries of a page, at most.")]
Cursor = Annotated[
    str | None,
    QueryParameter(
        max_length=MAX_CURSOR,
        schema_extra={"max_length": MAX_CURSOR},
        description="The `next` of the page before; the first page without it.",
    ),
]


def _time(description: str) -> QueryParameter:
    """Return a parameter that is a time. The document has its bounds only where they are written out for it."""
    extra = {"minimum": 0, "maximum": MAX_TIME}
    return QueryParameter(ge=0, le=MAX_TIME, schema_extra=extra, description=description)


Since = Annotated[int | None, _time("From this time on, in milliseconds since the epoch.")]
Until = Annotated[int | None, _time("Before this time, in milliseconds since the epoch.")]

Next = Annotated[str, Meta(description="The `cursor` of the next page. Left out on the last one.")]


def check_window(since: int | None, until: int | None) -> None:
    """Refuse a stretch of time whose ends were meant in seconds.

    Raises:
        MalformedError: One of them looks like it.
    """
    for name, time in (("since", since), ("until", until)):
        if time is not None and looks_like_seconds(time):
            raise MalformedError(seconds_given(name))

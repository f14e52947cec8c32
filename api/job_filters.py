"""Filters of lists and counts, as a request's query has them."""

from typing import Annotated

from litestar.params import QueryParameter

from api.pagination import time_parameter
from api.parameters import Db
from api.schemas import name_schema
from timemachine.domain.job_filter import JobFilter, ListedState
from timemachine.domain.jobs import MAX_JOB_ID, MAX_LABEL, MAX_NAME

_NAME = name_schema(MAX_NAME)
OfRoute = Annotated[str | None, QueryParameter(description="Only jobs on this route.", schema_extra=_NAME)]
InCollection = Annotated[str | None, QueryParameter(description="Only jobs in this collection.", schema_extra=_NAME)]
InState = Annotated[
    ListedState | None,
    QueryParameter(
        name="state",
        description=(
            "Only jobs in this state. One that Temporal closed otherwise than it ended is in the list of all jobs only."
        ),
    ),
]
WithLabel = Annotated[
    str | None,
    QueryParameter(description="Only jobs with this label.", schema_extra={"min_length": 1, "max_length": MAX_LABEL}),
]
WithPrefix = Annotated[
    str | None,
    QueryParameter(
        description="Only jobs whose id begins with this. It needs a collection.", schema_extra=name_schema(MAX_JOB_ID)
    ),
]
DueFrom = Annotated[
    int | None, time_parameter("Only jobs that are due at this time or later, in milliseconds since the epoch.")
]
DueTo = Annotated[
    int | None, time_parameter("Only jobs that are due before this time, in milliseconds since the epoch.")
]
CreatedBy = Annotated[
    str | None,
    QueryParameter(description="Only jobs that the API key with this id created.", schema_extra=name_schema(MAX_NAME)),
]


def job_filter(
    db: Db,
    in_state: InState = None,
    route: OfRoute = None,
    label: WithLabel = None,
    due_from: DueFrom = None,
    due_to: DueTo = None,
    created_by: CreatedBy = None,
) -> JobFilter:
    """Return the filter that a request's query says.

    Raises:
        ForbiddenNameError, MalformedError: See `JobFilter`.
    """
    return JobFilter(
        db=db, state=in_state, route=route, label=label, due_from=due_from, due_to=due_to, created_by=created_by
    )

"""Names as parameters of a request. What is not allowed is refused by `check_name`, in our own words."""

from typing import Annotated

from litestar.openapi.spec import Schema
from litestar.params import PathParameter

from api.schemas import name_schema
from timemachine.domain.jobs import MAX_JOB_ID, MAX_NAME
from timemachine.domain.stored_names import EVENTS_COLLECTION

Db = Annotated[
    str,
    PathParameter(
        schema_extra=name_schema(MAX_NAME), description="A group of jobs and their routes: 1 to 64 characters."
    ),
]
Collection = Annotated[
    str, PathParameter(schema_extra=name_schema(MAX_NAME), description="A group of jobs: 1 to 64 characters.")
]
CollectionOfClients = Annotated[
    str,
    PathParameter(
        schema_extra={**name_schema(MAX_NAME), "schema_not": Schema(const=EVENTS_COLLECTION)},
        description=f"A group of jobs: 1 to 64 characters, and not `{EVENTS_COLLECTION}`.",
    ),
]
"""Where clients may create and change jobs."""
JobIdInPath = Annotated[
    str, PathParameter(schema_extra=name_schema(MAX_JOB_ID), description="The job's id, within db and collection.")
]
RouteIdInPath = Annotated[
    str, PathParameter(schema_extra=name_schema(MAX_NAME), description="The route's id, within its db.")
]

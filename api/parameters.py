"""Names as parameters of a request. What is not allowed is refused by `check_name`, in our own words."""

from typing import Annotated

from litestar.params import PathParameter

from api.schemas import name_schema
from timemachine.domain.jobs import MAX_JOB_ID, MAX_NAME

Db = Annotated[
    str,
    PathParameter(
        schema_extra=name_schema(MAX_NAME), description="A group of jobs and their routes: 1 to 64 characters."
    ),
]
Collection = Annotated[
    str, PathParameter(schema_extra=name_schema(MAX_NAME), description="A group of jobs: 1 to 64 characters.")
]
JobIdInPath = Annotated[
    str, PathParameter(schema_extra=name_schema(MAX_JOB_ID), description="The job's id, within db and collection.")
]
RouteIdInPath = Annotated[
    str, PathParameter(schema_extra=name_schema(MAX_NAME), description="The route's id, within its db.")
]

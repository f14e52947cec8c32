"""Parameters in the path of a request. What is not allowed is refused by `check_name`, in our own words."""

from typing import Annotated

from litestar.params import PathParameter

from api.schemas import name_schema
from timemachine.domain.jobs import MAX_JOB_ID, MAX_NAME

Db = Annotated[str, PathParameter(schema_extra=name_schema(MAX_NAME))]
Collection = Annotated[str, PathParameter(schema_extra=name_schema(MAX_NAME))]
JobIdInPath = Annotated[str, PathParameter(schema_extra=name_schema(MAX_JOB_ID))]
RouteIdInPath = Annotated[str, PathParameter(schema_extra=name_schema(MAX_NAME))]

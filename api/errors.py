"""From error to answer: one table, and one function that writes `{"error", "code"}`."""

import logging
from collections.abc import Mapping
from typing import Annotated

import msgspec
from litestar import MediaType, Request, Response
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example
from litestar.params import QueryParameter
from litestar.types import Receive, Scope, Send
from msgspec import Meta

from api.explanations import explain_parameter
from timemachine import metrics
from timemachine.domain import errors

log = logging.getLogger(__name__)


class ErrorResponse(msgspec.Struct, frozen=True):
    """How an error is told to a client."""

    status: int
    code: str
    meaning: str


# A code is never given another meaning. docs/api.md carries this table; a test holds the two together.
ERROR_RESPONSES: Mapping[type[Exception], ErrorResponse] = {
    errors.MalformedError: ErrorResponse(400, "E001", "the body or a parameter is malformed"),
    errors.ForbiddenNameError: ErrorResponse(400, "E002", "a db, collection, job or route name is not allowed"),
    errors.TriggerTimeError: ErrorResponse(400, "E003", "`trigger_time` is too far in the past or future"),
    errors.NoSuchJobError: ErrorResponse(400, "E004", "no such job"),
    errors.JobExistsError: ErrorResponse(400, "E005", "another job with this id exists"),
    errors.TooLateError: ErrorResponse(400, "E006", "too late: the job is being delivered or has ended"),
    errors.NoSuchRouteError: ErrorResponse(400, "E007", "no such route"),
    errors.RouteExistsError: ErrorResponse(400, "E008", "another route with this id exists"),
    errors.RouteInUseError: ErrorResponse(400, "E009", "jobs wait on the route, or events go to it"),
    errors.WebhookUrlError: ErrorResponse(
        400, "E010", "`webhook_url` is malformed, or points where deliveries may not go"
    ),
    errors.TooLargeError: ErrorResponse(413, "E011", "too large"),
    errors.UnauthorizedError: ErrorResponse(401, "E012", "no valid key"),
    errors.ForbiddenError: ErrorResponse(403, "E013", "the key does not open this db, or its role does not suffice"),
    errors.BusyError: ErrorResponse(429, "E014", "too many requests"),
    errors.UnavailableError: ErrorResponse(
        503, "E015", "Postgres or Temporal does not answer; nothing is known to be lost"
    ),
    Exception: ErrorResponse(500, "E016", "internal error"),
    errors.ContentTypeError: ErrorResponse(415, "E017", "wrong method, path or content type"),
    errors.NoSuchOperationError: ErrorResponse(400, "E018", "no such operation"),
    errors.NoSuchKeyError: ErrorResponse(400, "E019", "no such key"),
    errors.LastAdminKeyError: ErrorResponse(400, "E020", "the last admin key cannot be revoked over HTTP"),
}


class ErrorBody(msgspec.Struct, frozen=True):
    """What every refused request is answered with."""

    error: Annotated[str, Meta(description="The reason, for people.")]
    code: Annotated[
        str,
        Meta(
            description="The reason, for programs: a code keeps its meaning for ever.",
            extra_json_schema={"extra": {"enum": sorted(answer.code for answer in ERROR_RESPONSES.values())}},
        ),
    ]


RETRY_AFTER_SECONDS = 1

# The codes of the statuses that the framework itself answers with; any other 4xx of its own is a malformed request.
_FRAMEWORK_CODES = {404: "E017", 405: "E017", 413: "E011", 415: "E017"}
_FRAMEWORK_REASONS = {
    404: "no such path; the API is described at /docs",
    405: "this path does not take this method",
    413: "the body is too large",
}


def response_to(error: Exception) -> tuple[ErrorResponse, str]:
    """Return the row of the nearest class of an error in the table, and what is told to the client. It is counted.

    What is not in the table is logged, and its cause hidden.
    """
    row = next(ERROR_RESPONSES[kind] for kind in type(error).__mro__ if kind in ERROR_RESPONSES)
    metrics.REFUSED.add(row.code)
    if row.status == 500:
        log.error("internal error", exc_info=error)
        return row, "internal error"
    return row, str(error)


def answer_error(_: Request[object, object, State], error: Exception) -> Response[ErrorBody]:
    """Answer with the row of the error in the table."""
    row, reason = response_to(error)
    return _response(row.status, ErrorBody(reason, row.code), _headers(row.status, error))


def _headers(status: int, error: Exception) -> dict[str, str]:
    """Return what HTTP wants said beside the body."""
    if status == 401:
        return {"www-authenticate": "Bearer"}
    if status in (429, 503):
        return {"retry-after": str(error.retry_after if isinstance(error, errors.BusyError) else RETRY_AFTER_SECONDS)}
    return {}


def answer_http(request: Request[object, object, State], error: HTTPException) -> Response[ErrorBody]:
    """Answer what the framework refuses before a handler of ours is reached."""
    if error.status_code >= 500:
        return answer_error(request, error)
    body = ErrorBody(_reason(request, error), _FRAMEWORK_CODES.get(error.status_code, "E001"))
    metrics.REFUSED.add(body.code)
    return _response(error.status_code if error.status_code in _FRAMEWORK_CODES else 400, body, error.headers or {})


async def refuse(error: errors.TimemachineError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request with an error before it reaches the framework, with its body unread."""
    request = Request[object, object, State](scope)
    answer = answer_error(request, error).to_asgi_response(app=None, request=request)
    await answer(scope, receive, send)


def _reason(request: Request[object, object, State], error: HTTPException) -> str:
    """Return the framework's reason in one line, with the parameters that it found wrong."""
    wrong = [item for item in error.extra if item] if isinstance(error.extra, list) else []
    named = "; ".join(_wrong_parameter(request, item.get("key", "value"), item.get("message", "")) for item in wrong)
    return named or _FRAMEWORK_REASONS.get(error.status_code, error.detail)


def _wrong_parameter(request: Request[object, object, State], field: str, message: str) -> str:
    name = _name_in_query(request, field)
    return explain_parameter(name, message, request.query_params.get(name))


def _name_in_query(request: Request[object, object, State], field: str) -> str:
    """Return what the client calls an argument of a handler, or of what it depends on."""
    handler = request.route_handler
    signatures = [handler.parsed_fn_signature]
    signatures += [needed.parsed_fn_signature for needed in handler.resolve_dependencies().values()]
    for signature in signatures:
        argument = signature.parameters.get(field)
        if argument and isinstance(argument.kwarg_definition, QueryParameter):
            return argument.kwarg_definition.name or field
    return field


def _response(status: int, body: ErrorBody, headers: Mapping[str, str] | None = None) -> Response[ErrorBody]:
    return Response(body, status_code=status, media_type=MediaType.JSON, headers=dict(headers or {}))


class _NamedExample(Example):
    """An example under a name, which Litestar also writes into the example itself, where OpenAPI does not allow it."""

    @property
    def _exclude_fields(self) -> set[str]:
        return {"id"}


def refusals(*kinds: type[Exception], needs_key: bool = True) -> dict[int, ResponseSpec]:
    """Return the documentation of the errors that an operation answers with, grouped by status."""
    of_keys = (errors.UnauthorizedError, errors.ForbiddenError) if needs_key else ()
    everywhere = (errors.BusyError, errors.UnavailableError, Exception)
    rows = [ERROR_RESPONSES[kind] for kind in (*kinds, *of_keys, *everywhere)]
    return {
        status: ResponseSpec(
            ErrorBody,
            generate_examples=False,
            description="; ".join(f"{row.code}: {row.meaning}" for row in rows if row.status == status),
            examples=[
                _NamedExample(id=row.code, summary=row.meaning, value={"error": row.meaning, "code": row.code})
                for row in rows
                if row.status == status
            ],
        )
        for status in sorted({row.status for row in rows})
    }

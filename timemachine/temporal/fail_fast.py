"""Calls to Temporal for a client that waits: that Temporal is too busy is told at once, not after seconds of trying."""

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from google.protobuf.message import Message
from temporalio.api.enums.v1 import ResourceExhaustedCause
from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure, ResourceExhaustedFailure
from temporalio.api.workflowservice.v1 import PollWorkflowExecutionUpdateRequest
from temporalio.service import RPCError, RPCStatusCode, ServiceClient, ServiceResponse

# What the SDK tries again, other than RESOURCE_EXHAUSTED. It also tries CANCELLED where the connection broke, which can
# not be told here; a cancel of our own is never reported so.
_PASSING = frozenset(
    {
        RPCStatusCode.UNAVAILABLE,
        RPCStatusCode.UNKNOWN,
        RPCStatusCode.INTERNAL,
        RPCStatusCode.ABORTED,
        RPCStatusCode.OUT_OF_RANGE,
        RPCStatusCode.DATA_LOSS,
        RPCStatusCode.CANCELLED,
    }
)

# In the message alone: a limit of the whole namespace has the same cause and scope.
_UPDATES_OF_ONE_WORKFLOW = "in-flight updates"

# Of a namespace that the setup of this version did not prepare, or did a moment ago: in the message alone.
_ATTRIBUTE_IS_MISSING = re.compile(
    r"no mapping defined for search attribute Timemachine"
    r"|invalid search attribute: Timemachine"
    r"|'Timemachine\w+' is not a valid search attribute"
    r"|search attribute Timemachine\w+ is not defined"
    r"|unable to get Timemachine\w+ search attribute type"
)

# Seconds, as the SDK waits: 11 in all, which is longer than clients are let wait.
_WAITS = tuple(0.1 * 1.5**n for n in range(10))


class FailFastServiceClient(ServiceClient):
    """A service client that hands on RESOURCE_EXHAUSTED, and tries everything else again as the SDK does.

    That the namespace is missing, or a search attribute of ours in it, is FAILED_PRECONDITION: as NOT_FOUND it would be
    read as an answer about a job, and as INVALID_ARGUMENT as a fault of the request.

    The SDK's own retries wait a second and more after RESOURCE_EXHAUSTED, and its `RetryConfig` cannot shorten that
    without giving up on a server that restarts.
    """

    def __init__(self, patient: ServiceClient) -> None:
        """Take the client that makes the calls."""
        super().__init__(patient.config)
        self._patient = patient

    async def _rpc_call(
        self, rpc: str, req: Message, resp_type: type[ServiceResponse], *, retry: bool, **how: Any
    ) -> ServiceResponse:
        """Make a call. All of the SDK's calls come through here."""
        try:
            if not retry or _asks_for_outcome(req):
                return await self._patient._rpc_call(rpc, req, resp_type, retry=retry, **how)
            return await _answer_or_busy(lambda: self._patient._rpc_call(rpc, req, resp_type, retry=False, **how))
        except RPCError as error:
            if _is_unprepared(error):
                raise RPCError(
                    error.message, RPCStatusCode.FAILED_PRECONDITION, error.grpc_status.SerializeToString()
                ) from error
            raise

    @property
    def worker_service_client(self) -> Any:
        """What a worker would poll with."""
        return self._patient.worker_service_client

    def update_rpc_metadata(self, metadata: Mapping[str, str | bytes]) -> None:
        """Replace the metadata of all calls."""
        self._patient.update_rpc_metadata(metadata)

    def update_api_key(self, api_key: str | None) -> None:
        """Replace the API key of all calls."""
        self._patient.update_api_key(api_key)


def _asks_for_outcome(request: Message) -> bool:
    """Return whether a request asks what has become of another, so that to be refused would tell a wrong story."""
    return isinstance(request, PollWorkflowExecutionUpdateRequest) or getattr(request, "wait_new_event", False)


def _is_unprepared(error: RPCError) -> bool:
    """Return whether it is the namespace, or what the setup makes in it, that is missing, not what was asked for."""
    if error.status is RPCStatusCode.INVALID_ARGUMENT:
        return _ATTRIBUTE_IS_MISSING.search(error.message) is not None
    return any(detail.Is(NamespaceNotFoundFailure.DESCRIPTOR) for detail in error.grpc_status.details)


def _is_busy_workflow(error: RPCError) -> bool:
    """Return whether it is one workflow that takes no more for a moment, and not the server.

    As one that ends just now, or that many change at once.
    """
    failure = ResourceExhaustedFailure()
    causes = {failure.cause for detail in error.grpc_status.details if detail.Unpack(failure)}
    return ResourceExhaustedCause.RESOURCE_EXHAUSTED_CAUSE_BUSY_WORKFLOW in causes or (
        ResourceExhaustedCause.RESOURCE_EXHAUSTED_CAUSE_CONCURRENT_LIMIT in causes
        and _UPDATES_OF_ONE_WORKFLOW in error.message
    )


async def _answer_or_busy(call: Callable[[], Awaitable[ServiceResponse]]) -> ServiceResponse:
    """Return the answer of a call, made again while the server is away.

    Raises:
        RPCError: RESOURCE_EXHAUSTED only while no earlier call may have taken effect unnoticed.
    """
    in_doubt = None
    waits = iter(_WAITS)
    while True:
        try:
            return await call()
        except RPCError as error:
            is_passing = error.status in _PASSING
            if is_passing:
                in_doubt = error
            wait = next(waits, None) if is_passing or _is_busy_workflow(error) else None
            if wait is None:
                if in_doubt and error.status is RPCStatusCode.RESOURCE_EXHAUSTED:
                    raise in_doubt from error
                raise
        await asyncio.sleep(wait * random.uniform(0.8, 1.2))  # noqa: S311 - guards nothing

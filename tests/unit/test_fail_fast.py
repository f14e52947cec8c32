"""Calls to Temporal that are not patient with a server that is too busy."""

from typing import Any

import pytest
from google.protobuf.message import Message
from temporalio.api.common.v1 import GrpcStatus
from temporalio.api.enums.v1 import ResourceExhaustedCause
from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure, ResourceExhaustedFailure
from temporalio.api.workflowservice.v1 import (
    DescribeWorkflowExecutionRequest,
    GetWorkflowExecutionHistoryRequest,
    PollWorkflowExecutionUpdateRequest,
    StartWorkflowExecutionRequest,
)
from temporalio.service import ConnectConfig, RPCError, RPCStatusCode, ServiceClient

from timemachine.domain.errors import UnavailableError
from timemachine.temporal import fail_fast
from timemachine.temporal.client import temporal_timeout
from timemachine.temporal.fail_fast import FailFastServiceClient

BUSY, AWAY, ABSENT = RPCStatusCode.RESOURCE_EXHAUSTED, RPCStatusCode.UNAVAILABLE, RPCStatusCode.NOT_FOUND
INVALID = RPCStatusCode.INVALID_ARGUMENT


def exhausted(cause: ResourceExhaustedCause.ValueType, message: str = "busy") -> RPCError:
    """Return the refusal that names what there is too much of."""
    status = GrpcStatus(code=BUSY.value)
    status.details.add().Pack(ResourceExhaustedFailure(cause=cause))
    return RPCError(message, BUSY, status.SerializeToString())


BUSY_WORKFLOW = exhausted(ResourceExhaustedCause.RESOURCE_EXHAUSTED_CAUSE_BUSY_WORKFLOW)
MANY_UPDATES = exhausted(
    ResourceExhaustedCause.RESOURCE_EXHAUSTED_CAUSE_CONCURRENT_LIMIT,
    "limit on number of concurrent in-flight updates has been reached (10)",
)
OTHER_CAUSES = [
    cause
    for cause in ResourceExhaustedCause.values()
    if cause != ResourceExhaustedCause.RESOURCE_EXHAUSTED_CAUSE_BUSY_WORKFLOW
]


class Server(ServiceClient):
    """A service client whose calls end as a test says: by an error, a status, or None, an answer; the last for ever."""

    def __init__(self, *outcomes: RPCStatusCode | RPCError | None) -> None:
        super().__init__(ConnectConfig(target_host="nowhere:1"))
        self.outcomes = list(outcomes)
        self.asked: list[tuple[Message, bool]] = []

    async def _rpc_call(self, rpc: str, req: Any, resp_type: Any, *, retry: bool, **how: Any) -> Any:
        assert set(how) == {"service", "metadata", "timeout"}
        self.asked.append((req, retry))
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, RPCError):
            raise outcome
        if outcome:
            raise RPCError(outcome.name, outcome, b"")
        return resp_type()

    worker_service_client = update_rpc_metadata = update_api_key = property()


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fail_fast, "_WAITS", (0.0,) * 3)


async def start(server: Server) -> None:
    await FailFastServiceClient(server).workflow_service.start_workflow_execution(
        StartWorkflowExecutionRequest(request_id="one"), retry=True
    )


async def test_that_the_namespace_is_missing_says_nothing_of_what_is_asked_for_in_it() -> None:
    status = GrpcStatus(code=ABSENT.value)
    status.details.add().Pack(NamespaceNotFoundFailure(namespace="nowhere"))

    with pytest.raises(UnavailableError, match=r"^Temporal does not answer$"):
        async with temporal_timeout(1):
            await start(Server(RPCError("Namespace nowhere is not found.", ABSENT, status.SerializeToString())))


@pytest.mark.parametrize(
    "message",
    [
        "Namespace default has no mapping defined for search attribute TimemachineLabels",
        "invalid query: invalid expression: column name 'TimemachineLabels' is not a valid search attribute",
        "invalid query: invalid search attribute: TimemachineLabels",
        "search attribute TimemachineLabels is not defined",
    ],
)
async def test_that_the_namespace_lacks_a_search_attribute_of_ours_is_no_fault_of_the_request(message: str) -> None:
    with pytest.raises(UnavailableError, match=r"^Temporal does not answer$"):
        async with temporal_timeout(1):
            await start(Server(RPCError(message, INVALID, b"")))


@pytest.mark.parametrize(
    "message",
    [
        "search attribute TimemachineLabels value size 4096 exceeds size limit 2048",
        "invalid value for search attribute TimemachineLabels of type KeywordList: 1",
        "Namespace default has no mapping defined for search attribute Another",
    ],
)
async def test_what_else_is_wrong_with_a_search_attribute_is_a_fault_of_ours(message: str) -> None:
    """To be repeated in a moment would not help."""
    with pytest.raises(RPCError):
        async with temporal_timeout(1):
            await start(Server(RPCError(message, INVALID, b"")))


@pytest.mark.parametrize("status", [RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNAUTHENTICATED])
async def test_who_is_not_let_in_by_the_server_is_no_internal_error(
    status: RPCStatusCode, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a certificate has expired; the server's own words are for operators."""
    with pytest.raises(UnavailableError, match=r"^Temporal does not answer$"):
        async with temporal_timeout(1):
            await start(Server(status))

    # Workers of other tests in this process may log, too.
    reasons = [vars(record)["reason"] for record in caplog.records if record.name == "timemachine.outages"]
    assert f"RPCError: {status.name}" in reasons


async def test_that_the_server_is_too_busy_is_told_at_once() -> None:
    with pytest.raises(RPCError) as refusal:
        await start(server := Server(BUSY))

    assert refusal.value.status is BUSY
    assert [retry for _, retry in server.asked] == [False]


@pytest.mark.parametrize("cause", OTHER_CAUSES, ids=ResourceExhaustedCause.Name)
async def test_whatever_the_server_has_too_much_of_is_told_at_once(cause: ResourceExhaustedCause.ValueType) -> None:
    with pytest.raises(RPCError) as refusal:
        await start(server := Server(exhausted(cause)))

    assert refusal.value.status is BUSY
    assert len(server.asked) == 1


async def test_a_workflow_that_takes_no_more_for_a_moment_is_asked_again() -> None:
    """As one that ends just now: a change that races a cancel is told which of the two was first."""
    await start(server := Server(BUSY_WORKFLOW, AWAY, BUSY_WORKFLOW, None))

    assert len(server.asked) == 4


async def test_a_workflow_that_many_change_at_once_is_asked_again() -> None:
    await start(server := Server(MANY_UPDATES, AWAY, MANY_UPDATES, None))

    assert len(server.asked) == 4


async def test_a_workflow_that_never_takes_more_is_given_up() -> None:
    with pytest.raises(RPCError) as refusal:
        await start(server := Server(BUSY_WORKFLOW))

    assert refusal.value.status is BUSY
    assert len(server.asked) == 4


@pytest.mark.parametrize("status", fail_fast._PASSING, ids=lambda status: status.name)
async def test_a_server_that_is_away_for_a_moment_is_asked_again_for_the_same(status: RPCStatusCode) -> None:
    await start(server := Server(status, status, None))

    assert [request for request, _ in server.asked] == [StartWorkflowExecutionRequest(request_id="one")] * 3


async def test_a_server_that_stays_away_is_given_up() -> None:
    with pytest.raises(RPCError) as failure:
        await start(server := Server(AWAY))

    assert failure.value.status is AWAY
    assert len(server.asked) == 4


async def test_any_other_answer_is_one() -> None:
    with pytest.raises(RPCError) as answer:
        await start(server := Server(ABSENT))

    assert answer.value.status is ABSENT
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "outcomes",
    [(AWAY, BUSY), (AWAY, BUSY_WORKFLOW, BUSY), (AWAY, BUSY_WORKFLOW), (AWAY, AWAY, AWAY, BUSY)],
    ids=["busy", "busy workflow, then busy", "busy workflow for ever", "busy in the end"],
)
async def test_what_may_have_taken_effect_is_not_called_refused(outcomes: tuple[RPCStatusCode | RPCError, ...]) -> None:
    with pytest.raises(RPCError) as failure:
        await start(Server(*outcomes))

    assert failure.value.status is AWAY


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("poll_workflow_execution_update", PollWorkflowExecutionUpdateRequest()),
        ("get_workflow_execution_history", GetWorkflowExecutionHistoryRequest(wait_new_event=True)),
    ],
)
async def test_what_has_become_of_an_accepted_request_is_asked_with_patience(method: str, request_: Message) -> None:
    await getattr(FailFastServiceClient(server := Server(None)).workflow_service, method)(request_, retry=True)

    assert [retry for _, retry in server.asked] == [True]


async def test_a_call_that_is_not_to_be_made_again_is_made_once() -> None:
    with pytest.raises(RPCError):
        await FailFastServiceClient(server := Server(AWAY)).workflow_service.describe_workflow_execution(
            DescribeWorkflowExecutionRequest(), retry=False
        )

    assert len(server.asked) == 1

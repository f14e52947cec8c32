"""How Temporal is asked for what programs need at their start."""

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from timemachine.domain.errors import SetupError, UnavailableError
from timemachine.temporal.client import check_namespace, temporal_timeout

# What is an answer about a job or a request, or has an error of its own.
ANSWERS = {
    RPCStatusCode.OK,
    RPCStatusCode.NOT_FOUND,
    RPCStatusCode.ALREADY_EXISTS,
    RPCStatusCode.INVALID_ARGUMENT,
    RPCStatusCode.RESOURCE_EXHAUSTED,
}


def answering(status: RPCStatusCode | None) -> tuple[Client, list[bool]]:
    """Return a client whose namespace is described or refused so, and whether each call was to be tried again."""
    retries: list[bool] = []

    async def describe(_: object, *, retry: bool = False) -> None:
        retries.append(retry)
        if status is not None:
            raise RPCError("no", status, b"")

    service: Callable[..., Awaitable[None]] = describe
    fake: Any = SimpleNamespace(namespace="here", workflow_service=SimpleNamespace(describe_namespace=service))
    return cast(Client, fake), retries


async def test_a_program_asks_again_while_temporal_fails_and_the_readiness_check_does_not() -> None:
    client, retries = answering(None)

    await check_namespace(client)
    await check_namespace(client, retry=False)

    assert retries == [True, False]


async def test_a_namespace_that_is_missing_is_named() -> None:
    client, _ = answering(RPCStatusCode.NOT_FOUND)

    with pytest.raises(SetupError, match="namespace here"):
        await check_namespace(client)


async def test_who_may_not_ask_for_a_namespace_may_yet_use_it() -> None:
    client, _ = answering(RPCStatusCode.PERMISSION_DENIED)

    await check_namespace(client)


@pytest.mark.parametrize("status", sorted(set(RPCStatusCode) - ANSWERS), ids=lambda status: status.name)
async def test_all_that_is_no_answer_is_an_outage(status: RPCStatusCode) -> None:
    with pytest.raises(UnavailableError):
        async with temporal_timeout(1):
            raise RPCError("no", status, b"")

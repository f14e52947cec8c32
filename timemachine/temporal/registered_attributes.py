"""Making the search attributes of jobs known to Temporal, and finding out whether they are."""

import asyncio

from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from timemachine.domain.errors import SetupError
from timemachine.temporal.search_attributes import KINDS
from timemachine.temporal.visibility import attributes_query

# Who may use a namespace may not always ask an operator's question, or not so often, and not every server answers it.
_NOT_TOLD = frozenset({RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNIMPLEMENTED, RPCStatusCode.RESOURCE_EXHAUSTED})


KNOWN_WITHIN = 90.0
"""Seconds that Temporal gets to use a search attribute that it was told of. Its frontends look every 2 or 10 s with an
SQL store of visibility, and every minute with OpenSearch or Elasticsearch."""

KNOWN_EVERYWHERE_WITHIN = 10.0
"""Seconds after which another of Temporal's processes has looked, too, with an SQL store of visibility."""


async def ensure_search_attributes(client: Client) -> None:
    """Register our search attributes where they are missing; jobs cannot be started without them.

    When this returns, the frontend that was asked uses them, and, with an SQL store of visibility, all of Temporal. A
    history that does not know one yet fails the tasks of jobs that are changed. With OpenSearch or Elasticsearch
    another process may take a minute more.

    Raises:
        SetupError: Temporal does not use them, though it was told of them `KNOWN_WITHIN` seconds ago.
        temporalio.service.RPCError: Temporal does not answer, or refuses (Temporal Cloud wants them made by `tcld`).
    """
    missing = await _missing(client, retry=True)
    if missing:
        await client.operator_service.add_search_attributes(
            AddSearchAttributesRequest(
                namespace=client.namespace, search_attributes={name: KINDS[name] for name in missing}
            )
        )
    # Also of those that are not missing: an earlier setup may have ended before.
    await _until_used(client, sorted(KINDS))
    if missing:
        await asyncio.sleep(KNOWN_EVERYWHERE_WITHIN)


async def _until_used(client: Client, names: list[str]) -> None:
    query = attributes_query(names)
    try:
        async with asyncio.timeout(KNOWN_WITHIN):
            # What is waited for happens in another program.
            while not await _is_understood(client, query):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
    except TimeoutError as error:
        raise SetupError(
            f"Temporal does not use {', '.join(names)} of namespace {client.namespace} yet, though it was told of them "
            f"{KNOWN_WITHIN:g} s ago: run this again"
        ) from error


async def _is_understood(client: Client, query: str) -> bool:
    try:
        await client.count_workflows(query)
    except RPCError as error:
        if error.status is RPCStatusCode.INVALID_ARGUMENT:
            return False
        raise
    return True


async def check_search_attributes(client: Client) -> None:
    """Find out whether the namespace has our search attributes, asking once. To be told nothing is no error.

    Raises:
        SetupError: It lacks one.
        temporalio.service.RPCError: Temporal does not answer.
    """
    try:
        missing = await _missing(client, retry=False)
    except RPCError as error:
        if error.status not in _NOT_TOLD:
            raise
        return
    if missing:
        raise SetupError(
            f"Temporal's namespace {client.namespace} lacks {', '.join(missing)}: run `python -m timemachine.setup`"
        )


async def _missing(client: Client, *, retry: bool) -> list[str]:
    present = await client.operator_service.list_search_attributes(
        ListSearchAttributesRequest(namespace=client.namespace), retry=retry
    )
    return sorted(KINDS.keys() - present.custom_attributes)

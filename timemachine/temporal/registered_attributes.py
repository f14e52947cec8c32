"""Making the search attributes of jobs known to Temporal, and finding out whether they are."""

import asyncio
import logging
from collections.abc import Mapping

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from timemachine.domain.errors import SetupError
from timemachine.temporal.search_attributes import KINDS, kind_name
from timemachine.temporal.visibility import attributes_query

# Who may use a namespace may not always ask an operator's question, or not so often, and not every server answers it.
_NOT_TOLD = frozenset({RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNIMPLEMENTED, RPCStatusCode.RESOURCE_EXHAUSTED})

_Kinds = Mapping[str, IndexedValueType.ValueType]

log = logging.getLogger(__name__)

KNOWN_WITHIN = 90.0
"""Seconds that Temporal gets to use a search attribute that it was told of. Its frontends look every 2 or 10 s with an
SQL store of visibility, and every minute with OpenSearch or Elasticsearch."""

KNOWN_EVERYWHERE_WITHIN = 12.0
"""Seconds, and some to spare, in which each of Temporal's processes looks for them with an SQL store of visibility."""


async def ensure_search_attributes(client: Client) -> None:
    """Register our search attributes where they are missing; jobs cannot be started without them.

    When this returns, the frontend that was asked uses them. Where some were missing, or not used yet, it waits for all
    others, too: a history that does not know one fails the tasks of jobs that are changed. With OpenSearch or
    Elasticsearch another process may take a minute more.

    Raises:
        SetupError: Temporal has one of another kind, or does not use them `KNOWN_WITHIN` seconds after it was told of
            them.
        temporalio.service.RPCError: Temporal does not answer, or refuses (Temporal Cloud wants them made by `tcld`).
    """
    present = await _present(client, retry=True)
    _check_kinds(client, present)
    missing = _missing(present)
    if missing:
        await client.operator_service.add_search_attributes(
            AddSearchAttributesRequest(
                namespace=client.namespace, search_attributes={name: KINDS[name] for name in missing}
            )
        )
        log.info("search attributes registered, and not known everywhere yet", extra={"names": missing})
    # Also of those that are not missing: an earlier setup may have ended before.
    used_at_once = await _until_used(client, sorted(KINDS))
    if missing or not used_at_once:
        await asyncio.sleep(KNOWN_EVERYWHERE_WITHIN)


def _check_kinds(client: Client, present: _Kinds) -> None:
    wrong = [
        f"{name} as {kind_name(present[name])}, and not as {kind_name(kind)}"
        for name, kind in KINDS.items()
        if present.get(name, kind) != kind
    ]
    if wrong:
        raise SetupError(
            f"Temporal's namespace {client.namespace} has {', '.join(wrong)}, with which jobs cannot be started or "
            "found: remove it by `temporal operator search-attribute remove`, and run this again"
        )


async def _until_used(client: Client, names: list[str]) -> bool:
    """Wait until the frontend uses them, and return whether it did at once."""
    query, at_once = attributes_query(names), True
    try:
        async with asyncio.timeout(KNOWN_WITHIN):
            # What is waited for happens in another program.
            while not await _is_understood(client, query):
                at_once = False
                await asyncio.sleep(0.2)
    except TimeoutError as error:
        raise SetupError(
            f"Temporal does not use {', '.join(names)} of namespace {client.namespace} yet, though it was told of them "
            f"{KNOWN_WITHIN:g} s ago: run this again"
        ) from error
    return at_once


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
        missing = _missing(await _present(client, retry=False))
    except RPCError as error:
        if error.status not in _NOT_TOLD:
            raise
        return
    if missing:
        raise SetupError(
            f"Temporal's namespace {client.namespace} lacks {', '.join(missing)}: run `python -m timemachine.setup`"
        )


async def _present(client: Client, *, retry: bool) -> _Kinds:
    """Return the kind of each that the namespace has, by its name."""
    listed = await client.operator_service.list_search_attributes(
        ListSearchAttributesRequest(namespace=client.namespace), retry=retry
    )
    return dict(listed.custom_attributes)


def _missing(present: _Kinds) -> list[str]:
    return sorted(KINDS.keys() - present.keys())

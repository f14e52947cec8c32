"""The search attributes of a job, by which Temporal's visibility finds it."""

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.client import Client
from temporalio.common import SearchAttributeKey
from temporalio.service import RPCError, RPCStatusCode

from timemachine.domain import stored_names
from timemachine.domain.errors import SetupError

ROUTE = SearchAttributeKey.for_keyword(stored_names.ROUTE_ATTRIBUTE)
TRIGGER_TIME = SearchAttributeKey.for_datetime(stored_names.TRIGGER_TIME_ATTRIBUTE)
IS_HELD = SearchAttributeKey.for_bool(stored_names.HELD_ATTRIBUTE)
DB = SearchAttributeKey.for_keyword(stored_names.DB_ATTRIBUTE)
COLLECTION = SearchAttributeKey.for_keyword(stored_names.COLLECTION_ATTRIBUTE)
"""`db/collection`, so that equality finds one collection."""
LABELS = SearchAttributeKey.for_keyword_list(stored_names.LABELS_ATTRIBUTE)
"""Only where a job has labels."""
CREATED_BY = SearchAttributeKey.for_keyword(stored_names.CREATED_BY_ATTRIBUTE)
"""The id of the key that created the job; not set where none was needed."""

_KINDS = {
    ROUTE.name: IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD,
    TRIGGER_TIME.name: IndexedValueType.INDEXED_VALUE_TYPE_DATETIME,
    IS_HELD.name: IndexedValueType.INDEXED_VALUE_TYPE_BOOL,
    DB.name: IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD,
    COLLECTION.name: IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD,
    LABELS.name: IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD_LIST,
    CREATED_BY.name: IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD,
}

# Who may use a namespace may not always ask an operator's question, or not so often, and not every server answers it.
_NOT_TOLD = frozenset({RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNIMPLEMENTED, RPCStatusCode.RESOURCE_EXHAUSTED})


async def ensure_search_attributes(client: Client) -> None:
    """Register our search attributes where they are missing; jobs cannot be started without them.

    Raises:
        temporalio.service.RPCError: Temporal does not answer, or refuses (Temporal Cloud wants them made by `tcld`).
    """
    if missing := await _missing(client, retry=True):
        await client.operator_service.add_search_attributes(
            AddSearchAttributesRequest(
                namespace=client.namespace, search_attributes={name: _KINDS[name] for name in missing}
            )
        )


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
    return sorted(_KINDS.keys() - present.custom_attributes)

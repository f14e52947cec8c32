"""The search attributes of a job, by which Temporal's visibility finds it."""

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.common import SearchAttributeKey

from timemachine.domain import stored_names

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

KINDS = {
    ROUTE.name: IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD,
    TRIGGER_TIME.name: IndexedValueType.INDEXED_VALUE_TYPE_DATETIME,
    IS_HELD.name: IndexedValueType.INDEXED_VALUE_TYPE_BOOL,
    DB.name: IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD,
    COLLECTION.name: IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD,
    LABELS.name: IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD_LIST,
    CREATED_BY.name: IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD,
}
"""What Temporal is told of each, by its name."""


def kind_name(kind: IndexedValueType.ValueType) -> str:
    """Return how Temporal's CLI calls a kind, in capitals."""
    return IndexedValueType.Name(kind).removeprefix("INDEXED_VALUE_TYPE_").replace("_", "")

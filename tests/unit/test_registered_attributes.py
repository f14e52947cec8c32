"""When the setup waits for Temporal to learn the search attributes that it was told of."""

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest

from timemachine.temporal.registered_attributes import KNOWN_EVERYWHERE_WITHIN, ensure_search_attributes
from timemachine.temporal.search_attributes import KINDS, LABELS


class Temporal:
    """Has some search attributes, and takes others."""

    def __init__(self, names: Collection[str]) -> None:
        self.namespace = "default"
        self.operator_service = self
        self._names = set(names)

    async def list_search_attributes(self, *_: object, **__: object) -> Any:
        return SimpleNamespace(custom_attributes=dict.fromkeys(self._names))

    async def add_search_attributes(self, request: Any) -> None:
        self._names |= request.search_attributes.keys()

    async def count_workflows(self, _: str) -> int:
        return 0


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found = list[float]()

    async def sleep(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr("timemachine.temporal.registered_attributes.asyncio.sleep", sleep)
    return found


async def test_histories_get_time_to_learn_what_was_missing(slept: list[float]) -> None:
    temporal: Any = Temporal(KINDS.keys() - {LABELS.name})

    await ensure_search_attributes(temporal)

    assert slept == [KNOWN_EVERYWHERE_WITHIN]


async def test_where_nothing_is_missing_nothing_waits(slept: list[float]) -> None:
    temporal: Any = Temporal(KINDS)

    await ensure_search_attributes(temporal)

    assert slept == []

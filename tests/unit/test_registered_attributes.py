"""When the setup waits for Temporal to learn the search attributes that it was told of."""

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest
from temporalio.service import RPCError, RPCStatusCode

from timemachine.temporal.registered_attributes import KNOWN_EVERYWHERE_WITHIN, ensure_search_attributes
from timemachine.temporal.search_attributes import KINDS, LABELS


class Temporal:
    """Has some search attributes, and takes others."""

    def __init__(self, names: Collection[str], *, unused: int = 0) -> None:
        self.namespace = "default"
        self.operator_service = self
        self._names = set(names)
        self._unused = unused

    async def list_search_attributes(self, *_: object, **__: object) -> Any:
        return SimpleNamespace(custom_attributes={name: KINDS[name] for name in self._names})

    async def add_search_attributes(self, request: Any) -> None:
        self._names |= request.search_attributes.keys()

    async def count_workflows(self, _: str) -> None:
        if self._unused:
            self._unused -= 1
            raise RPCError("no mapping", RPCStatusCode.INVALID_ARGUMENT, b"")


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found = list[float]()

    async def sleep(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr("timemachine.temporal.registered_attributes.asyncio.sleep", sleep)
    return found


async def test_histories_get_time_to_learn_what_was_missing_once_the_frontend_knows_it(slept: list[float]) -> None:
    temporal: Any = Temporal(KINDS.keys() - {LABELS.name}, unused=2)

    await ensure_search_attributes(temporal)

    assert len(slept) == 3
    assert slept[2] == KNOWN_EVERYWHERE_WITHIN


async def test_so_they_do_where_another_setup_has_just_told_of_it(slept: list[float]) -> None:
    temporal: Any = Temporal(KINDS, unused=1)

    await ensure_search_attributes(temporal)

    assert len(slept) == 2
    assert slept[1] == KNOWN_EVERYWHERE_WITHIN


async def test_where_nothing_is_missing_nothing_waits(slept: list[float]) -> None:
    temporal: Any = Temporal(KINDS)

    await ensure_search_attributes(temporal)

    assert slept == []

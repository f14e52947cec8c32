"""Whether a program can work is asked of both servers, and told part by part."""

import asyncio
from typing import Any

import pytest
from temporalio.service import RPCError, RPCStatusCode

from activities.readiness import Readiness
from tests.support.cases import each_case
from timemachine.domain.errors import BusyError, UnavailableError
from timemachine.settings import Settings


class Asked(Readiness):
    """Knows how both servers are."""

    def __init__(self, temporal: str | None, postgres: str | None) -> None:
        self.stop = asyncio.Event()
        self._faults = temporal, postgres
        self.asked = 0

    async def _fault_of_temporal(self) -> str | None:
        self.asked += 1
        return self._faults[0]

    async def _fault_of_postgres(self) -> str | None:
        return self._faults[1]


@each_case(
    ("temporal", "postgres", "message"),
    [
        ("Temporal is away", None, "Temporal is away; Postgres answers"),
        (None, "Postgres is away", "Temporal answers; Postgres is away"),
        ("Temporal is away", "Postgres is away", "Temporal is away; Postgres is away"),
    ],
)
async def test_each_part_is_named(temporal: str | None, postgres: str | None, message: str) -> None:
    with pytest.raises(UnavailableError) as error:
        await Asked(temporal, postgres).check()
    assert str(error.value) == message


async def test_a_temporal_that_takes_no_more_requests_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def busy(*_: object, **__: object) -> None:
        raise BusyError

    async def well(*_: object) -> None: ...

    monkeypatch.setattr("activities.readiness.check_namespace", busy)
    for name in ("check_search_attributes", "check_access", "ping"):
        monkeypatch.setattr(f"activities.readiness.{name}", well)
    nothing: Any = None
    await Readiness(nothing, nothing, Settings()).check()


async def test_when_one_look_at_temporal_fails_none_of_the_others_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    looking = 0

    async def away(*_: object, **__: object) -> None:
        await asyncio.sleep(0)
        raise UnavailableError("Temporal does not answer")

    async def hang(*_: object) -> None:
        nonlocal looking
        looking += 1
        try:
            await asyncio.Event().wait()
        finally:
            looking -= 1

    async def well(*_: object) -> None: ...

    monkeypatch.setattr("activities.readiness.check_namespace", away)
    for name in ("check_search_attributes", "check_access"):
        monkeypatch.setattr(f"activities.readiness.{name}", hang)
    monkeypatch.setattr("activities.readiness.ping", well)
    nothing: Any = None

    with pytest.raises(UnavailableError, match="Temporal does not answer"):
        await Readiness(nothing, nothing, Settings()).check()

    assert looking == 0


async def test_what_temporal_answers_instead_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(*_: object, **__: object) -> None:
        raise RPCError("no such namespace", RPCStatusCode.NOT_FOUND, b"")

    async def well(*_: object, **__: object) -> None: ...

    monkeypatch.setattr("activities.readiness.check_access", gone)
    for name in ("check_search_attributes", "check_namespace", "ping"):
        monkeypatch.setattr(f"activities.readiness.{name}", well)
    nothing: Any = None
    with pytest.raises(UnavailableError, match="Temporal answers NOT_FOUND: no such namespace; Postgres answers"):
        await Readiness(nothing, nothing, Settings()).check()

    (line,) = map(vars, caplog.records)  # a worker's probes are told no more than that it is not ready
    assert (line["message"], line["reason"]) == ("Temporal does not answer", "RPCError: no such namespace")


async def test_it_is_ready_until_it_is_told_to_stop() -> None:
    asked = Asked(None, None)
    await asked.check()

    asked.stop.set()

    with pytest.raises(UnavailableError, match="about to stop"):
        await asked.check()
    assert asked.asked == 1

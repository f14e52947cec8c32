"""What it costs that callers need keys: the same creates with and without them, by two APIs in one stack."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing
from functools import partial
from http import HTTPStatus

import msgspec

from benchmarks import scenarios
from benchmarks.http_load import HttpLoad
from benchmarks.implementations import Ours
from benchmarks.more_programs import another_api, with_parts
from benchmarks.results import KEYED, UNKEYED, Measurement
from benchmarks.run import ScenarioRun
from benchmarks.testbed import Testbed
from devstack import children
from devstack.admin_key import read_key
from devstack.children import Commands
from devstack.parts import run_to_end
from timemachine.settings import Auth

IN_FLIGHT = 16

PIECES = 6
"""Times in a turn that each way has creates, one way after the other, so that what varies over seconds meets both."""

_WARM_UP = 32
"""Creates of an API that has just begun, which are not measured."""


async def keyed(place: Testbed, n: int, turns: int, count: int) -> AsyncIterator[Measurement]:
    """Create jobs, each way by turns, of which each counts as a round.

    Args:
        n: The round, from 0.
        turns: How many in it.
        count: Jobs of each way in a turn.
    """
    key = await _admin_key(place)
    async with AsyncExitStack() as opened:
        ways: dict[str, Testbed] = {}
        for scenario, auth, sent in ((UNKEYED, Auth.NONE, None), (KEYED, Auth.KEYS, key)):
            env = {"TIMEMACHINE_AUTH": auth.value}
            api, api_url = await opened.enter_async_context(another_api(place, f"api-{auth}", env))
            await _check(Ours(place.client, opened.enter_context(closing(HttpLoad(api_url)))), auth)
            ours = Ours(place.client, opened.enter_context(closing(HttpLoad(api_url, key=sent))))
            ways[scenario] = msgspec.structs.replace(with_parts(place, api=api), ours=ours)
            warming = _begin(ways[scenario], scenario, n)
            await scenarios.creates(warming, in_flight=IN_FLIGHT, count=_WARM_UP)
        for turn in range(n * turns, (n + 1) * turns):
            await place.quiet()
            begins = [partial(_begin, of_way, scenario, turn) for scenario, of_way in ways.items()]
            for measured in await scenarios.creates_by_turns(begins, pieces=PIECES, in_flight=IN_FLIGHT, count=count):
                yield measured


def _begin(place: Testbed, scenario: str, turn: int) -> ScenarioRun:
    return ScenarioRun(place, place.ours, scenario, turn)


async def _check(without_key: Ours, auth: Auth) -> None:
    """Raise RuntimeError where the API does not treat a caller without a key as it is to."""
    status = await without_key.count()
    if (status == HTTPStatus.UNAUTHORIZED) is not (auth is Auth.KEYS):
        raise RuntimeError(f"with TIMEMACHINE_AUTH={auth}, a request without a key was answered {status}")


async def _admin_key(place: Testbed) -> str:
    file = place.stack.folder / "bench.key"
    await run_to_end(children.admin_key(Commands(), place.stack.env, file))
    return read_key(file)

"""What it costs that callers need keys: the same creates with and without them, in one stack."""

from collections.abc import AsyncIterator
from contextlib import closing
from http import HTTPStatus

from benchmarks import scenarios
from benchmarks.http_load import HttpLoad
from benchmarks.implementations import Ours
from benchmarks.other_settings import restarted_in
from benchmarks.results import KEYED, UNKEYED, Measurement
from benchmarks.run import begun
from benchmarks.testbed import Testbed
from devstack import children
from devstack.admin_key import read_key
from devstack.children import Commands
from devstack.parts import run_to_end
from timemachine.settings import Auth

IN_FLIGHT = 16

_WARM_UP = 32
"""Creates of an API that has just begun, which are not measured."""


async def keyed(place: Testbed, n: int, turns: int, count: int) -> AsyncIterator[Measurement]:
    """Create jobs, each way by turns, of which each counts as a round.

    Args:
        n: The round, from 0.
        turns: How many in it.
        count: Jobs of each way in a turn.
    """
    with closing(HttpLoad(place.stack.api_url, key=await _admin_key(place))) as http:
        ways = ((UNKEYED, Auth.NONE, place.ours), (KEYED, Auth.KEYS, Ours(place.client, http)))
        for turn in range(n * turns, (n + 1) * turns):
            for scenario, auth, ours in ways[:: 1 if turn % 2 else -1]:
                apis = place.processes("api")
                async with restarted_in([(api, api.program.env | {"TIMEMACHINE_AUTH": auth}) for api in apis]):
                    await _check(place.ours, auth)
                    warming = await begun(place, ours, scenario, turn)
                    await scenarios.creates(warming, in_flight=IN_FLIGHT, count=_WARM_UP)
                    run = await begun(place, ours, scenario, turn)
                    yield await scenarios.creates(run, in_flight=IN_FLIGHT, count=count)


async def _check(without_key: Ours, auth: Auth) -> None:
    """Raise RuntimeError where the API does not treat a caller without a key as it is to."""
    status = await without_key.count()
    if (status == HTTPStatus.UNAUTHORIZED) is not (auth is Auth.KEYS):
        raise RuntimeError(f"with TIMEMACHINE_AUTH={auth}, a request without a key was answered {status}")


async def _admin_key(place: Testbed) -> str:
    file = place.stack.folder / "bench.key"
    await run_to_end(children.admin_key(Commands(), place.stack.env, file))
    return read_key(file)

"""What it costs that callers need keys: the same creates with and without them, by two APIs in one stack."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing
from http import HTTPStatus
from statistics import mean

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
            await _creates(ways[scenario], scenario, n, _WARM_UP)
        for turn in range(n * turns, (n + 1) * turns):
            await place.quiet()
            for measured in await _turn(ways, turn, count):
                yield measured


async def _turn(ways: dict[str, Testbed], turn: int, count: int) -> list[Measurement]:
    pieces: dict[str, list[Measurement]] = {scenario: [] for scenario in ways}
    for piece in range(PIECES):
        order = list(ways) if (turn + piece) % 2 else list(reversed(ways))
        for scenario in order:
            pieces[scenario].append(await _creates(ways[scenario], scenario, turn, count // PIECES))
    return [_together(of_one) for of_one in pieces.values()]


async def _creates(place: Testbed, scenario: str, turn: int, count: int) -> Measurement:
    return await scenarios.creates(ScenarioRun(place, place.ours, scenario, turn), in_flight=IN_FLIGHT, count=count)


def _together(pieces: list[Measurement]) -> Measurement:
    """Return pieces of the same number of creates as one measurement, without the spread of their answers."""
    jobs, seconds = sum(one.jobs for one in pieces), sum(one.seconds for one in pieces)
    return msgspec.structs.replace(
        pieces[0],
        jobs=jobs,
        seconds=seconds,
        per_second=round(jobs / seconds, 2),
        cpu_ms_per_job={name: mean(one.cpu_ms_per_job[name] for one in pieces) for name in pieces[0].cpu_ms_per_job},
        cpu_seconds=sum(one.cpu_seconds for one in pieces),
        answers=None,
    )


async def _check(without_key: Ours, auth: Auth) -> None:
    """Raise RuntimeError where the API does not treat a caller without a key as it is to."""
    status = await without_key.count()
    if (status == HTTPStatus.UNAUTHORIZED) is not (auth is Auth.KEYS):
        raise RuntimeError(f"with TIMEMACHINE_AUTH={auth}, a request without a key was answered {status}")


async def _admin_key(place: Testbed) -> str:
    file = place.stack.folder / "bench.key"
    await run_to_end(children.admin_key(Commands(), place.stack.env, file))
    return read_key(file)

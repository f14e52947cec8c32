"""Finding the `temporal` program: where it lies already, or downloaded, or built once for all clones.

Since version 1.6 its module cannot be installed by `go install`: the version that is downloaded is also the newest that
can be built where nothing but a Go module proxy is reached, so that both are the same.
"""

import asyncio
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from devstack.go_build import GoModules, ways_to_build
from devstack.program_cache import Way, locked, obtain
from devstack.temporal_release import TESTED, Release, download
from devstack.terminal import say
from timemachine.domain.errors import LocalStackError

_PROGRAM = "temporal"

_MODULES = GoModules(
    name="Temporal CLI",
    version=TESTED.version,
    programs={_PROGRAM: "github.com/temporalio/cli/cmd/temporal"},
    packages=1300,
    minutes="4 to 6",
)

_WHEN_NONE = (
    "the Temporal CLI is not on this machine and could not be had. Install it (https://docs.temporal.io/cli) so "
    "that `temporal` is on PATH, or set TIMEMACHINE_TEMPORAL_CLI to it, or set TEMPORAL_ADDRESS to a running Temporal "
    "server."
)


async def find_temporal_cli(
    given: str | None, env: Mapping[str, str], *, cache: Path | None = None, release: Release = TESTED
) -> Path:
    """Return a `temporal` program that runs, from the first place that has one; download or build it if none has.

    The places: the setting, `PATH`, the cache, the release on the Internet, and a build with Go.

    Args:
        given: The setting TIMEMACHINE_TEMPORAL_CLI; nothing else is tried when it is there.
        env: The environment, for PATH and for what Go reads of it.
        cache: Folder to keep the program in; the user's cache folder by default.
        release: What to download, where it is in none of the first places.

    Raises:
        ChecksumError: What was downloaded is not what was released. Nothing else is tried then.
        LocalStackError: The given one does not run, or there is none to be had; the message says what to do.
    """
    if given:
        if reason := await _fault(Path(given)):
            raise LocalStackError(f"TIMEMACHINE_TEMPORAL_CLI: {reason}")
        return Path(given)
    cached = _MODULES.kept_in(cache) / _PROGRAM
    if found := await _present(env, cached):
        return found
    async with locked(cached.parent, _MODULES.name):
        # Another process may have put it there while we waited for the lock.
        if await _fault(cached) is not None:
            ways: dict[str, Way] = {"not downloaded": partial(_downloaded, release), **ways_to_build(_MODULES, env)}
            checked = {failure: partial(_that_runs, way) for failure, way in ways.items()}
            await obtain(_MODULES.name, cached.parent, checked, when_none=_WHEN_NONE)
    return cached


async def _present(env: Mapping[str, str], cached: Path) -> Path | None:
    on_path = shutil.which("temporal", path=env.get("PATH"))
    for candidate in [Path(on_path), cached] if on_path else [cached]:
        reason = await _fault(candidate)
        if reason is None:
            return candidate
        if _is_file(candidate):
            say(f"Temporal CLI: {reason}; not used")
    return None


async def _fault(cli: Path) -> str | None:
    """Return why a program cannot serve as the Temporal CLI, or None when it can."""
    if not _is_file(cli):
        return f"{cli} is not there"
    try:
        process = await asyncio.create_subprocess_exec(
            cli,
            "--version",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:
        return f"{cli} does not run: {error.strerror}"
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 30)
    except TimeoutError:
        process.kill()
        return f"{cli} does not answer to --version"
    if process.returncode != 0 or not output.startswith(b"temporal version"):
        return f"{cli} is not the Temporal CLI"
    return None


async def _downloaded(release: Release, folder: Path) -> dict[str, Path]:
    return {_PROGRAM: await download(release, folder)}


async def _that_runs(way: Way, folder: Path) -> Mapping[str, Path]:
    found = await way(folder)
    if reason := await _fault(found[_PROGRAM]):
        raise LocalStackError(reason)
    return found


def _is_file(path: Path) -> bool:
    return path.is_file()

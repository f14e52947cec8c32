"""The user's cache folder, which all clones share: what takes minutes to get is got once, and is there only whole."""

import asyncio
import fcntl
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import platformdirs

from devstack.terminal import say
from timemachine.domain.errors import LocalStackError

Way = Callable[[Path], Awaitable[Mapping[str, Path]]]
"""Gets programs into a folder, and returns where each is there, by the name that it is to be kept under."""


class ChecksumError(LocalStackError):
    """What was downloaded is not what was released."""


def cache_folder() -> Path:
    """Return the user's cache folder of this product."""
    return platformdirs.user_cache_path("timemachine")


@asynccontextmanager
async def locked(folder: Path, name: str) -> AsyncIterator[None]:
    """Hold the lock of a folder of the cache, waiting while another process has it. It ends with its process.

    Args:
        name: Of what is got there, for what is said.

    Raises:
        LocalStackError: The folder cannot be written.
    """
    lock = _open_lock(folder)
    told = False
    try:
        while not _try_lock(lock):
            if not told:
                say(f"{name}: another process is getting it; waiting")
            told = True
            await asyncio.sleep(0.5)
        yield
    finally:
        os.close(lock)


async def obtain(name: str, kept: Path, ways: Mapping[str, Way], *, when_none: str) -> None:
    """Put programs into a folder of the cache, whose lock is held, by the first of several ways that has them.

    Args:
        name: Of what is got, for what is said.
        ways: By what is said when it fails, as "not downloaded".
        when_none: What the error says when all have failed, before what was tried.

    Raises:
        ChecksumError: What was downloaded is not what was released. No other way is tried then.
        LocalStackError: No way has them.
    """
    failures = []
    for failure, way in ways.items():
        try:
            with _new_folder(kept) as folder:
                for known_as, program in (await way(folder)).items():
                    program.replace(kept / known_as)
        except ChecksumError:
            raise
        except (LocalStackError, OSError) as error:
            failures.append(f"- {failure}: {error}")
            say(f"{name}: {failure}: {(str(error) or repr(error)).splitlines()[0]}")
        else:
            say(f"{name}: ready, kept in {kept}")
            return
    raise LocalStackError("\n".join([f"{when_none} What was tried:", *failures]))


@contextmanager
def _new_folder(parent: Path) -> Iterator[Path]:
    """Make a folder to get something into, after removing those of attempts that were killed, and remove it."""
    for unfinished in parent.glob("new-*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="new-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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

"""The data folder of the local stack, and the lock that keeps it to one run at a time."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from timemachine.domain.errors import LocalStackError


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make the data folder where it is missing, and hold it against a second run.

    The kernel drops the lock when this process ends, in whatever way; children do not inherit it.

    Raises:
        LocalStackError: Another run holds the folder, or it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise LocalStackError(f"data folder {folder}: {error.strerror}; TIMEMACHINE_DATA_DIR sets another") from error
    try:
        _take(lock, folder)
        yield
    finally:
        os.close(lock)


def _take(lock: int, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(lock, 20, 0).decode(errors="replace").strip() or "unknown"
        raise LocalStackError(
            f"data folder {folder} is in use by another run (process {holder}): stop that one, "
            "or set TIMEMACHINE_DATA_DIR to another folder (and other ports)"
        ) from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)


def kept_secret(file: Path, make: Callable[[], str]) -> str:
    """Return the secret kept in a file of the data folder, made at the first run and readable by its owner only."""
    if not file.exists():
        keep_secret(file, make())
    return file.read_text(encoding="ascii")


def keep_secret(file: Path, secret: str) -> None:
    """Keep a secret in a file of the data folder, in place of what it held, readable by its owner only."""
    new = file.with_name(f"{file.name}.new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    new.write_text(secret, encoding="ascii")
    new.replace(file)

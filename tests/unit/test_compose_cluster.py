"""The compose file of several nodes: what it says over docker-compose.yml."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from devstack.temporal_cluster import SHARDS
from devstack.temporal_server import VERSION

ROOT = Path(__file__).parents[2]


class Loader(yaml.SafeLoader):
    """Reads Docker Compose's own tags: what has one replaces what the file below has."""


def _replacing(loader: Loader, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    assert isinstance(node, yaml.SequenceNode)
    return loader.construct_sequence(node, deep=True)


Loader.add_constructor("!override", _replacing)
Loader.add_constructor("!reset", _replacing)

TEXT = (ROOT / "docker-compose.cluster.yml").read_text()
COMPOSE = yaml.load(TEXT, Loader)  # noqa: S506 - a SafeLoader with two tags
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
BELOW = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
TEMPORAL = {
    name: service for name, service in SERVICES.items() if "TEMPORAL_SERVICES" in service.get("environment", {})
}


def test_all_of_temporals_services_are_there() -> None:
    told = [service["environment"]["TEMPORAL_SERVICES"] for service in TEMPORAL.values()]
    assert sorted(told) == ["frontend", "frontend", "history", "history", "matching", "worker"]


@pytest.mark.parametrize("name", TEMPORAL)
def test_each_is_told_what_make_cluster_tells(name: str) -> None:
    service = TEMPORAL[name]
    assert service["image"] == f"temporalio/server:{VERSION}" == BELOW["temporal"]["image"]
    assert service["env_file"] == BELOW["temporal"]["env_file"] == "deploy/temporal-server.env"
    assert service["environment"]["NUM_HISTORY_SHARDS"] == str(SHARDS)
    assert service["volumes"] == BELOW["temporal"]["volumes"]
    assert "healthcheck" in service


def test_visibility_has_a_database_of_its_own() -> None:
    assert {service["environment"]["VISIBILITY_POSTGRES_SEEDS"] for service in TEMPORAL.values()} == {
        "postgres-visibility"
    }
    assert SERVICES["temporal-schema"]["environment"]["VISIBILITY_SQL_HOST"] == "postgres-visibility"
    assert SERVICES["postgres-visibility"]["image"] == BELOW["postgres"]["image"]


def test_the_balancer_is_where_all_others_look_for_temporal() -> None:
    conf = (ROOT / "deploy/temporal-balancer.conf").read_text()
    assert set(re.findall(r"server (\S+):7233", conf)) == {name for name in TEMPORAL if "frontend" in name}
    assert f"listen {BELOW['temporal']['expose'][0]} " in conf
    assert {"environment: !reset {}", "env_file: !reset []"} <= {line.strip() for line in TEXT.splitlines()}


def test_files_and_volumes_exist() -> None:
    mounts = [mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])]
    assert all((ROOT / mount).is_file() for mount in mounts if mount.startswith("."))
    assert {mount for mount in mounts if not mount.startswith(".")} == set(COMPOSE["volumes"])


def test_there_are_two_of_ours_each() -> None:
    assert [SERVICES[name]["deploy"]["replicas"] for name in ("api", "worker")] == [2, 2]
    assert SERVICES["api"]["ports"] == ["127.0.0.1:8080-8081:8080"]


@pytest.mark.parametrize("image", re.findall(r"image: (\S+)", TEXT))
def test_images_are_pinned_to_a_full_version(image: str) -> None:
    assert re.fullmatch(r"[a-z/-]+:\d+\.\d+(\.\d+)?(-[a-z-]+)?", image)


def test_what_needs_another_waits_for_it() -> None:
    known = SERVICES.keys() | BELOW.keys()
    assert all(set(service.get("depends_on", {})) <= known for service in SERVICES.values())

"""The compose file of several nodes: what it says over docker-compose.yml."""

import re
from typing import Any

import pytest

from devstack.temporal_cluster import SHARDS
from devstack.temporal_server import VERSION
from tests.support.compose_files import ROOT, read_merged

COMPOSE = read_merged("docker-compose.yml", "docker-compose.cluster.yml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
BELOW = read_merged("docker-compose.yml")["services"]
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
    assert not {"environment", "env_file"} & SERVICES["temporal"].keys()


def test_files_and_volumes_exist() -> None:
    mounts = [mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])]
    assert all((ROOT / mount).is_file() for mount in mounts if mount.startswith("."))
    assert {mount for mount in mounts if not mount.startswith(".")} == set(COMPOSE["volumes"])


def test_there_are_two_of_ours_each() -> None:
    assert [SERVICES[name]["deploy"]["replicas"] for name in ("api", "worker")] == [2, 2]
    assert SERVICES["api"]["ports"] == ["127.0.0.1:8080-8081:8080"]


@pytest.mark.parametrize("image", sorted({service["image"] for service in SERVICES.values()}))
def test_images_are_pinned_to_a_full_version(image: str) -> None:
    assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+(\.\d+)?(-[a-z-]+)?", image)


def test_what_needs_another_waits_for_it() -> None:
    assert all(set(service.get("depends_on", {})) <= SERVICES.keys() for service in SERVICES.values())

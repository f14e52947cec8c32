"""The compose file of OpenSearch: what it makes of the several nodes of docker-compose.cluster.yml."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.compose_files import ROOT, read_merged

CLUSTER = read_merged("docker-compose.yml", "docker-compose.cluster.yml")
COMPOSE = read_merged("docker-compose.yml", "docker-compose.cluster.yml", "docker-compose.opensearch.yml")
SERVICES = COMPOSE["services"]
TEMPORAL = [name for name, service in SERVICES.items() if "TEMPORAL_SERVICES" in service.get("environment", {})]
SCHEMA = SERVICES["temporal-schema"]["environment"]


def test_opensearch_takes_the_place_of_the_second_postgres() -> None:
    assert SERVICES.keys() == CLUSTER["services"].keys() - {"postgres-visibility"} | {"opensearch"}
    assert COMPOSE["volumes"].keys() == CLUSTER["volumes"].keys() - {"postgres-visibility"} | {"opensearch"}
    assert SERVICES["opensearch"]["volumes"] == ["opensearch:/usr/share/opensearch/data"]


def test_the_image_is_pinned_to_a_version_that_temporal_supports() -> None:
    image, _, version = SERVICES["opensearch"]["image"].partition(":")
    assert image == "opensearchproject/opensearch"
    assert re.fullmatch(r"[23]\.\d+\.\d+", version)


@pytest.mark.parametrize("name", TEMPORAL)
def test_each_of_temporals_services_uses_it_and_is_else_as_before(name: str) -> None:
    before, service = CLUSTER["services"][name], SERVICES[name]
    told = service["environment"].items() - before["environment"].items()
    assert dict(told) == {
        "ENABLE_ES": "true",
        "ES_SEEDS": "opensearch",
        "ES_VERSION": "v7",
        "ES_VIS_INDEX": SCHEMA["ES_VISIBILITY_INDEX"],
    }
    assert service | {"environment": before["environment"]} == before


def test_all_of_temporals_services_are_there() -> None:
    assert sorted(SERVICES[name]["environment"]["TEMPORAL_SERVICES"] for name in TEMPORAL) == [
        *("frontend", "frontend", "history", "history", "matching", "worker")
    ]


def test_the_index_has_a_name_that_temporals_template_is_for() -> None:
    assert re.match(r"temporal_visibility_v1", SCHEMA["ES_VISIBILITY_INDEX"])
    assert SCHEMA["ES_SERVER"] == "http://opensearch:9200"


def test_nothing_is_published_of_what_asks_nobody_who_they_are() -> None:
    assert SERVICES["opensearch"]["environment"]["DISABLE_SECURITY_PLUGIN"] == "true"
    assert "ports" not in SERVICES["opensearch"]


def test_the_heap_is_of_one_size() -> None:
    smallest, largest = re.findall(r"-Xm[sx](\w+)", SERVICES["opensearch"]["environment"]["OPENSEARCH_JAVA_OPTS"])
    assert smallest == largest


def test_what_needs_another_waits_for_it() -> None:
    for service in SERVICES.values():
        for needed, how in service.get("depends_on", {}).items():
            ready = "service_healthy" if "healthcheck" in SERVICES[needed] else "service_completed_successfully"
            assert how == {"condition": ready}
    assert "opensearch" in SERVICES["temporal-schema"]["depends_on"]
    assert "_cluster/health?wait_for_status=yellow" in SERVICES["opensearch"]["healthcheck"]["test"][-1]


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder of Temporal's tools, which note how they are called."""
    for name in ("temporal-sql-tool", "temporal-elasticsearch-tool"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@" >>"{tmp_path}/called"\n')
        (tmp_path / name).chmod(0o755)
    return tmp_path


def schema_of(tools: Path, environment: dict[str, str]) -> list[str]:
    """What the schema script of the containers calls, but for the database of the jobs."""
    env = environment | {"PATH": f"{tools}:/usr/bin:/bin"}
    subprocess.run(["/bin/sh", str(ROOT / "deploy/temporal-schema.sh")], env=env, check=True)
    called = (tools / "called").read_text().splitlines()
    assert [line.split()[4] for line in called[:3]] == ["temporal"] * 3
    return called[3:]


def test_the_schema_script_makes_the_index(tools: Path) -> None:
    index = f"--index {SCHEMA['ES_VISIBILITY_INDEX']}"
    assert schema_of(tools, SCHEMA) == [
        "temporal-elasticsearch-tool setup-schema",
        f"temporal-elasticsearch-tool create-index {index}",
        f"temporal-elasticsearch-tool update-schema {index}",
    ]


def test_without_opensearch_the_schema_script_makes_the_second_database(tools: Path) -> None:
    called = schema_of(tools, CLUSTER["services"]["temporal-schema"]["environment"])
    assert [line.split()[:5] for line in called] == [
        ["temporal-sql-tool", "--endpoint", "postgres-visibility", "--db", "temporal_visibility"]
    ] * 3

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from devstack.temporal import _DYNAMIC_CONFIG
from timemachine.settings import BESIDE_THE_REQUEST, LONGEST_TIMEOUT, PREFIX, Settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]

each_service = pytest.mark.parametrize("name", SERVICES)


def environment(name: str) -> dict[str, str]:
    return dict(SERVICES[name].get("environment", {}))


def setting(name: str, field: str) -> Any:
    """What a service's setting is: its variable, or else the default."""
    return environment(name).get(PREFIX + field.upper(), getattr(Settings(), field))


def probe(name: str) -> str:
    return " ".join(SERVICES[name]["healthcheck"]["test"])


def published(name: str) -> tuple[int, int]:
    """The port on the host, and the one in the container."""
    host, container = re.findall(r"\d+", SERVICES[name]["ports"][0])[-2:]
    return int(host), int(container)


def instructions(keyword: str) -> list[str]:
    return re.findall(rf"^{keyword} (.+)$", DOCKERFILE, flags=re.MULTILINE)


@pytest.mark.parametrize(
    "image", [*(s["image"] for s in SERVICES.values()), *(f.split()[0] for f in instructions("FROM"))]
)
def test_images_are_pinned_to_a_full_version(image: str) -> None:
    assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+(\.\d+)?(-[a-z-]+)?", image)


@each_service
def test_each_service_has_a_health_check_or_says_why_not(name: str) -> None:
    reason = SERVICES[name].get("labels", {}).get("healthcheck.none", "")
    assert ("healthcheck" in SERVICES[name]) != (len(reason) > 20)


@each_service
def test_each_service_has_a_restart_policy(name: str) -> None:
    waited_for = [s["depends_on"][name]["condition"] for s in SERVICES.values() if name in s.get("depends_on", {})]
    one_shot = "service_completed_successfully" in waited_for
    assert SERVICES[name]["restart"] == ("on-failure:5" if one_shot else "unless-stopped")


@each_service
def test_each_service_waits_for_what_it_needs(name: str) -> None:
    for needed, how in SERVICES[name].get("depends_on", {}).items():
        ready = "service_healthy" if "healthcheck" in SERVICES[needed] else "service_completed_successfully"
        assert how == {"condition": ready}


@each_service
def test_our_variables_are_settings(name: str) -> None:
    ours = {variable for variable in environment(name) if variable.startswith(PREFIX)}
    assert ours <= {PREFIX + field.upper() for field in Settings.__struct_fields__}


@each_service
def test_secrets_come_from_outside(name: str) -> None:
    secret = {
        variable: value for variable, value in environment(name).items() if re.search("PASSWORD|PWD|DSN|KEYS", variable)
    }
    assert all(re.search(r"_(PASSWORD|KEYS):\?", value) for value in secret.values()), secret.keys()


@pytest.mark.parametrize("field", ["postgres_dsn", "secret_keys"])
def test_ours_are_told_where_postgres_is_and_how_to_read_it(field: str) -> None:
    assert all(PREFIX + field.upper() in environment(name) for name in ("setup", "api", "worker"))


def test_the_api_port_is_the_same_everywhere() -> None:
    port = int(setting("api", "http_port"))
    assert setting("api", "http_host") == "0.0.0.0"  # noqa: S104 - a container's loopback is reached by nobody
    assert published("api") == (Settings().http_port, port)
    assert instructions("EXPOSE") == [str(port)]
    assert f"127.0.0.1:{port}/readyz" in probe("api")


def test_the_temporal_port_is_the_same_everywhere() -> None:
    port = environment("temporal")["FRONTEND_GRPC_PORT"]
    assert SERVICES["temporal"]["expose"] == [port]
    assert f"127.0.0.1:{environment('temporal')['FRONTEND_HTTP_PORT']}/" in probe("temporal")
    addresses = {
        name: environment(name)["TEMPORAL_ADDRESS"] for name in SERVICES if "TEMPORAL_ADDRESS" in environment(name)
    }
    assert addresses.keys() == {"temporal-namespace", "temporal-ui", "setup", "api", "worker"}
    assert set(addresses.values()) == {f"temporal:{port}"}


def test_the_web_ui_is_where_make_run_has_it() -> None:
    port = int(environment("temporal-ui")["TEMPORAL_UI_PORT"])
    assert published("temporal-ui") == (Settings().temporal_ui_port, port)
    assert f"127.0.0.1:{port}/" in probe("temporal-ui")


def test_the_postgres_port_is_the_same_everywhere() -> None:
    assert {environment("temporal")["DB_PORT"], environment("temporal-schema")["SQL_PORT"]} == {"5432"}
    assert all("@postgres:5432/" in setting(name, "postgres_dsn") for name in ("setup", "api", "worker"))
    assert "--port=5432" in probe("postgres")


def test_the_api_wants_a_key() -> None:
    assert setting("api", "auth") == "keys"


def test_the_namespace_is_the_same_everywhere() -> None:
    named = {environment(name).get("TEMPORAL_NAMESPACE") for name in ("temporal-namespace", "setup", "api", "worker")}
    assert named == {environment("temporal-ui")["TEMPORAL_DEFAULT_NAMESPACE"]}


def test_the_schema_tool_is_of_the_server_version() -> None:
    tags = {SERVICES[name]["image"].partition(":")[2] for name in ("temporal", "temporal-schema", "temporal-namespace")}
    assert len(tags) == 1


def test_volumes_are_declared_and_files_exist() -> None:
    sources = {mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])}
    assert {source for source in sources if not source.startswith(".")} == set(COMPOSE["volumes"])
    assert all((ROOT / source).is_file() for source in sources if source.startswith("."))


def test_a_worker_is_asked_for_its_health_where_it_answers() -> None:
    assert f"http://{setting('worker', 'health_address')}/readyz" in probe("worker")


@each_service
def test_what_is_published_is_on_this_machine_only(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


def test_prometheus_scrapes_what_api_and_worker_serve() -> None:
    asked = {
        job["job_name"]: discovery
        for job in yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
        for discovery in job["dns_sd_configs"]
    }
    for name in ("api", "worker"):
        host, _, port = setting(name, "metrics_address").rpartition(":")
        assert host == "0.0.0.0"  # noqa: S104 - a container's loopback is reached by nobody
        assert asked[f"timemachine-{name}"]["names"] == [name]
        assert asked[f"timemachine-{name}"]["port"] == int(port)


def test_what_watches_is_started_by_its_profile_only() -> None:
    profiles = {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service}
    assert profiles == {"prometheus": ["observe"], "grafana": ["observe"]}


def test_prometheus_and_grafana_find_each_other_and_their_files() -> None:
    mounted = {mount.split(":")[0]: mount.split(":")[1] for mount in SERVICES["prometheus"]["volumes"]}
    configuration = mounted["./deploy/prometheus/prometheus.yml"]
    assert f"--config.file={configuration}" in SERVICES["prometheus"]["command"]
    # The configuration names the rules beside it.
    assert Path(mounted["./deploy/prometheus/rules.yml"]).parent == Path(configuration).parent
    assert f"--storage.tsdb.path={mounted['prometheus']}" in SERVICES["prometheus"]["command"]
    (source,) = yaml.safe_load((ROOT / "deploy/grafana/datasource.yml").read_text())["datasources"]
    assert source["url"] == f"http://prometheus:{published('prometheus')[1]}"
    assert f"127.0.0.1:{published('prometheus')[1]}/" in probe("prometheus")
    assert f"127.0.0.1:{published('grafana')[1]}/" in probe("grafana")


def test_grafana_shows_the_dashboard_to_whoever_reaches_it_and_lets_nobody_in() -> None:
    mounted = {mount.split(":")[0]: mount.split(":")[1] for mount in SERVICES["grafana"]["volumes"]}
    dashboard = mounted["./deploy/grafana/timemachine.json"]
    (provider,) = yaml.safe_load((ROOT / "deploy/grafana/dashboards.yml").read_text())["providers"]
    assert provider["options"]["path"] == str(Path(dashboard).parent)
    told = environment("grafana")
    assert told["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == dashboard
    assert told["GF_AUTH_ANONYMOUS_ENABLED"] == "true"
    assert told["GF_AUTH_BASIC_ENABLED"] == "false"
    assert told["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"


def test_workers_can_be_scaled() -> None:
    assert not {"container_name", "ports", "hostname"} & SERVICES["worker"].keys()


def test_a_worker_is_given_time_to_finish() -> None:
    shutdown = float(setting("worker", "shutdown_grace"))
    assert float(SERVICES["worker"]["stop_grace_period"].removesuffix("s")) >= shutdown + 10
    assert shutdown >= LONGEST_TIMEOUT + BESIDE_THE_REQUEST


def test_the_api_is_given_time_to_finish() -> None:
    stop = float(SERVICES["api"]["stop_grace_period"].removesuffix("s"))
    assert stop >= float(setting("api", "http_drain")) + float(setting("api", "request_timeout")) + 10


def test_one_image_serves_setup_api_and_worker() -> None:
    assert len({SERVICES[name]["image"] for name in ("setup", "api", "worker")}) == 1
    assert [name for name, service in SERVICES.items() if "build" in service] == ["setup"]
    assert SERVICES["api"]["command"] == json.loads(instructions("CMD")[0])


def test_the_image_runs_as_a_numeric_user_and_gets_signals() -> None:
    user, group = instructions("USER")[0].split(":")
    assert int(user) > 0
    assert int(group) > 0
    assert not instructions("ENTRYPOINT")
    assert all(isinstance(SERVICES[name]["command"], list) for name in ("setup", "api", "worker"))
    assert all(SERVICES[name]["init"] for name in ("setup", "api", "worker"))


def test_the_image_holds_all_of_ours_and_only_checked_packages() -> None:
    copied = {
        source.rstrip("/") for line in instructions("COPY") if "--from" not in line for source in line.split()[:-1]
    }
    assert copied == {"requirements.txt", "worker.py", "activities", "api", "timemachine", "workflows"}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed
    assert "--require-hashes -r requirements.txt" in DOCKERFILE


def test_temporal_is_configured_as_in_make_run() -> None:
    """But for what only SQLite, PostgreSQL or OpenSearch needs."""
    config = yaml.safe_load((ROOT / "deploy/temporal-dynamicconfig.yaml").read_text())
    deployed = {name: values[0]["value"] for name, values in config.items()}
    ours = {name: json.loads(value) for name, value in _DYNAMIC_CONFIG.items()}

    differ = {name for name in deployed.keys() | ours.keys() if deployed.get(name) != ours.get(name)}
    assert differ == {
        "history.timerProcessorMaxPollInterval",
        "history.acquireShardInterval",
        "history.timerProcessorSchedulerWorkerCount",
        "history.transferProcessorSchedulerWorkerCount",
        "history.visibilityProcessorSchedulerWorkerCount",
        "system.forceSearchAttributesCacheRefreshOnRead",
        "worker.ESProcessorFlushInterval",
    }


def test_a_history_works_at_as_many_tasks_of_each_kind_as_it_has_connections() -> None:
    config = yaml.safe_load((ROOT / "deploy/temporal-dynamicconfig.yaml").read_text())
    connections = re.search(r"^SQL_MAX_CONNS=(\d+)$", (ROOT / "deploy/temporal-server.env").read_text(), re.MULTILINE)
    assert connections
    for kind in ("timer", "transfer"):
        assert config[f"history.{kind}ProcessorSchedulerWorkerCount"] == [{"value": int(connections[1])}]

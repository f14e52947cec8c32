"""The programs by themselves: what they say and return when they cannot work."""

import asyncio
import json
import os
import signal
import socket
import sys
from typing import Any

import httpx
import pytest

from devstack.children import ROOT
from devstack.ports import free_port
from devstack.temporal import Temporal
from tests.support.collector import Collector
from tests.support.spans import TRACE_ID, TRACEPARENT
from tests.support.waiting import eventually
from timemachine.settings import Settings
from timemachine.vault import new_key

NOWHERE = {
    "TIMEMACHINE_POSTGRES_DSN": "postgresql://nobody@127.0.0.1:1/nothing",
    "TIMEMACHINE_SECRET_KEYS": new_key(),
    "TEMPORAL_ADDRESS": "127.0.0.1:1",
}
WORKER, API, SETUP, REKEY = ["worker.py"], ["-m", "api"], ["-m", "timemachine.setup"], ["-m", "timemachine.rekey"]


async def run(command: list[str], **env: str) -> tuple[int | None, list[dict[str, Any]]]:
    """Return the exit status and the log of a program that ends by itself."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]} | env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(30):
            _, log = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode, [json.loads(line) for line in log.splitlines()]


@pytest.mark.parametrize("command", [API, WORKER], ids=" ".join)
async def test_no_program_starts_without_its_settings(command: list[str]) -> None:
    status, log = await run(command, **NOWHERE | {"TIMEMACHINE_POSTGRES_DSN": ""})

    assert status == 1
    assert "TIMEMACHINE_POSTGRES_DSN is not set" in log[-1]["reason"]


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        (NOWHERE | {"TIMEMACHINE_POSTGRES_DSN": ""}, "TIMEMACHINE_POSTGRES_DSN is not set"),
        (NOWHERE | {"TIMEMACHINE_POSTGRES_DSN": "postgresql://db/\udcff"}, "TIMEMACHINE_POSTGRES_DSN: it is not UTF-8"),
    ],
    ids=["nothing set", "no text"],
)
async def test_wrong_settings_are_named(env: dict[str, str], reason: str) -> None:
    status, log = await run(SETUP, **env)

    assert status == 1
    assert reason in log[-1]["reason"]


@pytest.mark.parametrize(
    ("command", "keys", "reason"),
    [
        (API, "", "TIMEMACHINE_SECRET_KEYS is not set; `python -m timemachine.vault` makes a key"),
        (WORKER, "a5ecret", "TIMEMACHINE_SECRET_KEYS: each must be 32 bytes in URL-safe base64"),
        (REKEY, "", "TIMEMACHINE_SECRET_KEYS is not set; `python -m timemachine.vault` makes a key"),
    ],
    ids=["API", "worker", "rekey"],
)
async def test_what_reads_secrets_wants_keys(command: list[str], keys: str, reason: str) -> None:
    status, log = await run(command, **NOWHERE | {"TIMEMACHINE_SECRET_KEYS": keys})

    assert status == 1
    assert [line.get("reason") for line in log] == [reason]


async def test_the_worker_ends_when_there_is_no_temporal() -> None:
    status, log = await run(WORKER, **NOWHERE, FOO="\udcff")

    assert status == 1
    assert log[-1]["message"] == "cannot work"
    assert "Temporal does not answer" in log[-1]["reason"]


@pytest.mark.parametrize("command", [API, WORKER], ids=" ".join)
async def test_a_program_ends_when_the_port_of_its_metrics_is_taken(command: list[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        status, log = await run(command, **NOWHERE, TIMEMACHINE_METRICS_ADDRESS=f"127.0.0.1:{taken.getsockname()[1]}")

    assert status == 1
    assert log[-1]["reason"].startswith("TIMEMACHINE_METRICS_ADDRESS: ")


async def test_the_worker_ends_when_the_port_of_its_health_is_taken(settings: Settings, temporal: Temporal) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        status, log = await run(
            WORKER,
            TIMEMACHINE_POSTGRES_DSN=settings.postgres_dsn or "",
            TIMEMACHINE_SECRET_KEYS=new_key(),
            TIMEMACHINE_HEALTH_ADDRESS=f"127.0.0.1:{taken.getsockname()[1]}",
            TEMPORAL_ADDRESS=temporal.address,
        )

    assert status == 1
    assert log[-1]["reason"].startswith("TIMEMACHINE_HEALTH_ADDRESS: ")


async def test_an_api_that_is_told_to_stop_is_not_ready_and_serves_until_the_drain_is_over(
    settings: Settings, temporal: Temporal
) -> None:
    port = free_port()
    env = {
        "PATH": os.environ["PATH"],
        "TIMEMACHINE_AUTH": "none",
        "TIMEMACHINE_HTTP_DRAIN": "3",
        "TIMEMACHINE_HTTP_PORT": str(port),
        "TIMEMACHINE_POSTGRES_DSN": settings.postgres_dsn or "",
        "TIMEMACHINE_SECRET_KEYS": new_key(),
        "TEMPORAL_ADDRESS": temporal.address,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, *API, cwd=ROOT, env=env, stderr=asyncio.subprocess.DEVNULL
    )
    transport = httpx.AsyncHTTPTransport(retries=8)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", transport=transport) as http:
            await eventually(lambda: http.get("/readyz"), lambda answer: answer.status_code == 200)

            process.send_signal(signal.SIGTERM)

            await eventually(lambda: http.get("/readyz"), lambda answer: answer.status_code == 503)
            assert (await http.get("/livez")).status_code == 200
            assert (await http.get("/job/d/c")).status_code == 200
        async with asyncio.timeout(20):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_an_api_exports_its_last_spans_when_it_is_stopped(collector: Collector) -> None:
    port = free_port()
    env = NOWHERE | {
        "PATH": os.environ["PATH"],
        "TIMEMACHINE_AUTH": "none",
        "TIMEMACHINE_HTTP_DRAIN": "0",
        "TIMEMACHINE_HTTP_PORT": str(port),
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, *API, cwd=ROOT, env=env, stderr=asyncio.subprocess.DEVNULL
    )
    transport = httpx.AsyncHTTPTransport(retries=8)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", transport=transport) as http:
            await http.get("/livez")
            await http.get("/nowhere", headers={"traceparent": TRACEPARENT})
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    (span,) = collector.spans
    assert collector.resource["service.name"] == "timemachine-api"
    assert (span.name, span.trace_id.hex()) == ("GET", TRACE_ID)


async def test_setup_ends_when_there_is_no_postgres() -> None:
    status, log = await run(SETUP, **NOWHERE)

    assert status == 1
    assert "Postgres does not answer" in log[-1]["reason"]


async def test_setup_says_how_a_namespace_that_is_missing_is_made(settings: Settings, temporal: Temporal) -> None:
    assert settings.postgres_dsn
    env = {"TIMEMACHINE_POSTGRES_DSN": settings.postgres_dsn, "TEMPORAL_ADDRESS": temporal.address}

    status, log = await run(SETUP, **env, TEMPORAL_NAMESPACE="production")

    assert status == 1
    assert log[-1]["message"] == "cannot prepare"
    assert "Temporal has no namespace production" in log[-1]["reason"]
    assert "temporal operator namespace create --namespace production" in log[-1]["reason"]


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({"TEMPORAL_ADDRESS": "127.0.0.1:1"}, "Temporal does not answer at 127.0.0.1:1, without TLS: "),
        ({"TEMPORAL_TLS": "true"}, ", with TLS: "),
        ({"TEMPORAL_NAMESPACE": "production"}, "Temporal has no namespace production"),
    ],
    ids=str,
)
async def test_setup_and_worker_say_of_temporal_what_is_missing(
    settings: Settings, temporal: Temporal, env: dict[str, str], reason: str
) -> None:
    assert settings.postgres_dsn
    given = {"TIMEMACHINE_POSTGRES_DSN": settings.postgres_dsn, "TIMEMACHINE_SECRET_KEYS": new_key()}

    for command in (SETUP, WORKER):
        status, log = await run(command, **given | {"TEMPORAL_ADDRESS": temporal.address} | env)

        assert status == 1
        assert reason in log[-1]["reason"]


@pytest.mark.parametrize(
    ("command", "env", "reason"),
    [
        (API, {"TEMPORAL_ADDRESS": "temporal.example.org"}, "must be host:port, not `temporal.example.org`"),
        (WORKER, {"TEMPORAL_TLS_CLIENT_CERT_PATH": "/nowhere/cert"}, "No such file or directory: '/nowhere/cert'"),
        (SETUP, {"TEMPORAL_PROFILE": "nobody"}, "Profile 'nobody' not found"),
    ],
    ids=["no port", "no file", "no profile"],
)
async def test_a_way_to_temporal_that_cannot_be_is_named(
    settings: Settings, command: list[str], env: dict[str, str], reason: str
) -> None:
    assert settings.postgres_dsn

    status, log = await run(command, **NOWHERE | {"TIMEMACHINE_POSTGRES_DSN": settings.postgres_dsn} | env)

    assert status == 1
    assert log[-1]["reason"].startswith("TEMPORAL_* variables or Temporal's profile file: ")
    assert reason in log[-1]["reason"]


async def test_setup_has_a_second_part(settings: Settings) -> None:
    assert settings.postgres_dsn

    status, log = await run([*SETUP, "--after"], TIMEMACHINE_POSTGRES_DSN=settings.postgres_dsn)

    assert (status, log[-1]["message"], log[-1]["part"]) == (0, "postgres is ready", "after")


async def test_the_api_ends_when_its_port_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        status, log = await run(API, **NOWHERE, TIMEMACHINE_HTTP_PORT=str(taken.getsockname()[1]))

    assert status not in (0, None)
    assert any("address already in use" in line["message"] for line in log)


async def test_an_unknown_setting_is_named_and_ignored() -> None:
    _, log = await run(SETUP, **NOWHERE, TIMEMACHINE_SERVICE_HOST="10.0.0.1")

    assert {"message": "unknown setting ignored", "setting": "TIMEMACHINE_SERVICE_HOST"}.items() <= log[0].items()

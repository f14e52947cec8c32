"""`make run`: one command, one run per folder, nothing left behind."""

import asyncio
import http.client
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from devstack.admin_key import kept_admin_key
from devstack.children import Commands
from devstack.stack import Stack, _as_set, _environment, local_stack
from tests.integration.devstack.runs import FREE_PORTS, a_run, is_gone
from tests.support.keys import bearer, revoke_key
from timemachine.domain.errors import LocalStackError
from timemachine.settings import Settings

pytestmark = pytest.mark.timeout(180)

READY = "timemachine ready: "


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that runs use one after the other, of which the first has to make what is in it."""
    return tmp_path_factory.mktemp("used")


async def test_it_says_where_it_is_refuses_a_second_one_and_stops_with_status_0(used: Path) -> None:
    async with a_run(used) as run:
        address = (await run.until(READY)).removeprefix(READY).strip()
        assert await asyncio.to_thread(_status, address, "/readyz") == 200
        parts = run.parts()
        assert set(parts) == {"Postgres", "Temporal", "API", "worker"}
        async with a_run(used) as second:
            assert await second.end() == 1
        assert f"in use by another run (process {run.process.pid})" in second.output
        assert "TIMEMACHINE_DATA_DIR" in second.output
        assert await run.stop(signal.SIGINT) == 0
    assert all(is_gone(part) for part in parts.values())
    assert run.parts() == {}


@pytest.mark.parametrize("setting", list(FREE_PORTS))
async def test_a_port_in_use_is_named_before_anything_starts(tmp_path: Path, setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        async with a_run(tmp_path, **{setting: port}) as run:
            assert await run.end() == 1
    assert f"port {port} on 127.0.0.1 is in use" in run.output
    assert setting in run.output
    assert "starting" not in run.output


@pytest.mark.parametrize("name", ["Postgres", "worker"])
async def test_a_part_that_dies_stops_the_others(used: Path, name: str) -> None:
    async with a_run(used) as run:
        await run.until(READY)
        parts = run.parts()
        parts[name].kill()
        assert await run.end() == 1
    assert f"{name} was killed by signal 9" in run.output
    assert all(is_gone(part) for part in parts.values())


async def test_it_starts_again_after_it_was_killed(used: Path) -> None:
    """What it has left behind is stopped first, also where only Postgres' data is left."""
    async with a_run(used) as killed:
        await killed.until(READY)
        left = killed.parts()
        await killed.kill()
        assert not any(is_gone(part) for part in left.values())
        async with a_run(used) as run:
            assert "worker, API, Temporal, Postgres" in await run.until("left behind")
            assert all(is_gone(part) for part in left.values())
            await run.until(READY)
            left = run.parts()
            await run.kill()
            for part in left.values():
                part.kill()
            async with a_run(used) as last:
                await last.until(READY)


async def test_stopping_it_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    async with a_run(tmp_path) as run:
        await run.until("starting Temporal")
        assert await run.stop() == 0
    assert run.parts() == {}


@pytest.fixture(scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """A stack that needs keys, and that was started where another Postgres is spoken of."""
    async with AsyncExitStack() as opened:
        with pytest.MonkeyPatch.context() as other:
            other.setenv("PGPORT", "6432,6433")
            other.setenv("PGSSLMODE", "verify-full")
            other.setenv("TIMEMACHINE_AUTH", "keys")
            starting = local_stack(_settings(tmp_path_factory.mktemp("stack")), os.environ)
            stack = await opened.enter_async_context(starting)
        yield stack


async def test_what_is_said_of_another_postgres_is_kept_from_our_programs(stack: Stack) -> None:
    assert not any(name.startswith("PG") for name in stack.env)
    assert await asyncio.to_thread(_status, stack.api_url, "/readyz") == 200


async def test_given_servers_are_used_and_not_stopped(stack: Stack, tmp_path: Path) -> None:
    dsn, key = stack.env["TIMEMACHINE_POSTGRES_DSN"], stack.folder / "secret.keys"
    assert key.read_text() == stack.env["TIMEMACHINE_SECRET_KEYS"]
    settings = Settings(data_dir=str(tmp_path), http_port=0, postgres_dsn=dsn, task_queue="other")
    async with local_stack(settings, {**stack.env, "TIMEMACHINE_TASK_QUEUE": "other"}) as other:
        assert set(other.parts) == {"api", "worker"}
        assert not (other.folder / "secret.keys").exists()
        assert await asyncio.to_thread(_status, other.api_url, "/readyz") == 200
    assert await asyncio.to_thread(_status, stack.api_url, "/readyz") == 200


async def test_any_part_can_be_killed_and_started_again(stack: Stack) -> None:
    for part in stack.parts.values():
        old = part.pid
        os.kill(old, signal.SIGKILL)
        await part.restart()
        assert part.pid != old
    # The API finds its way back to the Postgres and the Temporal that were started again.
    assert await asyncio.to_thread(_status, stack.api_url, "/readyz") == 200


async def test_with_keys_an_admin_key_is_made_once_and_kept(stack: Stack) -> None:
    key, file = stack.admin_key or "", stack.folder / "admin.key"
    assert file.read_text() == key
    assert file.stat().st_mode & 0o777 == 0o600
    assert await asyncio.to_thread(_status, stack.api_url, "/key") == 401
    assert await asyncio.to_thread(_status, stack.api_url, "/key", key) == 200
    dsn = stack.env["TIMEMACHINE_POSTGRES_DSN"]
    assert await kept_admin_key(file, dsn) == key
    await revoke_key(Settings(postgres_dsn=dsn), key)
    another = await kept_admin_key(file, dsn)
    assert another != key
    assert file.read_text() == another
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("host", "given", "auth"),
    [
        ("127.0.0.1", {}, "none"),
        ("::1", {}, "none"),
        ("0.0.0.0", {}, "keys"),  # noqa: S104
        ("example.org", {"TIMEMACHINE_AUTH": ""}, "keys"),
        ("127.0.0.1", {"TIMEMACHINE_AUTH": "keys"}, "keys"),
        ("0.0.0.0", {"TIMEMACHINE_AUTH": "none"}, "none"),  # noqa: S104
    ],
)
def test_a_key_is_needed_where_others_can_come(host: str, given: dict[str, str], auth: str) -> None:
    assert _environment(Settings(http_host=host), given)["TIMEMACHINE_AUTH"] == auth


@pytest.mark.parametrize(
    ("worker", "api"),
    [(None, None), ("", None), ("0.0.0.0:9464", "0.0.0.0:9465"), ("[::1]:9464", "[::1]:9465"), ("[::]:0", "[::]:0")],
)
def test_the_metrics_of_the_api_are_on_the_port_after_the_workers(worker: str | None, api: str | None) -> None:
    assert _as_set(worker) == ({"worker": worker, "api": api} if worker else {})


async def test_a_given_postgres_wants_the_keys_that_go_with_it(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path), http_port=0, temporal_port=0, temporal_ui_port=0, postgres_dsn="any")
    env = {name: value for name, value in os.environ.items() if name != "TIMEMACHINE_SECRET_KEYS"}
    with pytest.raises(LocalStackError, match="TIMEMACHINE_SECRET_KEYS must be set"):
        async with local_stack(settings, env):
            pass


async def test_a_program_that_fails_to_start_is_named(tmp_path: Path) -> None:
    fails = (sys.executable, "-c", "raise SystemExit(3)")
    with pytest.raises(LocalStackError, match="API ended with status 3 before it was ready"):
        async with local_stack(_settings(tmp_path), os.environ, commands=Commands(api=fails)):
            pass


def _settings(folder: Path) -> Settings:
    return Settings(
        data_dir=str(folder),
        http_port=0,
        temporal_port=0,
        temporal_ui_port=0,
        temporal_cli=os.environ.get("TIMEMACHINE_TEMPORAL_CLI"),
    )


def _status(address: str, path: str, key: str = "") -> int:
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=10)
    try:
        connection.request("GET", path, headers=bearer(key) if key else {})
        return connection.getresponse().status
    finally:
        connection.close()

"""Our own programs in the local stack: how each is started and how one sees that it works."""

import asyncio
import http.client
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import PollerInfo, TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client
from temporalio.envconfig import ClientConfig
from temporalio.service import RPCError

from devstack.parts import Part, Program, Ready
from devstack.running_processes import RunningProcesses
from timemachine.settings import Settings, variables
from timemachine.temporal.registered_attributes import KNOWN_EVERYWHERE_WITHIN, KNOWN_WITHIN

ROOT = Path(__file__).parents[1]
"""The repository, which our programs are started in."""


class Commands(msgspec.Struct, frozen=True, kw_only=True):
    """The command of each of our programs. Tests put others in their place."""

    setup: tuple[str, ...] = (sys.executable, "-m", "timemachine.setup")
    api: tuple[str, ...] = (sys.executable, "-m", "api")
    worker: tuple[str, ...] = (sys.executable, "worker.py")

    logs: Path | None = None
    """Folder of the files that they write to; without one they write where we write."""

    def log(self, name: str) -> Path | None:
        """Return the file that a program writes to."""
        return self.logs / f"{name}.log" if self.logs else None

    def apart(self, folder: str) -> "Commands":
        """Return the same commands, whose logs are in a folder of their own."""
        return msgspec.structs.replace(self, logs=self.logs / folder) if self.logs else self


def setup(commands: Commands, env: dict[str, str]) -> Program:
    """Return the program that prepares Postgres and Temporal, and ends."""
    limit, log = KNOWN_WITHIN + KNOWN_EVERYWHERE_WITHIN + 60, commands.log("setup")
    return Program(name="setup", argv=commands.setup, env=env, cwd=ROOT, start_limit=limit, log=log)


def admin_key(commands: Commands, env: dict[str, str], file: Path) -> Program:
    """Return the program that sees to it that a file holds a valid admin key, and ends."""
    argv = (sys.executable, "-m", "devstack.admin_key", str(file))
    return Program(name="admin key", argv=argv, env=env, cwd=ROOT, log=commands.log("admin_key"))


def api(commands: Commands, env: dict[str, str], settings: Settings) -> Program:
    """Return the API's program. It stops without a drain unless the environment says so: nobody balances load here."""
    env = {"TIMEMACHINE_HTTP_DRAIN": "0"} | env
    limit, log = settings.http_drain + settings.request_timeout + 10, commands.log("api")
    return Program(name="API", argv=commands.api, env=env, cwd=ROOT, stop_limit=limit, log=log)


def worker(commands: Commands, env: dict[str, str], settings: Settings) -> Program:
    """Return the worker's program, which lets the attempts in flight finish when it is stopped."""
    limit, log = settings.shutdown_grace + 10, commands.log("worker")
    return Program(name="worker", argv=commands.worker, env=env, cwd=ROOT, stop_limit=limit, log=log)


def one_worker(
    commands: Commands, env: dict[str, str], settings: Settings, *, processes: RunningProcesses | None = None
) -> Part:
    """Return a worker's part, which is ready when that very worker asks Temporal for tasks, whoever else does."""

    async def asks() -> bool:
        with suppress(RPCError, RuntimeError):
            pollers = await _pollers(env, settings.task_queue)
            return any(poller.identity.startswith(f"{part.pid}@") for poller in pollers)
        return False

    part = Part(worker(commands, env, settings), asks, processes=processes)
    return part


def answers_ready(url: str) -> Ready:
    """Return a check that the API at `url` answers that it can work."""
    return answers_ok(f"{url}/readyz")


def answers_ok(url: str) -> Ready:
    """Return a check that a GET of `url` is answered 200."""
    return lambda: asyncio.to_thread(_is_ok, url)


def serves_queue(env: Mapping[str, str], task_queue: str) -> Ready:
    """Return a check that a worker which was not there before now asks Temporal for tasks."""
    since = datetime.now(UTC)

    async def check() -> bool:
        with suppress(RPCError, RuntimeError):
            # The server remembers for minutes who asked, so that a worker that died would count without the time.
            pollers = await _pollers(env, task_queue)
            return any(poller.last_access_time.ToDatetime(UTC) > since for poller in pollers)
        return False

    return check


def _is_ok(url: str) -> bool:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=5)
    try:
        connection.request("GET", parts.path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


async def _pollers(env: Mapping[str, str], task_queue: str) -> Sequence[PollerInfo]:
    config = ClientConfig.load_client_connect_config(override_env_vars=variables(env, "TEMPORAL_"))
    config.setdefault("target_host", "localhost:7233")
    client = await Client.connect(**config)
    described = await client.workflow_service.describe_task_queue(
        DescribeTaskQueueRequest(
            namespace=client.namespace,
            task_queue=TaskQueue(name=task_queue),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
        ),
        timeout=timedelta(seconds=5),
    )
    return described.pollers

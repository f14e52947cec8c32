"""`make run`, `make cluster` and `make demo`: `python -m devstack run` and so on."""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Coroutine, Mapping
from functools import partial

from devstack.cluster import Cluster, local_cluster
from devstack.demo import demonstrate
from devstack.prometheus import Watch
from devstack.stack import Stack, local_stack
from devstack.temporal_cli import find_temporal_cli
from devstack.temporal_server import find_temporal_server
from devstack.temporal_ui import find_temporal_ui
from devstack.terminal import say
from timemachine.domain.errors import TimemachineError
from timemachine.process import exit_process
from timemachine.settings import Settings


async def run(settings: Settings, env: Mapping[str, str], *, watch: Watch | None = None) -> int:
    """Run the stack until one of its parts ends, and return the exit status for that: 1."""
    async with local_stack(settings, env, watch=watch) as stack:
        _announce(stack)
        ended = await stack.first_end()
        _complain(f"{ended}; stopping the others")
    return 1


async def cluster(settings: Settings, env: Mapping[str, str]) -> int:
    """Run a cluster until one of its parts ends, and return the exit status for that: 1."""
    async with local_cluster(settings, env) as running:
        _announce_cluster(running)
        ended = await running.first_end()
        _complain(f"{ended}; stopping the others")
    return 1


async def demo(settings: Settings, env: Mapping[str, str]) -> int:
    """Show one job from creation to delivery."""
    await demonstrate(settings, env)
    return 0


async def temporal_server(_: Settings, env: Mapping[str, str]) -> int:
    """Find Temporal's server and Web UI, building what is missing, and say where they are."""
    say(str(await find_temporal_server(env)))
    say(str(await find_temporal_ui(env)))
    return 0


async def temporal(settings: Settings, env: Mapping[str, str]) -> int:
    """Find the Temporal CLI, downloading or building it where it is missing, and say where it is."""
    say(str(await find_temporal_cli(settings.temporal_cli, env)))
    return 0


COMMANDS = {"run": run, "cluster": cluster, "demo": demo, "temporal": temporal, "temporal-server": temporal_server}


def _announce(stack: Stack) -> None:
    say("")
    say(f"  API            {stack.api_url}")
    say(f"  documentation  {stack.api_url}/docs")
    if stack.ui_url:
        say(f"  Temporal UI    {stack.ui_url}")
    if stack.prometheus_url:
        say(f"  Prometheus     {stack.prometheus_url}, and its alerts {stack.prometheus_url}/alerts")
    say(f"  data and logs  {stack.folder}")
    if stack.admin_key:
        say("")
        say(f"  a key is needed; this one may do everything, and is kept in {stack.folder / 'admin.key'}:")
        say(f"  curl {stack.api_url}/key -H 'authorization: Bearer {stack.admin_key}'")
    say("")
    say(f"timemachine ready: {stack.api_url}")


def _announce_cluster(running: Cluster) -> None:
    say("")
    for api_url in running.api_urls:
        say(f"  API            {api_url}")
    say(f"  Temporal UI    {running.ui_url}")
    say(f"  Temporal       {running.env['TEMPORAL_ADDRESS']}, namespace {running.env['TEMPORAL_NAMESPACE']}")
    say(f"  data and logs  {running.folder}")
    say("")
    for name, part in running.parts.items():
        say(f"  {name:20} process {part.pid}")
    say("")
    if running.admin_key:
        say(f"  a key is needed: {running.folder / 'admin.key'} has one that may do everything")
        say("")
    say(f"timemachine's cluster ready: {running.api_url}")


def _complain(text: str) -> None:
    sys.stderr.write(f"timemachine: {text}\n")
    sys.stderr.flush()


async def _until_signalled(work: Coroutine[None, None, int], when_stopped: int) -> int:
    """Do the work; on Ctrl-C or SIGTERM cancel it, which stops what it started. A second signal does so by force."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        say("stopping")
        task.cancel()

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Under nohup the end of the terminal is to be ignored.
        if signal.getsignal(signum) is not signal.SIG_IGN:
            loop.add_signal_handler(signum, stop)
    try:
        return await task
    except asyncio.CancelledError:
        say("stopped")
        return when_stopped


def main(arguments: list[str]) -> int:
    """Run the named command and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m devstack", description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--observe", action="store_true", help="run Prometheus beside the stack (only with `run`)")
    given = parser.parse_args(arguments)
    name = given.command
    if given.observe and name != "run":
        parser.error("--observe is for `run` only")
    command = partial(run, watch=Watch()) if given.observe else COMMANDS[name]
    try:
        work = command(Settings.from_env(os.environ), os.environ)
        return asyncio.run(_until_signalled(work, when_stopped=0 if name in ("run", "cluster") else 1))
    except TimemachineError as error:
        _complain(str(error))
        return 1


if __name__ == "__main__":
    exit_process(main(sys.argv[1:]))

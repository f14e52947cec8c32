"""Prometheus, where one is installed: it scrapes the stack's own programs, and has the alert rules."""

import os
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from devstack.children import ROOT, answers_ok
from devstack.parts import Part, Program, running
from devstack.ports import LOOPBACK, free_port
from devstack.running_processes import RunningProcesses

HOW_TO_GET_IT = (
    "Prometheus is not installed: `apt-get install prometheus`, `brew install prometheus`, "
    "or put the program of https://prometheus.io/download on PATH"
)


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """What a Prometheus does beside a stack."""

    rules: Path = ROOT / "deploy" / "prometheus" / "rules.yml"
    every: str = "5s"
    """Time between two scrapes, and between two looks at the rules."""


class Prometheus(msgspec.Struct, frozen=True):
    """A running Prometheus."""

    part: Part
    url: str


def find_prometheus(env: Mapping[str, str]) -> Path | None:
    """Return the program that is on the PATH of an environment, if there is one."""
    found = shutil.which("prometheus", path=env.get("PATH", os.defpath))
    return Path(found) if found else None


@asynccontextmanager
async def local_prometheus(
    program: Path,
    folder: Path,
    watch: Watch,
    *,
    scraped: Mapping[str, str],
    processes: RunningProcesses | None = None,
) -> AsyncIterator[Prometheus]:
    """Run Prometheus on a free loopback port, with its data in `folder`/prometheus, and stop it in the end.

    Args:
        scraped: Where metrics are served, as `address:port`, by the name of the part.

    Raises:
        LocalStackError: It does not start; the message has the last lines of its log.
    """
    data, configuration = folder / "prometheus", folder / "prometheus.yml"
    data.mkdir(exist_ok=True)
    configuration.write_text(configured(watch, scraped), encoding="utf-8")
    address = f"{LOOPBACK}:{free_port()}"
    url = f"http://{address}"
    options = (f"--config.file={configuration}", f"--storage.tsdb.path={data}", f"--web.listen-address={address}")
    log = folder / "logs" / "prometheus.log"
    server = Program(name="Prometheus", argv=(str(program), *options), env={}, cwd=folder, log=log)
    part = Part(server, answers_ok(f"{url}/-/ready"), processes=processes)
    async with running(part):
        yield Prometheus(part, url)


def configured(watch: Watch, scraped: Mapping[str, str]) -> str:
    """Return the configuration file's text: JSON, which is YAML too. The rules know the jobs by their names."""
    jobs = [
        {"job_name": f"timemachine-{part}", "static_configs": [{"targets": [address]}]}
        for part, address in scraped.items()
    ]
    intervals = {"scrape_interval": watch.every, "evaluation_interval": watch.every}
    whole = {"global": intervals, "rule_files": [str(watch.rules)], "scrape_configs": jobs}
    return msgspec.json.format(msgspec.json.encode(whole)).decode()

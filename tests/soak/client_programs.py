"""HTTP clients that others wrote, and whether the API does what they ask."""

import asyncio
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec

from tests.support.service import now_ms

SOURCES = Path(__file__).parent / "clients"
ROUTE = "hook"
OK = "ok"

Request = tuple[str, str, str]
"""Method, URL and body."""


class ClientProgram(msgspec.Struct, frozen=True):
    """A client, as a command that sends requests one after the other and prints a line for each answer."""

    name: str
    program: str
    argv: Callable[[Sequence[Request]], list[str]]
    module: str | None = None
    """Of Python, which the program needs."""

    @property
    def missing(self) -> str | None:
        """What has to be installed first, if anything."""
        if shutil.which(self.program) is None:
            return f"{self.program} is not installed"
        if self.module and importlib.util.find_spec(self.module) is None:
            return f"the Python package {self.module} is not installed"
        return None


def _flat(*command: str) -> Callable[[Sequence[Request]], list[str]]:
    return lambda requests: [*command, *(word for request in requests for word in request)]


def _curl(*options: str) -> Callable[[Sequence[Request]], list[str]]:
    def argv(requests: Sequence[Request]) -> list[str]:
        words = []
        for method, url, body in requests:
            words += ["--next", "--silent", "--show-error", *options, "--write-out", " %{http_code}\\n"]
            words += ["--header", "content-type: application/json", "--request", method, "--data", body, url]
        return ["curl", *words[1:]]

    return argv


CLIENT_PROGRAMS = (
    ClientProgram("JDK HttpClient", "java", _flat("java", str(SOURCES / "Jdk.java"))),
    ClientProgram("curl", "curl", _curl()),
    ClientProgram("curl --http2", "curl", _curl("--http2")),
    ClientProgram("curl --http2 chunked", "curl", _curl("--http2", "--header", "transfer-encoding: chunked")),
    ClientProgram(
        "Python requests", sys.executable, _flat(sys.executable, str(SOURCES / "with_requests.py")), "requests"
    ),
    ClientProgram("Node fetch", "node", _flat("node", str(SOURCES / "fetch.mjs"))),
)


async def effects(client: ClientProgram, api: httpx.AsyncClient, db: str) -> tuple[dict[str, str], str]:
    """Let a client write all that has a body; return what each write did, `ok` or what is there, and what was printed.

    Args:
        db: One without routes and jobs.
    """
    route, jobs = f"/route/{db}/{ROUTE}", f"/job/{db}/c"
    made = {"id": ROUTE, "type": "REST", "webhook_url": "http://127.0.0.1:9/"}
    (await api.post(f"/route/{db}", json=made)).raise_for_status()
    old = (await api.get(f"{route}/secret")).json()["secret"]
    kept, moved, reason = _job("kept", 1), _job("moved", 2), {"reason": client.name}
    writes = [
        ("POST", jobs, kept),
        ("POST", jobs, _job("moved", 1)),
        ("PUT", f"{jobs}/moved", moved),
        ("POST", f"{route}/pause", reason),
        ("POST", f"{route}/secret/rotate", {"overlap": 0}),
    ]

    said = await _run(
        client.argv([(method, str(api.base_url.join(path)), json.dumps(body)) for method, path, body in writes])
    )

    secrets = (await api.get(f"{route}/secret")).json()
    return {
        "create": await _found(api, f"{jobs}/kept", kept),
        "change": await _found(api, f"{jobs}/moved", moved),
        "pause": await _found(api, route, {"state": "paused"} | reason),
        "rotate": OK if secrets["secret"] != old and secrets["previous"] == [] else "the old secret signs",
    }, said


def _job(job_id: str, n: int) -> dict[str, Any]:
    return {"id": job_id, "trigger_time": now_ms(n * 3600), "route": ROUTE, "meta": {"n": n}}


async def _found(api: httpx.AsyncClient, path: str, wanted: dict[str, Any]) -> str:
    """Return whether what is at a path has these fields, or what it has."""
    body = (await api.get(path)).json()
    found = {name: body.get(name) for name in wanted}
    return OK if found == wanted else body.get("code") or str(found)


async def _run(argv: Sequence[str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(30):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return output.decode(errors="replace")

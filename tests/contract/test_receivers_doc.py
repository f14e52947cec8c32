"""The programs of docs/receivers.md, run as they stand there, against requests that are ours and such that are not."""

import asyncio
import os
import re
import shutil
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from devstack.ports import free_port
from tests.support.service import Service
from tests.support.waiting import eventually
from timemachine.domain.signing import encode_secret, signature, signatures

PAGE = (Path(__file__).parents[2] / "docs/receivers.md").read_text()
BLOCK = re.compile(r"^```(python|js|go|java)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

KEY, OLD_KEY, OTHER_KEY = b"k" * 32, b"o" * 24, b"x" * 64
BODY = '{"game": 7, "n": 12345678901234567890.10, "é": "\\u00e9"}'.encode()

Headers = dict[str, str]


def blocks(language: str) -> list[str]:
    return [block for found, block in BLOCK.findall(PAGE) if found == language]


def signed(*keys: bytes, at: float = 0, body: bytes = BODY, webhook_id: str = "msg_1") -> Headers:
    """The headers of a delivery signed with some keys, some seconds from now."""
    timestamp = int(time.time() + at)
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signatures(keys, webhook_id, timestamp, body),
    }


def lacking(name: str) -> Headers:
    return {header: value for header, value in signed(KEY).items() if header != name}


OURS: dict[str, Callable[[], tuple[Headers, bytes]]] = {
    "plain": lambda: (signed(KEY), BODY),
    "of a rotation, ours first": lambda: (signed(KEY, OLD_KEY), BODY),
    "of a rotation, ours last": lambda: (signed(OLD_KEY, OTHER_KEY, KEY), BODY),
    "with another kind of signature": lambda: (
        (headers := signed(KEY)) | {"webhook-signature": f"v1a,{'A' * 86}== {headers['webhook-signature']}"},
        BODY,
    ),
    "an empty body": lambda: (signed(KEY, body=b""), b""),
    "null": lambda: (signed(KEY, body=b"null"), b"null"),
    "a large body": lambda: (signed(KEY, body=b'"%s"' % (b"a" * 256_000)), b'"%s"' % (b"a" * 256_000)),
    "4 minutes old": lambda: (signed(KEY, at=-240), BODY),
    "4 minutes ahead": lambda: (signed(KEY, at=240), BODY),
}
NOT_OURS: dict[str, Callable[[], tuple[Headers, bytes]]] = {
    "another key": lambda: (signed(OTHER_KEY), BODY),
    "another body": lambda: (signed(KEY), BODY.replace(b"7", b"8")),
    "the same JSON in other bytes": lambda: (signed(KEY), BODY.replace(b" ", b"")),
    "another id": lambda: (signed(KEY) | {"webhook-id": "msg_2"}, BODY),
    "another time": lambda: (signed(KEY, at=-9) | {"webhook-timestamp": str(int(time.time()))}, BODY),
    "6 minutes old": lambda: (signed(KEY, at=-360), BODY),
    "6 minutes ahead": lambda: (signed(KEY, at=360), BODY),
    "no id": lambda: (lacking("webhook-id"), BODY),
    "no time": lambda: (lacking("webhook-timestamp"), BODY),
    "no signature": lambda: (lacking("webhook-signature"), BODY),
    "an empty signature": lambda: (signed(KEY) | {"webhook-signature": ""}, BODY),
    "no words": lambda: (signed(KEY) | {"webhook-signature": "v1, v1 , v1"}, BODY),
    "no base64": lambda: (signed(KEY) | {"webhook-signature": "v1,!"}, BODY),
    "no version": lambda: ((h := signed(KEY)) | {"webhook-signature": h["webhook-signature"][3:]}, BODY),
    "another version": lambda: ((h := signed(KEY)) | {"webhook-signature": "v2" + h["webhook-signature"][2:]}, BODY),
    "a time that is none, signed": lambda: (
        {"webhook-id": "m", "webhook-timestamp": "now", "webhook-signature": _signed_time("now")},
        BODY,
    ),
}


def _signed_time(timestamp: str) -> str:
    """A signature, with another's key, of a timestamp that is no number."""
    return signature(OTHER_KEY, "m", timestamp, BODY)  # type: ignore[arg-type]


class Program:
    """A receiver of the page."""

    def __init__(self, http: httpx.AsyncClient, inbox: Path) -> None:
        self.http = http
        self._inbox = inbox

    async def status(self, headers: Headers, body: bytes) -> int:
        answer = await self.http.post("/hook", headers=headers | {"content-type": "application/json"}, content=body)
        return answer.status_code

    def inbox(self) -> list[tuple[str, bytes]]:
        with sqlite3.connect(self._inbox) as inbox:
            return inbox.execute("SELECT id, body FROM jobs ORDER BY rowid").fetchall()


async def command(language: str, folder: Path) -> list[str]:
    """What runs the page's program, once it is compiled where that is needed."""
    (folder / "go.mod").write_text("module receiver\n\ngo 1.21\n")
    source = (
        folder / {"python": "receiver.py", "js": "receiver.cjs", "go": "receiver.go", "java": "Receiver.java"}[language]
    )
    source.write_text(blocks(language)[0])
    if language == "python":
        return [sys.executable, str(source)]
    name = {"js": "node"}.get(language, language)
    tool = shutil.which(name)
    if tool is None:
        pytest.skip(f"there is no {name} on PATH")
    if language in ("js", "java"):
        return [tool, str(source)]
    # Nothing is to be downloaded: neither a module nor another version of Go.
    env = os.environ | {"GOFLAGS": "", "GOPROXY": "off", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}
    compiler = await asyncio.create_subprocess_exec(tool, "build", "-o", "receiver", ".", cwd=folder, env=env)
    assert await compiler.wait() == 0
    return [str(folder / "receiver")]


@asynccontextmanager
async def running(argv: list[str], folder: Path, secret: str, port: int) -> AsyncIterator[Program]:
    """Run a receiver, and wait until it listens."""
    env = os.environ | {"WEBHOOK_SECRET": secret, "PORT": str(port), "INBOX": str(folder / "inbox")}
    with (folder / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(*argv, env=env, stdout=log, stderr=log)
    try:
        async with asyncio.timeout(20):
            while not await _listens(port):
                assert process.returncode is None, (folder / "log").read_text()
                await asyncio.sleep(0.05)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as http:
            yield Program(http, folder / "inbox")
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@pytest.fixture(scope="module", params=["python", "js", "go", "java"])
async def receivers_command(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return await command(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.timeout(300)  # a first compilation of Go's standard library takes its time
async def test_a_program_takes_what_is_ours_and_nothing_else(receivers_command: list[str], tmp_path: Path) -> None:
    async with running(receivers_command, tmp_path, encode_secret(KEY), free_port()) as program:
        taken = {name: await program.status(*make()) for name, make in OURS.items()}
        refused = {name: await program.status(*make()) for name, make in NOT_OURS.items()}

    assert taken == dict.fromkeys(OURS, 204)
    assert refused == dict.fromkeys(NOT_OURS, 401)


@pytest.mark.timeout(300)
async def test_a_program_takes_what_the_service_delivers(
    receivers_command: list[str], tmp_path: Path, api: httpx.AsyncClient, worker: None, db: str
) -> None:
    port, service = free_port(), Service(api, db)
    await service.add_route(f"http://127.0.0.1:{port}/hook")
    old = (await service.secret())["secret"]
    async with running(receivers_command, tmp_path, old, port):
        await service.wait_for_state(await service.create(0, meta={"n": 1.10}), "delivered")
        await service.rotate()
        await service.wait_for_state(await service.create(0, meta="while both sign"), "delivered")
    await service.rotate(overlap=0)
    async with running(receivers_command, tmp_path, old, port):
        job_id = await service.create(0)
        refusal = "401 from the receiver"
        await eventually(lambda: service.find(job_id), lambda job: refusal in job.get("last_error", ""))


async def test_the_python_program_keeps_each_job_once(tmp_path: Path) -> None:
    argv = await command("python", tmp_path)
    async with running(argv, tmp_path, encode_secret(KEY), free_port()) as program:
        for _ in range(3):
            assert await program.status(signed(KEY, webhook_id="msg_1"), BODY) == 204
        assert await program.status(signed(KEY, webhook_id="msg_2", body=b"2"), b"2") == 204

        assert program.inbox() == [("msg_1", BODY), ("msg_2", b"2")]


@pytest.fixture(scope="module")
def by_hand() -> ModuleType:
    """The page's Python without the library."""
    module = ModuleType("by_hand")
    exec(compile(blocks("python")[1], "docs/receivers.md", "exec"), module.__dict__)  # noqa: S102 - our own page
    return module


@pytest.mark.parametrize("name", OURS)
def test_python_by_hand_takes_what_is_ours(by_hand: ModuleType, name: str) -> None:
    assert by_hand.verify(encode_secret(KEY), *OURS[name]())


@pytest.mark.parametrize("name", NOT_OURS)
def test_python_by_hand_takes_nothing_else(by_hand: ModuleType, name: str) -> None:
    assert not by_hand.verify(encode_secret(KEY), *NOT_OURS[name]())


def test_every_program_of_the_page_is_run() -> None:
    assert {language: len(blocks(language)) for language in ("python", "js", "go", "java")} == {
        "python": 2,
        "js": 1,
        "go": 1,
        "java": 1,
    }

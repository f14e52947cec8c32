"""`python -m timemachine.keys`: what operators do without a key."""

import asyncio
import json
import os
import sys
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from api.app import create_app
from devstack.children import ROOT
from devstack.temporal import Temporal
from tests.conftest import serving
from tests.support.keys import bearer, id_of
from timemachine.domain.keys import parse_key
from timemachine.settings import Auth, Settings


class Program:
    """The program, on the tests' database."""

    def __init__(self, settings: Settings) -> None:
        self._env = {"PATH": os.environ["PATH"], "TIMEMACHINE_POSTGRES_DSN": settings.postgres_dsn or ""}

    async def run(self, *arguments: str, **env: str) -> tuple[int | None, str, str]:
        """Return the exit status, what it printed and what it logged."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "timemachine.keys", *arguments),
            cwd=ROOT,
            env=self._env | env,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            printed, logged = await process.communicate()
        return process.returncode, printed.decode(), logged.decode()

    async def done(self, *arguments: str) -> str:
        """Return what it printed, without its line break."""
        status, printed, logged = await self.run(*arguments)
        assert (status, logged) == (0, "")
        return printed.removesuffix("\n")


@pytest.fixture
def program(settings: Settings) -> Program:
    return Program(settings)


async def get(app: httpx.AsyncClient, path: str, key: str) -> Any:
    answer = await app.get(path, headers=bearer(key))
    return answer.json() if answer.status_code == 200 else answer.status_code


async def test_keys_from_the_first_to_the_last(
    program: Program, settings: Settings, temporal: Temporal, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal.address)
    dbs = [db, f"{db}-2"]
    async with serving(create_app(replace(settings, auth=Auth.KEYS))) as app:
        admin = await program.done("create", "--role", "admin", "--name", "first key")
        assert parse_key(admin)
        of_a_db = await program.done(
            *("create", "--role", "read", "--name", "n", "--db", dbs[0], "--db", dbs[1]),
            *("--expires-in", "90d", "--requests-per-second", "50"),
        )
        shown = (await get(app, "/key?limit=1", admin))["keys"][0]
        assert (shown["id"], shown["dbs"], shown["requests_per_second"]) == (id_of(of_a_db), dbs, 50)
        assert "created_by" not in shown
        assert shown["expires_at"] - shown["created_at"] == pytest.approx(90 * 86_400_000, abs=60_000)
        assert await get(app, f"/failed/{db}", of_a_db) == {"failed": []}

        rotated = await program.done("rotate", "--overlap", "0", id_of(of_a_db))
        assert id_of(rotated) == id_of(of_a_db)
        assert await get(app, f"/failed/{db}", rotated) == {"failed": []}

        listed = {line.split("\t")[0]: line for line in (await program.done("list")).splitlines()}
        assert "first key\tadmin\tall" in listed[id_of(admin)]
        assert f"\t{','.join(dbs)}\t" in listed[id_of(of_a_db)]
        assert "\tvalid until 20" in listed[id_of(of_a_db)]
        assert not [line for line in listed.values() if "tm_" in line]

        assert id_of(of_a_db) in await program.done("revoke", id_of(of_a_db))
        assert "\trevoked 20" in await program.done("list")
        audit = (await get(app, f"/audit/{dbs[1]}?limit=200", admin))["entries"]
        assert [(entry["action"], entry["address"]) for entry in audit if entry["target"] == id_of(of_a_db)] == [
            ("key.revoke", "command line"),
            ("key.rotate", "command line"),
            ("key.create", "command line"),
        ]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("rotate", "k" * 12), f"no key {'k' * 12}"),
        (("revoke", "k" * 12), f"no key {'k' * 12}"),
        (("create", "--role", "read", "--name", ""), "name: 1 to 100 characters"),
        (("create", "--role", "read", "--name", "n", "--db", "a/b"), "dbs: a name needs"),
    ],
)
async def test_what_cannot_be_done_is_said_in_words(program: Program, arguments: tuple[str, ...], reason: str) -> None:
    status, printed, logged = await program.run(*arguments)

    assert (status, printed) == (1, "")
    assert reason in json.loads(logged)["reason"]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("make",),
        ("create",),
        ("create", "--role", "owner", "--name", "n"),
        ("create", "--role", "read", "--name", "n", "--expires-in", "tomorrow"),
        ("create", "--role", "read", "--name", "n", "--requests-per-second", "0"),
        ("rotate", "k" * 12, "--overlap", "8d"),
        ("rotate",),
    ],
)
async def test_what_is_not_understood_ends_with_the_usage(program: Program, arguments: tuple[str, ...]) -> None:
    status, printed, logged = await program.run(*arguments)

    assert (status, printed) == (2, "")
    assert "usage: python -m timemachine.keys" in logged


async def test_without_postgres_it_says_so(program: Program) -> None:
    for dsn, reason in (("postgresql://nobody@127.0.0.1:1/no", "does not answer"), ("", "DSN is not set")):
        status, printed, logged = await program.run("list", TIMEMACHINE_POSTGRES_DSN=dsn)
        assert (status, printed) == (1, "")
        assert reason in json.loads(logged.splitlines()[-1])["reason"]

"""The page at /docs: it needs no Internet, and answers as everything else does."""

import asyncio
import hashlib
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from tests.contract.server import Server
from tests.support.refusals import WRONG_METHOD

PAGE, DOCUMENT = "/docs", "/docs/openapi.json"
NOT_FOUND = {"error": "no such path; the API is described at /docs", "code": "E017"}
TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
CHROMIUM = shutil.which("chromium")


class Tags(HTMLParser):
    """What a page loads and links to, and what its policy would not run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []
        self.inline: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href"):
                (self.linked if tag == "a" else self.loaded).append(value or "")
            if name == "style" or name.startswith("on"):
                self.inline.append(f"{tag} {name}")
        if tag == "style" or (tag == "script" and "src" not in dict(attrs)):
            self.inline.append(tag)


def policy(answer: httpx.Response) -> dict[str, set[str]]:
    directives = answer.headers["content-security-policy"].split("; ")
    return {name: set(values) for name, *values in (directive.split() for directive in directives)}


async def loaded(api: httpx.AsyncClient) -> list[str]:
    """The paths of what the page loads."""
    return [path for path in Tags((await api.get(PAGE)).text).loaded if not path.startswith("data:")]


@pytest.mark.parametrize("path", [PAGE, PAGE + "/"])
async def test_the_page_is_all_from_here(api: httpx.AsyncClient, path: str) -> None:
    answer = await api.get(path)
    page = Tags(answer.text)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert "://" not in answer.text
    assert [link for link in page.loaded if not link.startswith((PAGE + "/assets/", "data:,"))] == []
    assert page.linked == [DOCUMENT]
    assert page.inline == []


async def test_the_policy_allows_nothing_of_another_origin(api: httpx.AsyncClient) -> None:
    for path in (PAGE, *await loaded(api)):
        allowed = policy(await api.get(path))
        assert allowed["default-src"] == allowed["base-uri"] == allowed["frame-ancestors"] == {"'none'"}
        assert allowed["script-src"] == allowed["style-src"] == allowed["connect-src"] == {"'self'"}
        assert set.union(*allowed.values()) == {"'none'", "'self'", "data:"}


async def test_what_the_page_loads_is_served_and_kept(api: httpx.AsyncClient) -> None:
    paths = await loaded(api)
    for path in paths:
        answer = await api.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == TYPES[Path(path).suffix]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert {"immutable", "max-age=31536000"} <= set(answer.headers["cache-control"].split(", "))
        assert path.split("/")[-2] == hashlib.sha256(answer.content).hexdigest()[:16], "cached under an old name"
    assert [Path(path).name for path in paths] == ["swagger-ui.css", "swagger-ui.js", "start.js"]
    assert f'"{DOCUMENT}"' in (await api.get(paths[-1])).text


async def test_the_page_is_the_same_under_any_name(api: httpx.AsyncClient, server: Server) -> None:
    for host in (b"timers.example", b"[::1]:80", b"a.example:8443"):
        answer = await server.send(b"GET /docs HTTP/1.1\r\nhost: " + host + b"\r\n\r\n")
        assert answer.text == (await api.get(PAGE)).text


async def test_head_is_answered_as_get(api: httpx.AsyncClient, server: Server) -> None:
    for path in (PAGE, DOCUMENT, *await loaded(api)):
        whole, head = await api.get(path), await server.request("HEAD", path)
        assert head.status_code == 200
        assert head.content == b""
        own = {"date": "", "x-request-id": ""}
        assert {**head.headers, **own} == {**whole.headers, **own}


@pytest.mark.parametrize("path", ["", "/nothing", "/nothing.json", "/assets", "/assets/0/swagger-ui.js", "/a/b/c"])
async def test_another_path_below_is_refused_as_everywhere(server: Server, path: str) -> None:
    answer = await server.request("GET", f"{PAGE}{path}" if path else "/")

    assert (answer.status_code, answer.json()) == (404, NOT_FOUND)
    assert answer.headers["content-type"] == "application/json"
    assert (await server.request("HEAD", f"{PAGE}{path}" if path else "/")).status_code == 404


async def test_another_method_is_refused_as_everywhere(api: httpx.AsyncClient) -> None:
    for path in (PAGE, *await loaded(api)):
        answer = await api.post(path)
        assert (answer.status_code, answer.json()["code"]) == WRONG_METHOD
        assert answer.headers["allow"] == "GET, HEAD, OPTIONS"


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on PATH")
async def test_a_browser_without_internet_shows_every_operation(
    api: httpx.AsyncClient, server: Server, tmp_path: Path
) -> None:
    """It is read after its scripts have run. A load that was refused, or not possible, is in the console."""
    paths = (await api.get(DOCUMENT)).json()["paths"]
    browser = await asyncio.create_subprocess_exec(
        *(str(CHROMIUM), "--headless", "--disable-gpu", f"--user-data-dir={tmp_path}"),
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
        *("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--disable-background-networking"),
        *("--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom"),
        f"{server.url}{PAGE}#/Jobs/CreateJob",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        dom, log = await asyncio.wait_for(browser.communicate(), 50)
    finally:
        if browser.returncode is None:
            browser.kill()
            await browser.wait()
    shown = dom.decode()
    assert [line for line in log.decode(errors="replace").splitlines() if ":CONSOLE" in line] == []
    assert {path: shown.count(f'data-path="{path}"') for path in paths} == {p: len(ms) for p, ms in paths.items()}
    assert "Try it out" in shown
    assert re.search("ErrorBody</", shown)

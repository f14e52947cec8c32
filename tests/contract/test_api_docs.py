"""The examples of docs/api.md, in the order of the page, against the service.

`{{in 60 s}}` stands for a time, and other words in double braces for a value that is known once it has come back; the
same words stand for the same value wherever they are written. The page's receiver is the test's own, which answers 500
at `/broken`. A GET is asked again until its answer is the page's, because a job needs time to get where the page shows
it.
"""

import asyncio
import re
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import msgspec
from temporalio.client import Client

from tests.contract.server import Server
from tests.support.receiver import Received, Receiver, response, take
from tests.support.service import now_ms
from tests.support.waiting import eventually

PAGE = (Path(__file__).parents[2] / "docs/api.md").read_text()
RECEIVER = "gameserver-dev-1.myorg.com"

PROGRAM = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```http( receiver)?\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
TIME = re.compile(r"\{\{in (\d+) s\}\}")
UNKNOWN = re.compile(r"\{\{[^}]+\}\}")
GET_LIMIT = 15.0


class Message(msgspec.Struct, frozen=True):
    """A block of the page: a request, an answer, or what the receiver gets."""

    where: str
    to_receiver: bool
    start: list[str]
    headers: dict[str, str]
    body: str


class Placeholders:
    """What stands for the page's placeholders in this run."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = f"127.0.0.1:{receiver.port}"
        self._known: dict[str, str] = {}

    def fill(self, text: str) -> str:
        text = TIME.sub(
            lambda found: self._known.setdefault(found[0], str(now_ms(int(found[1])))),
            text.replace(RECEIVER, self._receiver),
        )
        return UNKNOWN.sub(lambda found: self._known.get(found[0], found[0]), text)

    def match(self, expected: str, actual: str) -> bool:
        """Return whether the actual text is the expected one, and if so keep what stood for words not known before."""
        filled = self.fill(expected)
        pattern = r'([^\s",{}]+)'.join(re.escape(part) for part in UNKNOWN.split(filled))
        if not (found := re.fullmatch(pattern, actual)):
            return False
        pairs = list(zip(UNKNOWN.findall(filled), found.groups(), strict=True))
        new = dict(pairs)
        if any(new[name] != value for name, value in pairs):
            return False
        self._known |= new
        return True


def messages() -> Iterator[Message]:
    for block in BLOCK.finditer(PAGE):
        line = PAGE.count("\n", 0, block.start()) + 1
        head, _, body = block[2].partition("\n\n")
        start, *lines = head.splitlines()
        headers = dict(line.split(": ", 1) for line in lines)
        yield Message(f"docs/api.md, line {line}", block[1] is not None, start.split(" ", 2), headers, body)


async def ask(api: httpx.AsyncClient, request: Message, given: Placeholders) -> httpx.Response:
    method, path, _ = request.start
    content = given.fill(request.body).encode() or None
    return await api.request(method, given.fill(path), headers=request.headers, content=content)


def differs(answer: httpx.Response, expected: Message, given: Placeholders) -> str | None:
    """Return how an answer differs from the page's; None where it does not."""
    _, status, reason = expected.start
    assert reason == HTTPStatus(int(status)).phrase, f"{expected.where}: {status} is not called {reason}"
    actual = {name: answer.headers.get(name) for name in expected.headers}
    if (str(answer.status_code), actual) != (status, expected.headers) or not given.match(expected.body, answer.text):
        return f"{expected.where} shows\n{expected}\nand the answer is\n{answer.status_code} {actual}\n{answer.text}"
    return None


async def compare(api: httpx.AsyncClient, request: Message, expected: Message, given: Placeholders) -> None:
    answer = await ask(api, request, given)
    deadline = asyncio.get_running_loop().time() + GET_LIMIT
    while (wrong := differs(answer, expected, given)) and request.start[0] == "GET":
        assert asyncio.get_running_loop().time() < deadline, wrong
        await asyncio.sleep(0.05)
        answer = await ask(api, request, given)
    assert wrong is None, wrong


def compare_received(receiver: Receiver, expected: Message, given: Placeholders) -> None:
    received = receiver.of(given.fill(expected.headers["timemachine-job-id"]))[-1]
    assert ["POST", received.path, "HTTP/1.1"] == expected.start
    assert given.match(expected.body, received.body.decode()), expected.where
    ours = {
        name: value
        for name, value in received.headers.items()
        if name.startswith(("content-type", "user-agent", "webhook-", "timemachine-"))
    }
    assert ours.keys() == expected.headers.keys(), expected.where
    for name, value in expected.headers.items():
        assert given.match(value, ours[name]), f"{expected.where}: {name}"


async def until_listed(client: Client, route: str) -> None:
    """Wait until the two jobs that wait on a route are all that Temporal's visibility, which lags behind, finds."""
    query = f"ExecutionStatus = 'Running' AND TimemachineRoute = '{route}'"
    await eventually(lambda: client.count_workflows(query), lambda found: found.count == 2)


async def test_the_examples_are_answered_as_the_page_says(
    api: httpx.AsyncClient, worker: None, receiver: Receiver, client: Client
) -> None:
    async def out_of_order(received: Received) -> bytes:
        return response(500, b"out of order") if received.path == "/broken" else await take(received)

    receiver.db, receiver.answer = "", out_of_order  # the page has dbs of its own
    given = Placeholders(receiver)
    page = messages()
    compared = 0
    for message in page:
        if message.to_receiver:
            compare_received(receiver, message, given)
            continue
        if message.start[:2] == ["DELETE", "/route/arena/gameServer"]:
            await until_listed(client, "arena/gameServer")
        await compare(api, message, next(page), given)
        compared += 1
    assert compared > 20


async def test_every_endpoint_has_an_example(api: httpx.AsyncClient) -> None:
    paths = (await api.get("/docs/openapi.json")).json()["paths"]
    shown = [message.start[:2] for message in messages() if not message.to_receiver]

    def is_shown(method: str, template: str) -> bool:
        pattern = re.sub(r"\\{\w+\\}", "[^/?]+", re.escape(template)) + r"(\?.*)?"
        return any(verb == method.upper() and re.fullmatch(pattern, path) for verb, path in shown)

    assert [(method, path) for path, methods in paths.items() for method in methods if not is_shown(method, path)] == []


async def test_the_program_that_moves_a_timeout_runs(
    api: httpx.AsyncClient, api_process: Server, worker: None, receiver: Receiver
) -> None:
    async def refuse(_: Received) -> bytes:
        return response(500)

    receiver.db, receiver.answer = "shop", refuse
    await api.post("/route/shop", json={"id": "expire", "type": "REST", "webhook_url": f"127.0.0.1:{receiver.port}"})
    (program,) = PROGRAM.findall(PAGE)
    program = program.replace("http://127.0.0.1:8080", api_process.url)
    names: dict[str, Any] = {}

    async def set_timeout(job_id: str, trigger_time: int) -> bool:
        job = {"trigger_time": trigger_time, "route": "expire"}
        return await asyncio.to_thread(names["set_timeout"], "/job/shop/carts", job_id, job)

    async def read(job_id: str) -> dict[str, Any]:
        job: dict[str, Any] = (await api.get(f"/job/shop/carts/{job_id}")).json()
        return job

    await asyncio.to_thread(exec, compile(program, "docs/api.md", "exec"), names)
    assert (await read("cart-7"))["state"] == "scheduled"

    later = now_ms(7200)
    assert await asyncio.gather(*(set_timeout("cart-8", later) for _ in range(4))) == [True] * 4
    assert await set_timeout("cart-7", later)
    assert (await read("cart-7"))["trigger_time"] == later

    assert await set_timeout("cart-9", now_ms(0))
    async with asyncio.timeout(20):
        while "last_error" not in await read("cart-9"):
            await asyncio.sleep(0.05)
    assert not await set_timeout("cart-9", later)
    names["api"].close()

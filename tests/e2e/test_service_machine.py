"""All that clients do with jobs, in any order, on a real stack beside a model of what must come of it.

Each step is one request, or a wait for what must follow from it. The model is what the documents promise of single
requests. It has no moments in which something is just happening, so that every answer has exactly one right value.

`MACHINE_STEPS=500 MACHINE_SEEDS=10` makes it long.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import httpx
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from msgspec import Struct

from devstack.stack import Stack
from tests.support.receiver import Received, Receiver, response
from tests.support.service import new_id, now_ms

T = TypeVar("T")

STEPS = int(os.environ.get("MACHINE_STEPS", "25"))
SEEDS = int(os.environ.get("MACHINE_SEEDS", "1"))
EXAMPLES = 3
"""For each seed. The first is always the simplest: one rule again and again."""

LIMIT = 60.0
"""Seconds that something may take to follow. Far more than it does."""

IDS = ["a", "b", "c", "A", "a-b"]
COLLECTIONS = ["one", "One"]
ROUTES = {"taking": "delivered", "refusing": "failed"}
LABELS = ["red", "Red", "50%"]
OPEN_STATES = ("scheduled", "held")
ONCE = {"maximum_attempts": 1}
LOST = ("E014", "E015")
"""Codes of jobs of a batch that may be sent again."""


class Job(Struct, kw_only=True):
    """A job as the model knows it."""

    content: dict[str, Any]
    state: str = "scheduled"
    runs: int = 1
    """Runs of a job with this name, which counts tell apart."""


keys = st.tuples(st.sampled_from(COLLECTIONS), st.sampled_from(IDS))
contents = st.fixed_dictionaries(
    {
        "due_in": st.sampled_from([3600, 7200]),
        "meta": st.sampled_from([None, 1, {"n": 12345678901234567890}]),
        "route": st.sampled_from(list(ROUTES)),
        "labels": st.lists(st.sampled_from(LABELS), unique=True, max_size=2).map(sorted),
    }
)
Key = tuple[str, str]


class Machine(RuleBasedStateMachine):
    """One db of a service, and its model."""

    def __init__(self, api_url: str, receiver: Receiver) -> None:
        super().__init__()
        self.api = httpx.Client(base_url=api_url, timeout=60)
        self.receiver = receiver
        self.db = receiver.db = new_id()
        self.began = now_ms()
        self.jobs: dict[Key, Job] = {}
        self.ended = Counter[str]()
        """Runs that have ended, by their state; those of names that were used again, too."""
        self.requests = Counter[Key]()
        self.paused = False
        for route in ROUTES:
            body = {"id": route, "type": "REST", "webhook_url": f"{receiver.url}/{route}", "retry": ONCE}
            assert self.ask("POST", f"/route/{self.db}", body).status_code == 200

    def teardown(self) -> None:
        """Compare what the receiver has got in all."""
        try:
            self.wait(self.received, lambda: self.requests)
        finally:
            self.api.close()

    def ask(self, method: str, path: str, body: object = None) -> httpx.Response:
        """Return an answer that is none of 429 and 503, as a client gets it that repeats what may be repeated."""
        until = time.monotonic() + LIMIT
        while (answer := self.api.request(method, path, json=body)).status_code in (429, 503):
            assert time.monotonic() < until, answer.text
            time.sleep(float(answer.headers["retry-after"]))
        return answer

    def wait(self, look: Callable[[], T], expected: Callable[[], T]) -> None:
        """Wait until what is seen is what the model has: lists lag a moment."""
        until = time.monotonic() + LIMIT
        while (seen := look()) != expected():
            assert time.monotonic() < until, f"seen {seen}, and not {expected()}"
            time.sleep(0.1)

    def path(self, key: Key) -> str:
        return f"/job/{self.db}/{key[0]}/{key[1]}"

    def body(self, content: dict[str, Any]) -> dict[str, Any]:
        fields = {name: value for name, value in content.items() if name != "due_in"}
        return fields | {"trigger_time": self.began + content["due_in"] * 1000}

    def received(self) -> Counter[Key]:
        return Counter(
            (received.headers["timemachine-collection"], received.job_id)
            for received in self.receiver.received
            if received.headers["timemachine-db"] == self.db
        )

    def result(self, answer: httpx.Response) -> str:
        return str(answer.headers.get("timemachine-job", "ok") if answer.is_success else answer.json()["code"])

    # What the model says

    def is_open(self, key: Key) -> bool:
        return key in self.jobs and self.jobs[key].state in OPEN_STATES

    def is_same(self, key: Key, content: dict[str, Any]) -> bool:
        """Return whether a create with this content is a repetition. A held job that was triggered has another time."""
        job = self.jobs.get(key)
        return job is not None and job.state not in ("cancelled", "held") and job.content == content

    def created(self, key: Key, content: dict[str, Any]) -> str:
        """Return the result of a create, and note it."""
        job = self.jobs.get(key)
        if self.is_same(key, content):
            return "unchanged"
        if job and self.is_open(key):
            return "E005"
        self.jobs[key] = Job(content=content)
        return "created"

    def end(self, key: Key, state: str) -> None:
        self.jobs[key].state = state
        self.ended[state] += 1

    def deliver(self, key: Key) -> None:
        """Note that a job was sent, and wait until that is seen."""
        self.requests[key] += 1
        self.end(key, ROUTES[self.jobs[key].content["route"]])
        self.wait(lambda: self.state(key), lambda: self.jobs[key].state)

    def state(self, key: Key) -> str:
        shown = self.ask("GET", self.path(key)).json()
        return "held" if "held" in shown else str(shown.get("state", shown.get("code")))

    # What clients do

    @rule(key=keys, content=contents)
    def create(self, key: Key, content: dict[str, Any]) -> None:
        """POST."""
        answer = self.ask("POST", f"/job/{self.db}/{key[0]}", self.body(content) | {"id": key[1]})
        assert self.result(answer) == self.created(key, content)

    @rule(collection=st.sampled_from(COLLECTIONS), jobs=st.lists(st.tuples(st.sampled_from(IDS), contents), min_size=1))
    def create_many(self, collection: str, jobs: list[tuple[str, dict[str, Any]]]) -> None:
        """POST of a batch. What was lost of its answer is asked for again."""
        body = [self.body(content) | {"id": job_id} for job_id, content in jobs]
        expected = [self.created((collection, job_id), content) for job_id, content in jobs]
        results = self.batch(collection, body)
        until = time.monotonic() + LIMIT
        while lost := [n for n, result in enumerate(results) if result in LOST]:
            assert time.monotonic() < until, results
            for n, result in zip(lost, self.batch(collection, [body[n] for n in lost]), strict=True):
                results[n] = expected[n] if (result, expected[n]) == ("unchanged", "created") else result
        assert results == expected

    def batch(self, collection: str, body: list[dict[str, Any]]) -> list[str]:
        results = self.ask("POST", f"/batch/{self.db}/{collection}", body).json()["results"]
        assert [result["id"] for result in results] == [job["id"] for job in body]
        return [result.get("code", result["status"]) for result in results]

    @rule(key=keys, content=contents, create=st.booleans())
    def put(self, key: Key, content: dict[str, Any], create: bool) -> None:
        """PUT, also with `create=true`."""
        answer = self.ask("PUT", f"{self.path(key)}?create={str(create).lower()}", self.body(content))
        if self.is_open(key) and not (create and self.is_same(key, content)):
            self.jobs[key] = Job(content=content)
            expected = "changed"
        elif create:
            expected = self.created(key, content)
        else:
            expected = "E006" if key in self.jobs else "E004"
        assert self.result(answer) == expected
        if expected == "changed" and self.paused:
            self.wait(lambda: self.state(key), lambda: "scheduled")

    @rule(key=keys)
    def cancel(self, key: Key) -> None:
        """DELETE."""
        answer = self.ask("DELETE", self.path(key))
        if self.is_open(key):
            self.end(key, "cancelled")
            assert self.result(answer) == "ok"
        else:
            assert self.result(answer) == ("E006" if key in self.jobs else "E004")

    @rule(key=keys)
    def trigger(self, key: Key) -> None:
        """Run now."""
        answer = self.ask("POST", f"{self.path(key)}/trigger")
        if not self.is_open(key):
            assert self.result(answer) == ("E006" if key in self.jobs else "E004")
            return
        assert self.result(answer) == "ok"
        if self.paused:
            self.jobs[key].state = "held"
            self.wait(lambda: self.state(key), lambda: "held")
        else:
            self.deliver(key)

    @rule(key=keys)
    def redeliver(self, key: Key) -> None:
        """Deliver once more."""
        if self.paused:
            return
        answer = self.ask("POST", f"{self.path(key)}/redeliver")
        if key not in self.jobs or self.jobs[key].state not in ROUTES.values():
            assert self.result(answer) == ("E006" if key in self.jobs else "E004")
            return
        assert self.result(answer) == "ok"
        self.requests[key] += 1
        self.ended[self.jobs[key].state] += 1
        self.wait(self.received, lambda: self.requests)
        self.wait(lambda: self.state(key), lambda: self.jobs[key].state)

    @precondition(lambda self: not self.paused)
    @rule()
    def pause(self) -> None:
        """Pause both routes."""
        for route in ROUTES:
            assert self.ask("POST", f"/route/{self.db}/{route}/pause").status_code == 200
        self.paused = True

    @precondition(lambda self: self.paused)
    @rule()
    def resume(self) -> None:
        """Resume both routes: what is held goes out."""
        for route in ROUTES:
            assert self.ask("POST", f"/route/{self.db}/{route}/resume", {"spread": 0}).status_code == 200
        self.paused = False
        for key in [key for key, job in self.jobs.items() if job.state == "held"]:
            self.deliver(key)

    @rule(
        fields=st.fixed_dictionaries(
            {},
            optional={
                "label": st.sampled_from(LABELS),
                "route": st.sampled_from(list(ROUTES)),
                "collection": st.sampled_from(COLLECTIONS),
            },
        ).filter(bool)
    )
    def cancel_many(self, fields: dict[str, str]) -> None:
        """Cancel by a filter: first only counted."""
        meant = [key for key in self.jobs if self.is_open(key) and self.matches(key, fields)]
        path = f"/cancel/{self.db}"
        self.wait(lambda: self.ask("POST", f"{path}?dry_run=true", fields).json()["matched"], lambda: len(meant))
        started = self.ask("POST", path, fields)
        assert started.status_code == 202, started.text
        operation = f"/operation/{self.db}/{started.json()['id']}"
        self.wait(lambda: self.ask("GET", operation).json()["state"], lambda: "done")
        ended = self.ask("GET", operation).json()
        assert (ended["matched"], ended["done"], ended["failed"]) == (len(meant), len(meant), 0)
        for key in meant:
            self.end(key, "cancelled")

    def matches(self, key: Key, fields: dict[str, str]) -> bool:
        content = self.jobs[key].content
        return (
            fields.get("label") in (None, *content["labels"])
            and fields.get("route") in (None, content["route"])
            and fields.get("collection") in (None, key[0])
        )

    # What clients see

    @rule()
    def read(self) -> None:
        """GET of each job."""
        for key, job in self.jobs.items():
            shown = self.ask("GET", self.path(key)).json()
            assert self.state(key) == job.state
            assert (shown["meta"], shown["route"], shown.get("labels", [])) == (
                job.content["meta"],
                job.content["route"],
                job.content["labels"],
            )

    @rule(
        state=st.sampled_from([None, "scheduled", "held", "delivered", "failed", "cancelled"]), limit=st.integers(1, 9)
    )
    def list_jobs(self, state: str | None, limit: int) -> None:
        """The list, page by page: the next due first."""
        self.wait(
            lambda: sorted((job["collection"], job["id"], job["state"]) for job in self.listed(state, limit)),
            lambda: sorted((*key, job.state) for key, job in self.jobs.items() if state in (None, job.state)),
        )
        waiting = [job["trigger_time"] for job in self.listed(state, limit) if job["state"] in OPEN_STATES]
        assert waiting == sorted(waiting)

    def listed(self, state: str | None, limit: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        query = {"limit": limit} | ({"state": state} if state else {})
        while True:
            page = self.api.get(f"/job/{self.db}", params=query)
            if page.status_code in (429, 503):
                continue
            assert page.status_code == 200, page.text
            found += page.json()["jobs"]
            if "next" not in page.json():
                return found
            query = query | {"cursor": page.json()["next"]}


async def answer(received: Received) -> bytes:
    return response(500 if received.path.endswith("/refusing") else 200)


@pytest.mark.timeout(600 + 2 * STEPS)
@pytest.mark.parametrize("number", [pytest.param(number, id=f"seed-{number}") for number in range(SEEDS)])
async def test_everything_is_as_the_model_says(stack: Stack, receiver: Receiver, number: int) -> None:
    receiver.answer = answer

    @seed(number)
    class Seeded(Machine):
        def __init__(self) -> None:
            super().__init__(stack.api_url, receiver)

    loop_settings = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    await asyncio.to_thread(run_state_machine_as_test, Seeded, settings=loop_settings)

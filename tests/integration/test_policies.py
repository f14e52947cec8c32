"""How receivers behave, and what that does to a job: its attempts, the waits between them, and its end."""

import asyncio
import ssl
from itertools import pairwise
from typing import Any

import pytest
import trustme

from tests.support.receiver import Answer, Received, Receiver, response
from tests.support.refusals import BAD_TIME, MALFORMED
from tests.support.scripts import Script, drip, flood, says, scripted
from tests.support.service import ROUTE, Service, a_job, now_ms, refused
from tests.support.waiting import eventually

RETRY = {"initial_interval": 0.3, "backoff_coefficient": 2, "maximum_interval": 4, "maximum_attempts": 3}
TIMEOUT = 1
SLACK = 10
"""Seconds that a busy machine may take on top of a wait."""


def always(status: int, headers: str = "") -> Answer:
    async def answer(_: Received) -> bytes:
        return response(status, b"so", headers)

    return answer


async def never(_: Received) -> bytes:
    await asyncio.Event().wait()
    return b""


async def attempts_of(service: Service, job_id: str) -> list[dict[str, Any]]:
    """Return the log of a job's attempts, the first one first."""
    answer = await service.api.get(f"{service.jobs}/{job_id}/attempts")
    attempts: list[dict[str, Any]] = answer.json()["attempts"]
    return attempts[::-1]


def waits_between(attempts: list[dict[str, Any]]) -> list[float]:
    return [(b["started_at"] - a["started_at"] - a["duration_ms"]) / 1000 for a, b in pairwise(attempts)]


async def change_route(service: Service, url: str, **fields: Any) -> None:
    route = {"type": "REST", "webhook_url": url, "retry": RETRY, "timeout": TIMEOUT} | fields
    answer = await service.api.put(f"/route/{service.db}/{ROUTE}", json=route)
    assert answer.json() == {"status": "ok"}, answer.text


@pytest.mark.parametrize("status", [200, 204])
async def test_a_receiver_that_takes_it(service: Service, receiver: Receiver, status: int) -> None:
    receiver.answer = always(status)
    job_id = await service.create(0)

    job = await service.wait_for_state(job_id, "delivered")

    (attempt,) = await attempts_of(service, job_id)
    assert job["attempts"] == 1
    assert (attempt["status"], attempt["kind"]) == (status, "taken")


PLANNED, SLOW = [0.3, 0.6], [1.2, 2.4]


@pytest.mark.parametrize(
    ("answer", "kind", "waits"),
    [
        (always(301, "location: /elsewhere\r\n"), "refused", PLANNED),
        (always(400), "refused", PLANNED),
        (always(404), "refused", PLANNED),
        (always(500), "refused", PLANNED),
        (always(503), "refused", PLANNED),
        (always(503, "retry-after: 1\r\n"), "refused", [1, 1]),
        (always(429), "refused", SLOW),
        (always(502), "refused", SLOW),
        (always(429, "retry-after: 2\r\n"), "refused", [2, 2]),
        (always(429, "retry-after: 86400\r\n"), "refused", [4, 4]),
        (never, "timeout", SLOW),
    ],
    ids=[
        "301",
        "400",
        "404",
        "500",
        "503",
        "503 with a wait",
        "429",
        "502",
        "429 with a wait",
        "429 with a wait out of bounds",
        "never answers",
    ],
)
async def test_a_receiver_that_does_not(
    service: Service, receiver: Receiver, answer: Answer, kind: str, waits: list[float]
) -> None:
    receiver.answer = answer
    await change_route(service, receiver.url)
    job_id = await service.create(0)

    job = await service.wait_for_state(job_id, "failed")

    attempts = await attempts_of(service, job_id)
    assert job["attempts"] == 3
    assert [(attempt["attempt"], attempt["kind"]) for attempt in attempts] == [(1, kind), (2, kind), (3, kind)]
    assert all(wait <= seen < wait * 1.2 + SLACK for wait, seen in zip(waits, waits_between(attempts), strict=True))
    assert {received.path for received in receiver.of(job_id)} == {"/hook"}
    assert len({received.headers["webhook-id"] for received in receiver.of(job_id)}) == 1


@pytest.mark.parametrize(
    ("url", "kind"),
    [("http://127.0.0.1:1/", "connect"), ("http://no-such-host.invalid/", "dns")],
    ids=["closed port", "unknown host"],
)
async def test_a_receiver_that_cannot_be_reached(service: Service, url: str, kind: str) -> None:
    await change_route(service, url)
    job_id = await service.create(0)

    job = await service.wait_for_state(job_id, "failed")

    assert job["attempts"] == 3
    assert [attempt["kind"] for attempt in await attempts_of(service, job_id)] == [kind] * 3


async def one_byte_a_second(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for byte in b"HTTP/1.1 200 OK\r\n\r\n":
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(1)


@pytest.mark.parametrize(
    ("script", "kind", "waits"),
    [
        (one_byte_a_second, "timeout", SLOW),
        (says("HTTP/1.1 500 -\r\nconnection: close", then=flood), "refused", PLANNED),
        (says("nonsense"), "protocol", PLANNED),
    ],
    ids=["one byte a second", "a failure with an endless body", "no HTTP"],
)
async def test_a_receiver_that_misbehaves(service: Service, script: Script, kind: str, waits: list[float]) -> None:
    async with scripted(script) as url:
        await change_route(service, url)
        job_id = await service.create(0)

        job = await service.wait_for_state(job_id, "failed", limit=40)

    attempts = await attempts_of(service, job_id)
    assert job["attempts"] == 3
    assert [attempt["kind"] for attempt in attempts] == [kind] * 3
    assert all(wait <= seen < wait * 1.2 + SLACK for wait, seen in zip(waits, waits_between(attempts), strict=True))
    assert all(len(attempt["answer"]) <= 1024 for attempt in attempts)


@pytest.mark.parametrize("then", [flood, drip], ids=["never ends", "drips"])
async def test_a_body_does_not_take_a_success_back(service: Service, then: Script) -> None:
    async with scripted(says("HTTP/1.1 200 OK\r\nconnection: close", then=then)) as url:
        await change_route(service, url)
        job_id = await service.create(0)

        assert (await service.wait_for_state(job_id, "delivered"))["attempts"] == 1


async def test_a_receiver_with_another_ones_certificate(service: Service) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("somebody-else.example").configure_cert(tls)
    async with scripted(says("HTTP/1.1 200 OK\r\ncontent-length: 0"), tls) as url:
        await change_route(service, url)
        job_id = await service.create(0)

        job = await service.wait_for_state(job_id, "failed")

    attempts = await attempts_of(service, job_id)
    assert job["attempts"] == 3
    assert [attempt["kind"] for attempt in attempts] == ["tls"] * 3
    assert job["last_error"].startswith("TLS failed")


async def test_gone_ends_the_job_and_disables_the_route(service: Service, receiver: Receiver) -> None:
    receiver.answer = always(410)
    job_id = await service.create(0)

    job = await service.wait_for_state(job_id, "failed")

    assert job["attempts"] == 1
    path = f"/route/{service.db}/{ROUTE}"
    route = (await eventually(lambda: service.api.get(path), lambda answer: answer.json().get("reason"))).json()
    assert (route["state"], route["reason"]) == ("disabled", "the receiver answered 410 Gone")
    assert now_ms(-60) < route["since"] <= now_ms()


async def test_a_job_has_its_own_retry(service: Service, receiver: Receiver) -> None:
    receiver.answer = always(500)
    await change_route(service, receiver.url)
    job_id = await service.create(0, retry={"waits": [0.2]})

    assert (await service.wait_for_state(job_id, "failed"))["attempts"] == 2


async def test_a_job_is_given_up_at_its_deadline(service: Service, receiver: Receiver) -> None:
    receiver.answer = always(500)
    job_id = await service.create(0, deadline=now_ms(3), retry={"waits": [0.1, 60]})

    job = await service.wait_for_state(job_id, "failed")

    assert job["attempts"] == 2
    assert job["last_error"].endswith("the deadline is before the next attempt")


async def test_a_deadline_before_the_trigger_time_is_refused(service: Service) -> None:
    job = a_job(60, deadline=now_ms(59))

    assert refused(await service.api.post(service.jobs, json=job)) == BAD_TIME


async def test_extra_headers_are_sent_and_never_shown(service: Service, receiver: Receiver) -> None:
    await change_route(service, receiver.url, headers={"x-tenant": "seven", "authorization": "Bearer hush"})
    job_id = await service.create(0)

    (received,) = await receiver.wait_for(job_id)

    assert (received.headers["x-tenant"], received.headers["authorization"]) == ("seven", "Bearer hush")
    route = await service.api.get(f"/route/{service.db}/{ROUTE}")
    assert route.json()["headers"] == {"authorization": "***", "x-tenant": "***"}
    assert "hush" not in route.text


@pytest.mark.parametrize(
    "headers",
    [
        {"webhook-id": "mine"},
        {"timemachine-db": "mine"},
        {"content-length": "0"},
        {"host": "elsewhere"},
        {"X-Upper": "1"},
        {"": "1"},
        {"a b": "1"},
        {"x": "a\r\nb: c"},
        {"x": " blank"},
        {"x": "ü"},
        {"x": "y" * 9000},
        {f"x-{n}": "1" for n in range(21)},
        {"x": 1},
        {"x": "***"},
    ],
)
async def test_headers_that_would_say_something_else_are_refused(service: Service, headers: dict[str, Any]) -> None:
    route = {"type": "REST", "webhook_url": "example.org", "headers": headers}

    assert refused(await service.api.put(f"/route/{service.db}/{ROUTE}", json=route)) == MALFORMED


@pytest.mark.parametrize(
    "policy",
    [
        {"retry": {"initial_interval": 0}},
        {"retry": {"backoff_coefficient": 0.5}},
        {"retry": {"maximum_attempts": 0}},
        {"retry": {"maximum_attempts": 1000}},
        {"retry": {"waits": []}},
        {"retry": {"waits": [-1]}},
        {"retry": {"tries": 3}},
        {"retry": 3},
        {"timeout": 0},
        {"timeout": 31},
        {"max_in_flight": 0},
    ],
    ids=str,
)
async def test_policies_out_of_bounds_are_refused(service: Service, policy: dict[str, Any]) -> None:
    route = {"type": "REST", "webhook_url": "example.org"} | policy

    assert refused(await service.api.put(f"/route/{service.db}/{ROUTE}", json=route)) == MALFORMED


async def test_get_shows_the_defaults(service: Service) -> None:
    route = (await service.api.get(f"/route/{service.db}/{ROUTE}")).json()

    assert list(route)[:3] == ["id", "type", "webhook_url"]
    assert route["retry"] == {
        "initial_interval": 5.0,
        "backoff_coefficient": 3.0,
        "maximum_interval": 43200.0,
        "maximum_attempts": 13,
    }
    assert (route["timeout"], route["headers"], route["max_in_flight"]) == (15.0, {}, None)
    assert route["state"] == "active"


async def test_no_more_requests_are_in_flight_than_the_route_allows(service: Service, receiver: Receiver) -> None:
    in_flight = most = 0
    all_created = asyncio.Event()

    async def count(_: Received) -> bytes:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await all_created.wait()
        await asyncio.sleep(0.1)
        in_flight -= 1
        return response(200)

    receiver.answer = count
    await change_route(service, receiver.url, max_in_flight=2, timeout=30)
    job_ids = [await service.create(0) for _ in range(8)]
    await receiver.wait_until(lambda: len(receiver.received) == 2)
    all_created.set()

    await asyncio.gather(*(service.wait_for_state(job_id, "delivered", limit=40) for job_id in job_ids))

    assert most == 2
    assert [len(receiver.of(job_id)) for job_id in job_ids] == [1] * 8


@pytest.mark.parametrize(("before", "after"), [(1, 4), (1, None)], ids=["raised", "taken away"])
async def test_a_changed_limit_counts_while_the_route_is_busy(
    service: Service, receiver: Receiver, before: int, after: int | None
) -> None:
    answered = asyncio.Event()

    async def hold(_: Received) -> bytes:
        await answered.wait()
        return response(200)

    receiver.answer = hold
    await change_route(service, receiver.url, max_in_flight=before, timeout=30)
    job_ids = [await service.create(0) for _ in range(4)]
    await receiver.wait_until(lambda: len(receiver.received) == before)

    await change_route(service, receiver.url, max_in_flight=after, timeout=30)

    await receiver.wait_until(lambda: len(receiver.received) == 4, limit=20)
    answered.set()
    for job_id in job_ids:
        await service.wait_for_state(job_id, "delivered")

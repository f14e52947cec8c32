"""Batches: many jobs in one request, each with the result that a create of its own would have."""

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from functools import partial
from typing import Any

import pytest

from api import batch, concurrency_limit
from api.batch import MAX_JOBS
from tests.integration.test_outages import Fragile, fragile, own_api, own_settings, servers  # noqa: F401 - fixtures
from tests.support.kills import send
from tests.support.receiver import Receiver
from tests.support.refusals import FORBIDDEN_NAME, MALFORMED, NO_SUCH_JOB, TOO_LARGE, WRONG_TYPE
from tests.support.service import Service, a_job, refused
from tests.support.waiting import eventually

NDJSON = {"content-type": "application/x-ndjson"}


def batch_of(service: Service) -> str:
    return f"/batch/{service.db}/c"


def as_lines(jobs: Iterable[Any]) -> bytes:
    return b"".join(json.dumps(job).encode() + b"\n" for job in jobs)


async def send_array(service: Service, jobs: list[Any]) -> list[dict[str, Any]]:
    answer = await service.api.post(batch_of(service), json=jobs)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"results"}
    found: list[dict[str, Any]] = answer.json()["results"]
    return found


async def send_lines(service: Service, body: bytes | AsyncIterator[bytes]) -> list[dict[str, Any]]:
    answer = await service.api.post(batch_of(service), content=body, headers=NDJSON)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == NDJSON["content-type"]
    return [json.loads(line) for line in answer.content.splitlines()]


def statuses(results: list[dict[str, Any]]) -> list[Any]:
    return [result.get("code", result["status"]) for result in results]


async def test_an_array_and_lines_are_created_and_delivered(service: Service, receiver: Receiver) -> None:
    first = [a_job(1, meta=number) for number in range(20)]
    second = [a_job(1, meta=number) for number in range(20)]

    for results, jobs in (
        (await send_array(service, first), first),
        (await send_lines(service, as_lines(second)), second),
    ):
        assert results == [{"id": job["id"], "status": "created"} for job in jobs]
    for job in first + second:
        (received,) = await receiver.wait_for(job["id"])
        assert received.body == str(job["meta"]).encode()


async def test_a_batch_may_be_repeated(service: Service) -> None:
    jobs = [a_job(3600) for _ in range(10)]
    await send_array(service, jobs[:5])

    assert statuses(await send_array(service, jobs)) == ["unchanged"] * 5 + ["created"] * 5
    assert statuses(await send_lines(service, as_lines(jobs))) == ["unchanged"] * 10


async def test_meta_is_kept_byte_for_byte(service: Service, receiver: Receiver) -> None:
    meta = b'{"n": 12345678901234567890.10, "b":1,"a":"\\u00e9"}'
    first, second = (json.dumps(a_job(0)).encode()[:-1] + b', "meta": ' + meta + b"}" for _ in range(2))
    array = await service.api.post(
        batch_of(service), content=b"[" + first + b"]", headers={"content-type": "application/json"}
    )
    results = array.json()["results"] + await send_lines(service, second)

    assert statuses(results) == ["created"] * 2
    for result in results:
        (received,) = await receiver.wait_for(result["id"])
        assert received.body == meta


async def test_each_job_that_is_bad_has_its_own_refusal(service: Service) -> None:
    good = [a_job(3600) for _ in range(3)]
    bad = [
        (a_job(3600, extra=1), "E001"),
        (a_job(3600) | {"trigger_time": "x"}, "E001"),
        (a_job(3600, id="a b"), "E002"),
        (a_job(-3600), "E003"),
        (a_job(3600, route="none"), "E007"),
        (a_job(3600, meta="x" * 300_000), "E011"),
        (a_job(3600, id=good[0]["id"], meta="other"), "E005"),
    ]
    jobs = [good[0], *(job for job, _ in bad[:4]), good[1], *(job for job, _ in bad[4:]), good[2]]
    expected = ["created", *(code for _, code in bad[:4]), "created", *(code for _, code in bad[4:]), "created"]

    for results, created in (
        (await send_array(service, jobs), "created"),
        (await send_lines(service, as_lines(jobs)), "unchanged"),
    ):
        assert statuses(results) == [created if each == "created" else each for each in expected]
        unread = ["E011"] if created == "unchanged" else []  # of a line that is too long, nothing is kept
        assert [result["id"] for result in results] == [
            None if code in unread else job["id"] for job, code in zip(jobs, expected, strict=True)
        ]
        assert {result["status"] for result in results} == {created, "refused"}
        assert all(result["error"] for result in results if "code" in result)


async def test_lines_that_are_no_jobs(service: Service) -> None:
    good = [json.dumps(a_job(3600)).encode() for _ in range(3)]
    lines = [
        *(good[0], b"", b"{", b"  ", b"null", b"[]", b'"\xff"', b"[" * 100_000, good[1] + good[1]),
        *(b'{"id": "\xff"}', b'{"id": 7}', b"x" * 300_000, good[1] + b"\r", good[2][:-1]),
    ]

    results = await send_lines(service, b"\n".join(lines))

    assert statuses(results) == ["created", *["E001"] * 8, "E011", "created", "E001"]
    assert [result["id"] for result in results if "code" in result] == [None] * 10
    assert statuses(await send_lines(service, good[2])) == ["created"]


async def test_the_same_id_twice_is_as_two_creates_one_after_the_other(service: Service) -> None:
    firsts = [a_job(3600, meta="first") for _ in range(8)]
    jobs = [each for job in firsts for each in (job, job, job | {"meta": "second"}, job)]

    results = await send_lines(service, as_lines(jobs))

    assert statuses(results) == ["created", "unchanged", "E005", "unchanged"] * 8
    assert {(await service.find(job["id"]))["meta"] for job in firsts} == {"first"}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", MALFORMED),
        (b"{}", MALFORMED),
        (b'{"id": "x"}', MALFORMED),
        (b"[1", MALFORMED),
        (b"[" * 100_000, MALFORMED),
        (b"[" + b"{}," * MAX_JOBS + b"{}]", TOO_LARGE),
        (b"[" + b"1," * 1_500_000 + b"1]", TOO_LARGE),
    ],
)
async def test_an_array_that_is_none_is_refused_as_a_whole(
    service: Service, body: bytes, code: tuple[int, str]
) -> None:
    assert refused(await service.api.post(batch_of(service), content=body)) == code


async def test_other_bodies_and_names_are_refused_as_a_whole(service: Service) -> None:
    body = as_lines([a_job(3600)])

    async def ask(path: str, **headers: str) -> tuple[int, str]:
        return refused(await service.api.post(path, content=body, headers=headers))

    assert await ask(batch_of(service), **{"content-type": "text/plain"}) == WRONG_TYPE
    assert await ask(batch_of(service), **NDJSON, **{"content-encoding": "gzip"}) == WRONG_TYPE
    assert await ask(f"/batch/{service.db}/a%20b", **NDJSON) == FORBIDDEN_NAME
    assert await ask("/batch/a%20b/c", **NDJSON) == FORBIDDEN_NAME
    empty = await service.api.post(batch_of(service), content=b"\n \n", headers=NDJSON)
    assert refused(empty) == MALFORMED
    assert await send_array(service, []) == []


async def test_after_a_thousand_lines_no_more_is_read(service: Service) -> None:
    sent = 0
    job = json.dumps(a_job(3600, route="none")).encode() + b"\n"

    async def lines() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 5000:
            sent += 1
            yield job

    results = await send_lines(service, lines())

    assert Counter(statuses(results)) == {"E007": MAX_JOBS, "E011": 1}
    assert results[-1]["id"] is None
    assert "1000" in results[-1]["error"]
    assert sent < 2 * MAX_JOBS


async def test_an_array_of_a_thousand(service: Service) -> None:
    assert statuses(await send_array(service, [a_job(3600, route="none")] * MAX_JOBS)) == ["E007"] * MAX_JOBS


async def test_a_line_is_begun_while_the_rest_comes(service: Service) -> None:
    jobs = [a_job(3600) for _ in range(3)]

    async def lines() -> AsyncIterator[bytes]:
        for job in jobs:
            yield as_lines([job])
            await eventually(lambda: service.api.get(f"{service.jobs}/{job['id']}"), lambda found: found.is_success)  # noqa: B023

    assert statuses(await send_lines(service, lines())) == ["created"] * 3


async def test_a_body_that_ends_too_soon_has_results_for_its_whole_lines(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a client sees it that is slow, rather than gone."""
    jobs = [a_job(3600) for _ in range(3)]
    piece_in_time = concurrency_limit._piece_in_time

    async def lines() -> AsyncIterator[bytes]:
        yield as_lines(jobs[:2])
        yield as_lines(jobs[2:])[:-2]
        await asyncio.Event().wait()

    monkeypatch.setattr(concurrency_limit, "_piece_in_time", lambda receive, _: piece_in_time(receive, 0.5))
    results = await send_lines(service, lines())

    assert statuses(results) == ["created", "created", "E001"]
    assert (results[2]["id"], results[2]["error"]) == (None, "the body is cut short")
    assert refused(await service.api.get(f"{service.jobs}/{jobs[2]['id']}")) == NO_SUCH_JOB


async def test_a_first_line_that_never_ends_is_not_waited_for(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though a piece of it comes again and again: it would hold one of the few places for batches, for ever."""
    monkeypatch.setattr(batch, "BODY_LIMIT", 0.2)

    async def blanks() -> AsyncIterator[bytes]:
        while True:
            yield b"\n"
            await asyncio.sleep(0.01)

    answer = await service.api.post(batch_of(service), content=blanks(), headers=NDJSON)

    assert refused(answer) == MALFORMED
    assert answer.json()["error"] == "the body is cut short"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("part", ["postgres", "temporal"])
async def test_what_is_away_in_the_middle_leaves_jobs_unknown_which_may_be_sent_again(
    fragile: Fragile,  # noqa: F811
    part: str,
) -> None:
    await fragile.add_route("http://127.0.0.1:9/", "other")
    # A route that was seen a moment ago needs no Postgres.
    jobs = [a_job(3600, route="hook" if number < 10 else "other") for number in range(30)]

    async def lines() -> AsyncIterator[bytes]:
        yield as_lines(jobs[:10])
        for job in jobs[:10]:  # they are created side by side
            await eventually(partial(fragile.api.get, f"{fragile.jobs}/{job['id']}"), lambda found: found.is_success)
        send(fragile.parts[part], signal.SIGKILL)
        yield as_lines(jobs[10:])

    results = await send_lines(fragile, lines())
    await fragile.parts[part].restart()

    assert statuses(results[:10]) == ["created"] * 10
    assert "E015" in statuses(results[10:])
    assert {result["status"] for result in results if result.get("code") == "E015"} == {"unknown"}
    again = await eventually(lambda: send_array(fragile, jobs), lambda found: "E015" not in statuses(found), limit=60)
    assert set(statuses(again)) <= {"created", "unchanged"}
    assert len(again) == 30

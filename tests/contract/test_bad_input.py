"""Bad input of every kind: refused with the right status and code, with no effect, and with nothing in the log."""

import asyncio
import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.contract.bodies import KIB, chunked, job, route, without
from tests.contract.conftest import WAITING
from tests.contract.server import JSON, Server, parse
from tests.support.cases import each_case
from tests.support.receiver import Receiver
from tests.support.refusals import (
    BAD_TIME,
    BAD_URL,
    FORBIDDEN_NAME,
    MALFORMED,
    NO_SUCH_JOB,
    NO_SUCH_OPERATION,
    NO_SUCH_PATH,
    NO_SUCH_ROUTE,
    TOO_LARGE,
    WRONG_METHOD,
    WRONG_TYPE,
)
from tests.support.service import ROUTE, Service, new_id, now_ms, refused
from tests.support.waiting import eventually

# Each endpoint that takes a body, its path below, and a body that it takes.
TAKES_BODY: list[tuple[str, str, Callable[[], bytes]]] = [
    ("POST", "/job/{db}/c", job),
    ("PUT", "/job/{db}/c/x", job),
    ("POST", "/route/{db}", route),
    ("PUT", f"/route/{{db}}/{ROUTE}", lambda: route(id=ROUTE)),
]
each_endpoint = pytest.mark.parametrize(
    ("method", "path", "good"), TAKES_BODY, ids=[f"{method} {path.split('/')[1]}" for method, path, _ in TAKES_BODY]
)


# --- bodies


@each_endpoint
@each_case(
    "body",
    [
        pytest.param(lambda good: b"", id="empty"),
        pytest.param(lambda good: b" ", id="blank"),
        pytest.param(lambda good: b"null", id="null"),
        pytest.param(lambda good: b"true", id="true"),
        pytest.param(lambda good: b"1", id="number"),
        pytest.param(lambda good: b'"id"', id="string"),
        pytest.param(lambda good: b"[" + good + b"]", id="array"),
        pytest.param(lambda good: b"{}", id="no fields"),
        pytest.param(lambda good: good[:-1], id="cut"),
        pytest.param(lambda good: good + b"x", id="trailing"),
        pytest.param(lambda good: good + good, id="two documents"),
        pytest.param(lambda good: good.replace(b'"', b"'"), id="single quotes"),
        pytest.param(lambda good: good[:-1] + b",}", id="trailing comma"),
        pytest.param(lambda good: b"/**/" + good, id="comment"),
        pytest.param(lambda good: good[:-1] + b',"extra":1}', id="unknown field"),
        pytest.param(lambda good: good.replace(b'"id"', b'"Id"'), id="field in the wrong case"),
        pytest.param(lambda good: good.replace(b'"id": "', b'"id": "\xff'), id="invalid UTF-8"),
        pytest.param(lambda good: good.replace(b'"id": "', b'"id": "\xed\xa0\x80'), id="surrogate in UTF-8"),
        pytest.param(lambda good: good.replace(b'"id": "', b'"id": "\\ud800'), id="unpaired surrogate"),
        pytest.param(lambda good: good.replace(b'"id": "', b'"id": "\x00'), id="NUL"),
        pytest.param(lambda good: b"\xef\xbb\xbf" + good, id="BOM"),
        pytest.param(lambda good: good.decode().encode("utf-16"), id="UTF-16"),
        pytest.param(lambda good: b"id=x&route=hook", id="form"),
        pytest.param(lambda good: good[:-1] + b',"extra":' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="deep"),
        pytest.param(lambda good: b"[" * 100_000, id="100,000 levels"),
        pytest.param(lambda good: b'{"id":' * 40_000, id="40,000 levels of a field"),
    ],
)
async def test_a_body_that_is_malformed(
    refusing: Service, server: Server, method: str, path: str, good: Callable[[], bytes], body: Callable[[bytes], bytes]
) -> None:
    answer = await server.request(method, path.format(db=refusing.db), body(good()))

    assert refused(answer) == MALFORMED


@each_endpoint
async def test_a_body_above_the_cap(
    refusing: Service, server: Server, method: str, path: str, good: Callable[[], bytes]
) -> None:
    answer = await server.request(method, path.format(db=refusing.db), good() + b" " * 300 * KIB)

    assert refused(answer) == TOO_LARGE


@each_case(
    "content_type",
    [
        *("text/plain", "text/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"),
        *("multipart/form-data", "application/msgpack", "application/jsonp", "*/*", "", "json", "\xff", "x" * 5000),
    ],
)
@each_endpoint
async def test_a_content_type_that_is_not_json(
    refusing: Service, server: Server, method: str, path: str, good: Callable[[], bytes], content_type: str
) -> None:
    header = f"content-type: {content_type}\r\n".encode("latin-1")

    assert refused(await server.request(method, path.format(db=refusing.db), good(), header)) == WRONG_TYPE


@each_case("coding", ["gzip", "GZIP", "br", "deflate, identity", "identity, gzip", "x", "zstd"])
@each_endpoint
async def test_a_body_that_is_compressed_or_says_so(
    refusing: Service, server: Server, method: str, path: str, good: Callable[[], bytes], coding: str
) -> None:
    header = JSON + f"content-encoding: {coding}\r\n".encode()
    for body in (good(), gzip.compress(good())):
        answer = await server.request(method, path.format(db=refusing.db), body, header)
        assert refused(answer) == WRONG_TYPE
        assert "content-encoding" in answer.json()["error"]

    twice = JSON + b"content-encoding: identity\r\n" + f"content-encoding: {coding}\r\n".encode()
    assert refused(await server.request(method, path.format(db=refusing.db), good(), twice)) == WRONG_TYPE


@pytest.mark.parametrize("coding", [b"identity", b"Identity", b""])
async def test_a_body_that_says_that_it_is_not_compressed(jobs: Service, server: Server, coding: bytes) -> None:
    header = JSON + b"content-encoding: " + coding + b"\r\n"

    assert (await server.request("POST", jobs.jobs, job(), header)).status_code == 200


@pytest.mark.parametrize(
    "header",
    [b"", JSON, b"content-type: APPLICATION/JSON; charset=utf-8\r\n", b"content-type: application/hal+json\r\n"],
    ids=["none", "json", "with charset", "of the JSON family"],
)
async def test_a_content_type_that_is_json(jobs: Service, server: Server, header: bytes) -> None:
    assert (await server.request("POST", jobs.jobs, job(), header)).status_code == 200


# The bodies that may be left out, and the one of a window: each endpoint's path, and a body that it takes.
SMALL_BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/pause", {"reason": "maintenance"}),
    ("/resume", {"spread": 0}),
    ("/secret/rotate", {"overlap": 1}),
    ("/redeliver", {"since": 0, "until": 1}),
]
each_small_body = pytest.mark.parametrize(("path", "good"), SMALL_BODIES, ids=[path for path, _ in SMALL_BODIES])


@each_small_body
@each_case(
    "body",
    [
        pytest.param(lambda good: b" ", id="blank"),
        pytest.param(lambda good: b"null", id="null"),
        pytest.param(lambda good: b"0", id="number"),
        pytest.param(lambda good: b'""', id="string"),
        pytest.param(lambda good: b"[]", id="array"),
        pytest.param(lambda good: good[:-1], id="cut"),
        pytest.param(lambda good: good + b"x", id="trailing"),
        pytest.param(lambda good: good[:-1] + b',"extra":1}', id="unknown field"),
        pytest.param(lambda good: good[:-1] + b',"a\xff":1}', id="invalid UTF-8"),
        pytest.param(lambda good: good[:-1] + b',"\x00":1}', id="NUL"),
        pytest.param(lambda good: good[:-1] + b',"extra":' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="deep"),
        pytest.param(lambda good: b'{"reason":' * 20_000, id="20,000 levels"),
    ],
)
async def test_a_small_body_that_is_malformed(
    refusing: Service, server: Server, path: str, good: dict[str, Any], body: Callable[[bytes], bytes]
) -> None:
    at = f"/route/{refusing.db}/{ROUTE}"
    before = (await refusing.api.get(at)).json()

    assert refused(await server.request("POST", at + path, body(json.dumps(good).encode()))) == MALFORMED
    assert (await refusing.api.get(at)).json() == before


@each_small_body
async def test_a_small_body_is_held_to_the_same_rules(
    jobs: Service, server: Server, path: str, good: dict[str, Any]
) -> None:
    at, body = f"/route/{jobs.db}/{ROUTE}{path}", json.dumps(good).encode()

    assert refused(await server.request("POST", at, body + b" " * 300 * KIB)) == TOO_LARGE
    assert refused(await server.request("POST", at, body, b"content-type: text/plain\r\n")) == WRONG_TYPE
    assert refused(await server.request("POST", f"/route/{jobs.db}/nowhere{path}", body)) == NO_SUCH_ROUTE
    assert (await server.request("POST", at, body)).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        b"content-type: application/x-www-form-urlencoded\r\n",
        b"content-type: multipart/form-data; boundary=x\r\n",
        b"content-type: text/plain\r\ncontent-encoding: gzip\r\n",
    ],
)
@pytest.mark.parametrize("path", ["/pause", "/resume", "/secret/rotate"])
async def test_a_body_that_is_left_out_has_no_type(jobs: Service, server: Server, path: str, header: bytes) -> None:
    at = f"/route/{jobs.db}/{ROUTE}{path}"

    assert (await server.request("POST", at, b"", header)).status_code == 200
    assert refused(await server.request("POST", at, b"{}", header)) == WRONG_TYPE
    chunks = header + b"transfer-encoding: chunked\r\n"
    empty = f"POST {at} HTTP/1.1\r\nhost: x\r\n".encode() + chunks + b"\r\n0\r\n\r\n"
    assert refused(await server.send(empty)) == MALFORMED


@each_case(
    ("path", "good", "field", "value"),
    [
        ("/job/{db}/c", job, "retry", b'{"waits":[' + b"1," * 100_000 + b"1]}"),
        ("/job/{db}/c", job, "retry", b"[" + b"{}," * 80_000 + b"1]"),
        ("/job/{db}/c", job, "id", b"[" + b"{}," * 80_000 + b"1]"),
        ("/route/{db}", route, "headers", json.dumps({f"x{number}": "" for number in range(20_000)}).encode()),
        ("/route/{db}", route, "headers", b"{" + b'"x":"",' * 30_000 + b'"x":""}'),
        ("/route/{db}/hook/resume", lambda: b'{"spread":1}', "spread", b"[" + b"1," * 100_000 + b"1]"),
    ],
    ids=lambda value: str(value)[:12],
)
async def test_a_field_with_very_many_values(
    refusing: Service, server: Server, path: str, good: Callable[[], bytes], field: str, value: bytes
) -> None:
    answer = await server.request("POST", path.format(db=refusing.db), with_field(good(), field, value))

    assert refused(answer) == MALFORMED
    assert field in answer.json()["error"]


async def test_what_is_sent_is_not_repeated_at_length(refusing: Service, server: Server) -> None:
    answer = await server.request("POST", refusing.jobs, with_field(job(), "f" * 200_000, "1"))

    assert refused(answer) == MALFORMED
    assert len(answer.content) < KIB


# As they are written in JSON: the last ones are no JSON, or beyond a float.
NO_NUMBERS = ["null", "true", '"1"', "[]", "{}", "NaN", "Infinity", "-Infinity", "1e400", "-1e400", "01", "1."]


@each_case(
    ("path", "body"),
    [
        ("/pause", rb'{"reason":"\u0000"}'),
        ("/pause", rb'{"reason":"a\u0000\n"}'),
        ("/pause", rb'{"reason":"\n\u0000"}'),
        ("/pause", b'{"reason":"\x00"}'),
        ("/pause", rb'{"reason":"\ud800"}'),
        ("/pause", b'{"reason":"\xed\xa0\x80"}'),
        ("/pause", json.dumps({"reason": "r" * 201}).encode()),
        *(("/pause", b'{"reason":%s}' % value) for value in (b"null", b"1", b"true", b"[]", b"{}")),
        *(("/resume", f'{{"spread":{value}}}'.encode()) for value in [*NO_NUMBERS, "-0.1", "86400.1", "1" * 400]),
        *(("/secret/rotate", f'{{"overlap":{value}}}'.encode()) for value in [*NO_NUMBERS, "-1", "604801", "1" * 400]),
        *(
            ("/redeliver", f'{{"since":{value}}}'.encode())
            for value in [*NO_NUMBERS, "-1", "0.5", "253402300800000", "9" * 400, "1e3000"]
        ),
        *(
            ("/redeliver", f'{{"since":0,"until":{value}}}'.encode())
            for value in [*NO_NUMBERS, "-1", "0", "0.5", "253402300800000", "9" * 400]
        ),
        ("/redeliver", b"{}"),
        ("/redeliver", b'{"until":1}'),
        ("/redeliver", b'{"since":2,"until":1}'),
        ("/redeliver", b'{"since":4102444800000}'),
    ],
    ids=lambda value: repr(value)[:50],
)
async def test_a_field_of_a_small_body_that_is_wrong(refusing: Service, server: Server, path: str, body: bytes) -> None:
    at = f"/route/{refusing.db}/{ROUTE}"
    before = [(await refusing.api.get(at)).json(), (await refusing.api.get(f"{at}/secret")).json()]

    assert refused(await server.request("POST", at + path, body)) == MALFORMED
    assert [(await refusing.api.get(at)).json(), (await refusing.api.get(f"{at}/secret")).json()] == before


@pytest.mark.parametrize("reason", ["", " ", "\n", "\u007f\ufffe\U0010ffff", "r" * 200, "' OR 1=1 --"], ids=repr)
async def test_an_odd_reason_is_kept(jobs: Service, server: Server, reason: str) -> None:
    at = f"/route/{jobs.db}/{ROUTE}"

    assert (await server.request("POST", f"{at}/pause", json.dumps({"reason": reason}).encode())).status_code == 200
    assert (await jobs.api.get(at)).json().get("reason", "") == reason


# --- policies, of routes and of jobs

BAD_RETRIES: list[str] = [
    *("1", "true", '"5s"', "[]", "[1]", '{"extra":1}', '{"waits":null}', '{"waits":[]}', '{"waits":1}'),
    *('{"waits":"60"}', '{"waits":["60"]}', '{"waits":[null]}', '{"waits":[[60]]}', '{"waits":[0]}', '{"waits":[-1]}'),
    *('{"waits":[604801]}', '{"waits":[1e400]}', '{"waits":[NaN]}', '{"waits":[1e-400]}', '{"waits":[0.09999999]}'),
    *(f'{{"waits":[{",".join(["1"] * 100)}]}}', f'{{"waits":[{"1" * 400}]}}'),
    *(f'{{"initial_interval":{value}}}' for value in [*NO_NUMBERS, "0", "-1", "0.09", "604800.1", "1" * 400]),
    *(f'{{"maximum_interval":{value}}}' for value in [*NO_NUMBERS, "0", "-1", "0.09", "604800.1"]),
    *(f'{{"backoff_coefficient":{value}}}' for value in [*NO_NUMBERS, "0.99", "10.1", "-1"]),
    *(f'{{"maximum_attempts":{value}}}' for value in [*NO_NUMBERS, "0", "-1", "101", "1.5", "9" * 400]),
]


def with_field(body: bytes, field: str, value: str | bytes) -> bytes:
    """Return a body with one more field, spelled as given."""
    spelled = value if isinstance(value, bytes) else value.encode()
    return body[:-1] + b',"%s":%s}' % (field.encode(), spelled)


@each_case("retry", BAD_RETRIES, ids=lambda value: value[:50])
async def test_a_retry_that_is_refused(refusing: Service, retry: str) -> None:
    for method, path, body in [
        ("POST", refusing.jobs, job("new")),
        ("PUT", f"{refusing.jobs}/{WAITING}", job(WAITING)),
        ("POST", f"/route/{refusing.db}", route()),
        ("PUT", f"/route/{refusing.db}/{ROUTE}", route(id=ROUTE)),
    ]:
        answer = await refusing.api.request(method, path, content=with_field(body, "retry", retry))
        assert refused(answer) == MALFORMED, (method, path)

    assert refused(await refusing.api.get(f"{refusing.jobs}/new")) == NO_SUCH_JOB
    assert refused(await refusing.api.get(f"/route/{refusing.db}/r")) == NO_SUCH_ROUTE


@each_case(
    ("field", "value"),
    [
        ("retry", "null"),
        *(("timeout", value) for value in [*NO_NUMBERS[1:], "0", "0.09", "-1", "30.1", "1" * 400]),
        *(("max_in_flight", value) for value in [*NO_NUMBERS[1:], "0", "-1", "10001", "1.5", "9" * 400]),
        *(("headers", value) for value in ("null", "1", "true", '"x: y"', "[]", '[["x","y"]]')),
        *(("headers", f'{{"x":{value}}}') for value in ("null", "1", "true", "[]", "{}")),
        *(
            ("headers", json.dumps({name: "1"}))
            for name in ("", "X", "x y", "x:", "x\0", "x\r\ny", "\u00e9", "x" * 129)
        ),
        *(("headers", json.dumps({name: "1"})) for name in ("host", "content-type", "webhook-id", "timemachine-x")),
        *(("headers", json.dumps({"x": value})) for value in ("\0", "a\0", "a\r\nb: c", "a\n", " a", "a ", "\u00e9")),
        ("headers", b'{"x":"\xff"}'),
        ("headers", rb'{"x":"\ud800"}'),
        ("headers", json.dumps({"x": "v" * 8192})),
        ("headers", json.dumps({f"x{number}": "1" for number in range(21)})),
        *((field, '"active"') for field in ("state", "since", "reason", "header_names")),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_a_policy_of_a_route_that_is_refused(refusing: Service, field: str, value: str | bytes) -> None:
    path = f"/route/{refusing.db}/{ROUTE}"
    before = (await refusing.api.get(path)).json()

    created = await refusing.api.post(f"/route/{refusing.db}", content=with_field(route(), field, value))
    changed = await refusing.api.put(path, content=with_field(route(id=ROUTE), field, value))

    assert refused(created) == refused(changed) == MALFORMED
    assert refused(await refusing.api.get(f"/route/{refusing.db}/r")) == NO_SUCH_ROUTE
    assert (await refusing.api.get(path)).json() == before


# --- what lists are asked for


PAGED = [
    *("limit=0", "limit=-1", "limit=201", "limit=x", "limit=", "limit=1.5", "limit=1e400", "limit=NaN", "limit=%00"),
    *("limit=" + "9" * 400, "cursor=", "cursor=x", "cursor=%00", "cursor=%ff", "cursor=gA", "cursor=%F0%9F%98%80"),
    *("cursor=" + "A" * 4096, "cursor=" + "A" * 4097, "cursor=kaEA", "cursor=kaNhAGI", "cursor=oQA"),
    *("limit=" + "9" * 300 + "x", "limit=" + "9" * 4301),
]
WINDOWED = [
    *("kind=", "kind=x", "kind=TAKEN", "kind=%00", "kind=refused", "since=-1", "since=x", "since=1.5", "until=-1"),
    *("since=253402300800000", "since=" + "9" * 400, "until=", "until=253402300800000", "until=%00"),
    *("since=" + "9" * 300 + "x", "until=" + "9" * 4301),
]


FILTERED = [
    *("state=", "state=x", "state=Scheduled", "state=delivering", "state=%00", "label=", "label=%20a", "label=a%20"),
    *("label=%00", "label=%27", "label=%22", "label=%5C", "label=%E2%99%A5%E2%99%A1", "label=" + "x" * 65),
    *("due_from=-1", "due_from=x", "due_from=1.5", "due_from=1795429472", "due_to=1795429472", "due_to=", "due_to=%00"),
    *("due_to=253402300800000", "due_from=" + "9" * 400, "due_from=2&due_to=1", "due_from=2&due_to=2"),
]


@each_case(
    ("path", "queries"),
    [
        pytest.param("/job/{db}", PAGED + FILTERED, id="jobs"),
        pytest.param("/job/{db}/c", PAGED + FILTERED, id="jobs of a collection"),
        pytest.param("/count/{db}", [*FILTERED, "id_prefix=a"], id="counts"),
        pytest.param("/route/{db}", PAGED, id="routes"),
        pytest.param("/job/{db}/c/{job_id}/attempts", PAGED, id="job's attempts"),
        pytest.param("/route/{db}/hook/attempts", PAGED + WINDOWED, id="route's attempts"),
        pytest.param("/failed/{db}", PAGED, id="failed"),
    ],
)
async def test_a_parameter_of_a_list_that_is_wrong(
    refusing: Service, server: Server, path: str, queries: list[str]
) -> None:
    listed = path.format(db=refusing.db, job_id=WAITING)

    assert (await server.request("GET", listed)).status_code == 200
    for query in queries:
        assert refused(await server.request("GET", f"{listed}?{query}")) == MALFORMED, query


@each_case("name", ["", "%00", "%ff", "a%20b", "'", "%27%20OR%20%27%27=%27", "a/b", "..", "r" * 65])
async def test_a_name_in_a_query_that_is_not_allowed(refusing: Service, server: Server, name: str) -> None:
    paths = {"/failed": ("route", "collection"), "/job": ("route", "created_by"), "/count": ("route", "collection")}
    for path, fields in paths.items():
        for field in fields:
            assert refused(await server.request("GET", f"{path}/{refusing.db}?{field}={name}")) == FORBIDDEN_NAME
    if len(name) <= 64:
        assert refused(await server.request("GET", f"/job/{refusing.db}/c?id_prefix={name}")) == FORBIDDEN_NAME


async def test_of_a_parameter_that_is_given_twice_the_last_counts(refusing: Service, server: Server) -> None:
    listed = f"/job/{refusing.db}"

    assert (await server.request("GET", f"{listed}?limit=0&limit=1&other=1")).status_code == 200
    assert refused(await server.request("GET", f"{listed}?limit=1&limit=0")) == MALFORMED


# --- fields of a job


@each_case(
    ("fields", "expected"),
    [
        ({"id": None}, MALFORMED),
        ({"id": 1}, MALFORMED),
        ({"id": True}, MALFORMED),
        ({"id": ["x"]}, MALFORMED),
        ({"id": {"x": 1}}, MALFORMED),
        ({"route": None}, MALFORMED),
        ({"route": 1}, MALFORMED),
        ({"route": [ROUTE]}, MALFORMED),
        ({"trigger_time": None}, MALFORMED),
        ({"trigger_time": True}, MALFORMED),
        ({"trigger_time": []}, MALFORMED),
        ({"trigger_time": ""}, MALFORMED),
        ({"trigger_time": "4102444800000"}, MALFORMED),
        ({"trigger_time": "2100-01-01T00:00:00Z"}, MALFORMED),
        ({"trigger_time": 4102444800000.0}, MALFORMED),
        ({"trigger_time": 4102444800000.5}, MALFORMED),
        ({"trigger_time": 1e300}, MALFORMED),
        ({"trigger_time": -1}, BAD_TIME),
        ({"trigger_time": 0}, BAD_TIME),
        ({"trigger_time": 1_700_000_000}, BAD_TIME),
        ({"trigger_time": 9_999_999_999_999}, BAD_TIME),
        ({"trigger_time": 1_700_000_000_000_000}, BAD_TIME),
        ({"trigger_time": 2**63}, BAD_TIME),
        ({"trigger_time": -(2**63) - 1}, BAD_TIME),
        ({"trigger_time": 2**64}, BAD_TIME),
        ({"trigger_time": 10**400}, BAD_TIME),
        ({"deadline": True}, MALFORMED),
        ({"deadline": []}, MALFORMED),
        ({"deadline": ""}, MALFORMED),
        ({"deadline": "4102444800000"}, MALFORMED),
        ({"deadline": 4102444800000.0}, MALFORMED),
        ({"deadline": 1e300}, MALFORMED),
        ({"deadline": -1}, BAD_TIME),
        ({"deadline": 0}, BAD_TIME),
        ({"deadline": 1_700_000_000}, BAD_TIME),
        ({"deadline": 5_000_000_000}, BAD_TIME),
        ({"trigger_time": 4_102_444_800_000, "deadline": 4_102_444_800_000}, BAD_TIME),
        ({"trigger_time": 4_102_444_800_000, "deadline": 4_102_444_799_999}, BAD_TIME),
        ({"deadline": 9_999_999_999_999}, BAD_TIME),
        ({"deadline": 2**63}, BAD_TIME),
        ({"deadline": 2**64}, BAD_TIME),
        ({"deadline": 10**400}, BAD_TIME),
        ({"route": "nowhere"}, NO_SUCH_ROUTE),
        ({"route": "a/b"}, FORBIDDEN_NAME),
        ({"route": ""}, FORBIDDEN_NAME),
        ({"route": "r" * 65}, FORBIDDEN_NAME),
        ({"type": "REST"}, MALFORMED),
        ({"db": "other"}, MALFORMED),
        ({"state": "delivered"}, MALFORMED),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else value[1],
)
async def test_a_field_that_is_wrong_creates_and_changes_nothing(
    refusing: Service, fields: dict[str, Any], expected: tuple[int, str]
) -> None:
    before = await refusing.find(WAITING)

    created = await refusing.api.post(refusing.jobs, content=job("new", **fields))
    changed = await refusing.api.put(f"{refusing.jobs}/{WAITING}", content=job(**{"id": WAITING} | fields))

    assert refused(created) == expected
    assert refused(changed) == expected
    assert refused(await refusing.api.get(f"{refusing.jobs}/new")) == NO_SUCH_JOB
    assert await refusing.find(WAITING) == before


@each_case("field", ["id", "trigger_time", "route"])
async def test_a_field_that_is_missing_is_named(refusing: Service, field: str) -> None:
    answer = await refusing.api.post(refusing.jobs, content=without(job(), field))

    assert refused(answer) == MALFORMED
    assert f"`{field}`" in answer.json()["error"]


async def test_a_time_that_looks_like_seconds_is_told_so(refusing: Service) -> None:
    answer = await refusing.api.post(refusing.jobs, content=job(trigger_time=now_ms(3600) // 1000))

    assert refused(answer) == BAD_TIME
    assert "seconds" in answer.json()["error"]


async def test_a_deadline_that_is_past_is_refused_though_the_job_would_be_due_now(refusing: Service) -> None:
    times: dict[str, Any] = {"trigger_time": now_ms(-30), "deadline": now_ms(-20)}

    for answer in (
        await refusing.api.post(refusing.jobs, content=job("new", **times)),
        await refusing.api.put(f"{refusing.jobs}/{WAITING}", content=job(WAITING, **times)),
    ):
        assert refused(answer) == BAD_TIME
        assert answer.json()["error"] == "deadline: it is past already"
    assert refused(await refusing.api.get(f"{refusing.jobs}/new")) == NO_SUCH_JOB
    assert (await refusing.find(WAITING))["state"] == "scheduled"


async def test_a_create_is_repeated_after_its_deadline(jobs: Service, receiver: Receiver) -> None:
    body = job(trigger_time=now_ms(), deadline=now_ms(2))
    assert (await jobs.api.post(jobs.jobs, content=body)).status_code == 200
    await jobs.wait_for_state("x", "delivered")
    async with asyncio.timeout(10):
        while now_ms() <= json.loads(body)["deadline"]:
            await asyncio.sleep(0.1)

    assert (await jobs.api.post(jobs.jobs, content=body)).status_code == 200
    assert len(await receiver.wait_for("x")) == 1


async def test_a_deadline_that_looks_like_seconds_is_told_so(refusing: Service) -> None:
    answer = await refusing.api.post(refusing.jobs, content=job(deadline=now_ms(7200) // 1000))

    assert refused(answer) == BAD_TIME
    assert answer.json()["error"] == "deadline: this looks like seconds; it must be in milliseconds since the epoch"


@each_case("query", ["since=1795429472", "until=1795429472", "since=0&until=1795429472&kind=taken"])
async def test_a_parameter_that_looks_like_seconds_is_told_so(refusing: Service, server: Server, query: str) -> None:
    answer = await server.request("GET", f"/route/{refusing.db}/{ROUTE}/attempts?{query}")

    assert refused(answer) == MALFORMED
    assert "looks like seconds" in answer.json()["error"]


@each_case("field", ["trigger_time", "deadline"])
async def test_a_date_is_told_its_number(refusing: Service, field: str) -> None:
    date: dict[str, Any] = {field: "2100-01-01T00:00:00Z"}
    answer = await refusing.api.post(refusing.jobs, content=job(**date))

    assert refused(answer) == MALFORMED
    assert answer.json()["error"] == (
        f"{field}: it must be an integer, in milliseconds since the epoch; 2100-01-01T00:00:00+00:00 is 4102444800000"
    )


async def test_a_date_in_a_query_is_told_its_number(refusing: Service, server: Server) -> None:
    answer = await server.request("GET", f"/route/{refusing.db}/{ROUTE}/attempts?since=2100-01-01T00:00:00Z")

    assert refused(answer) == MALFORMED
    assert answer.json()["error"].endswith("2100-01-01T00:00:00+00:00 is 4102444800000")


@each_case("kind", ["rest", "Rest", "", "GRPC", 1, None, ["REST"]])
async def test_a_type_that_is_none_is_told_what_it_must_be(refusing: Service, kind: object) -> None:
    answer = await refusing.api.post(f"/route/{refusing.db}", content=route(type=kind))

    assert refused(answer) == MALFORMED
    assert answer.json()["error"] == 'type: it must be "REST"'


async def test_the_last_of_two_equal_fields_counts(jobs: Service) -> None:
    twice = job("first")[:-1] + b',"id":"second","meta":2}'

    assert (await jobs.api.post(jobs.jobs, content=twice)).status_code == 200
    assert (await jobs.find("second"))["meta"] == 2
    assert refused(await jobs.api.get(f"{jobs.jobs}/first")) == NO_SUCH_JOB


# --- meta


@each_case(
    ("meta", "expected"),
    [
        pytest.param(b'"' + b"x" * 257 * KIB + b'"', TOO_LARGE, id="257 KiB"),
        pytest.param(b'"' + b"x" * (256 * KIB - 1) + b'"', TOO_LARGE, id="a byte too long"),
        pytest.param(b"1" * (256 * KIB + 1), TOO_LARGE, id="a digit too long"),
        pytest.param(b"[" * 129 + b"]" * 129, MALFORMED, id="129 levels"),
        pytest.param(b"[" * 200 + b"]" * 200, MALFORMED, id="200 levels"),
        pytest.param(b'{"a":' * 200 + b"1" + b"}" * 200, MALFORMED, id="200 levels of objects"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, MALFORMED, id="100,000 levels"),
        pytest.param(b"[" * 100_000, MALFORMED, id="100,000 open"),
        pytest.param(b'"\x00"', MALFORMED, id="NUL"),
        pytest.param(b'"\x1f"', MALFORMED, id="control character"),
        pytest.param(b'"\n"', MALFORMED, id="newline in a string"),
        pytest.param(b'"\xff"', MALFORMED, id="invalid UTF-8"),
        pytest.param(b'"\xed\xa0\x80"', MALFORMED, id="surrogate in UTF-8"),
        pytest.param(b'"\xc0\xaf"', MALFORMED, id="overlong UTF-8"),
        pytest.param(b'"\xf4\x90\x80\x80"', MALFORMED, id="beyond Unicode"),
        pytest.param(rb'"\ud800"', MALFORMED, id="unpaired high surrogate"),
        pytest.param(rb'"\udc00"', MALFORMED, id="unpaired low surrogate"),
        pytest.param(rb'"\ud83d\u0041"', MALFORMED, id="half a pair"),
        pytest.param(rb'{"\ud800":1}', MALFORMED, id="unpaired surrogate in a key"),
        pytest.param(rb'"\x41"', MALFORMED, id="unknown escape"),
        pytest.param(rb'"\u12"', MALFORMED, id="short escape"),
        pytest.param(b"NaN", MALFORMED, id="NaN"),
        pytest.param(b"Infinity", MALFORMED, id="Infinity"),
        pytest.param(b"-", MALFORMED, id="minus"),
        pytest.param(b"01", MALFORMED, id="leading zero"),
        pytest.param(b"1.", MALFORMED, id="no decimals"),
        pytest.param(b"0x1", MALFORMED, id="hexadecimal"),
        pytest.param(b"undefined", MALFORMED, id="undefined"),
        pytest.param(b"[1,]", MALFORMED, id="trailing comma"),
        pytest.param(b"{1:1}", MALFORMED, id="key without quotes"),
        pytest.param(b"", MALFORMED, id="nothing"),
    ],
)
async def test_a_meta_that_is_refused(refusing: Service, meta: bytes, expected: tuple[int, str]) -> None:
    assert refused(await refusing.api.post(refusing.jobs, content=job(meta=meta))) == expected
    assert refused(await refusing.api.get(f"{refusing.jobs}/x")) == NO_SUCH_JOB


@pytest.mark.parametrize(
    "meta",
    [
        pytest.param(rb'"\u0000"', id="escaped NUL"),
        pytest.param(rb'"\ud83d\ude00\/\u00E9"', id="escapes"),
        pytest.param('"\u00e9\U0001f600\u2028\u007f"'.encode(), id="unicode"),
        pytest.param(b"-0", id="minus zero"),
        pytest.param(b"1" * 5000, id="5,000 digits"),
        pytest.param(b"-1e999", id="beyond a float"),
        pytest.param(b"1e" + b"9" * 400, id="huge exponent"),
        pytest.param(b"1.10000000000000000000000001", id="decimals"),
        pytest.param(b'{"b":1,"a":2,"b":3,"":4}', id="equal and empty keys"),
        pytest.param(b'{ "a" :\r\n\t[ 1 , 2 ] }', id="white space"),
        pytest.param(b'"' + b"x" * (256 * KIB - 2) + b'"', id="256 KiB"),
        pytest.param(b"[" * 128 + b"]" * 128, id="128 levels"),
        pytest.param(b'["' + b"[" * 500 + rb'\"]{"]', id="brackets in a string"),
        pytest.param(b"[" + b"[]," * 20_000 + b"{}]", id="wide"),
    ],
)
async def test_an_odd_meta_is_shown_and_delivered_unchanged(jobs: Service, receiver: Receiver, meta: bytes) -> None:
    job_id = new_id()

    created = await jobs.api.post(jobs.jobs, content=job(job_id, meta=b"0"))
    changed = await jobs.api.put(f"{jobs.jobs}/{job_id}", content=job(job_id, meta=meta))
    shown = await jobs.api.get(f"{jobs.jobs}/{job_id}")
    due = await jobs.api.put(f"{jobs.jobs}/{job_id}", content=job(job_id, meta=meta, trigger_time=now_ms()))

    assert [answer.status_code for answer in (created, changed, due)] == [200, 200, 200]
    assert b'"meta":' + meta + b',"route"' in shown.content
    (received,) = await receiver.wait_for(job_id)
    assert received.body == meta


# --- names

# As written in a path, where they are decoded once.
BAD_NAMES = [
    pytest.param(name, id=name[:12])
    for name in (
        *(".", "..", "%2e", "%2e%2e", ".%2E", "%20", "a%20b", "a%0d%0ab", "%00", "a%00", "%0a", "a%0A", "%7f"),
        *("%C3%A9", "%F0%9F%98%80", "%ff", "%E2%80%8B", "a%3Fb", "a%23b", "a%25", "%252f", "a%5Cb", "a\\b", "a;b"),
        *("a,b", "a&b=c", "(a)", "{a}", "<a>", "'a'", '"a"', "*", "%", "%zz", "a" * 10_000),
        *("a%2Fb", "a%2fb", "%2F", "%2F..%2F", "..%2f..%2fetc"),
    )
]
PATHS = [
    pytest.param("/job/{}/c/x", id="db"),
    pytest.param("/job/d/{}/x", id="collection"),
    pytest.param("/job/d/c/{}", id="job"),
    pytest.param("/route/{}/x", id="db of a route"),
    pytest.param("/route/d/{}", id="route"),
]
# With the one method that they take.
MORE_PATHS = [
    *(("GET", path) for path in ("/failed/{}", "/job/{}/c/x/attempts", "/job/d/{}/x/attempts", "/job/d/c/{}/attempts")),
    *(("GET", path) for path in ("/route/{}/r/attempts", "/route/d/{}/attempts", "/route/{}/r/secret")),
    *(("GET", path) for path in ("/route/d/{}/secret", "/route/d/{}/redeliver/x", "/route/d/r/redeliver/{}")),
    *(("POST", path) for path in ("/job/{}/c/x/redeliver", "/job/d/{}/x/redeliver", "/job/d/c/{}/redeliver")),
    *(
        ("POST", path)
        for path in ("/route/{}/r/pause", "/route/d/{}/pause", "/route/{}/r/resume", "/route/d/{}/resume")
    ),
    *(("POST", path) for path in ("/route/{}/r/secret/rotate", "/route/d/{}/secret/rotate")),
    *(("GET", path) for path in ("/operation/{}", "/operation/{}/x", "/operation/d/{}")),
    *(("DELETE", path) for path in ("/operation/{}/x", "/operation/d/{}")),
]


@each_case("path", PATHS)
@each_case("name", BAD_NAMES)
async def test_a_name_in_a_path_that_is_not_allowed(server: Server, path: str, name: str) -> None:
    for method in ("GET", "DELETE"):
        assert refused(await server.request(method, path.format(name))) == FORBIDDEN_NAME


@each_case("name", BAD_NAMES)
async def test_a_name_in_a_longer_path_that_is_not_allowed(server: Server, name: str) -> None:
    for method, path in MORE_PATHS:
        assert refused(await server.request(method, path.format(name))) == FORBIDDEN_NAME, path
    assert (
        refused(await server.request("POST", f"/route/d/{name}/redeliver", b'{"since":0,"until":1}')) == FORBIDDEN_NAME
    )
    assert refused(await server.request("POST", f"/cancel/{name}", b'{"label":"x"}')) == FORBIDDEN_NAME


async def test_what_is_not_there_is_told_so(refusing: Service, server: Server) -> None:
    missing = f"/route/{refusing.db}/nowhere"
    for method, path, expected in [
        ("GET", f"{missing}/attempts", NO_SUCH_ROUTE),
        ("GET", f"{missing}/secret", NO_SUCH_ROUTE),
        ("POST", f"{missing}/pause", NO_SUCH_ROUTE),
        ("POST", f"{missing}/resume", NO_SUCH_ROUTE),
        ("POST", f"{missing}/secret/rotate", NO_SUCH_ROUTE),
        ("GET", f"/route/{refusing.db}/{ROUTE}/redeliver/0-1", NO_SUCH_OPERATION),
        ("GET", f"/operation/{refusing.db}/nothing", NO_SUCH_OPERATION),
        ("DELETE", f"/operation/{refusing.db}/nothing", NO_SUCH_OPERATION),
        ("GET", f"{refusing.jobs}/nothing/attempts", NO_SUCH_JOB),
        ("POST", f"{refusing.jobs}/nothing/redeliver", NO_SUCH_JOB),
    ]:
        assert refused(await server.request(method, path)) == expected, path


@each_case("name", BAD_NAMES)
async def test_nothing_is_created_or_changed_under_a_name_that_is_not_allowed(
    server: Server, jobs: Service, name: str
) -> None:
    for method, path, body in [
        ("POST", f"/job/{name}/c", job()),
        ("POST", f"/job/{jobs.db}/{name}", job()),
        ("PUT", f"/job/{jobs.db}/c/{name}", without(job(), "id")),
        ("POST", f"/route/{name}", route()),
        ("PUT", f"/route/{jobs.db}/{name}", without(route(), "id")),
    ]:
        assert refused(await server.request(method, path, body)) == FORBIDDEN_NAME


@pytest.mark.parametrize("path", ["/job//c/x", "/job/d//x", "/job/d/c//x", "//job/d/c/x", "/route//x", "/route/d//x"])
async def test_an_empty_name_is_not_skipped(server: Server, path: str) -> None:
    for method in ("GET", "DELETE"):
        assert refused(await server.request(method, path)) == FORBIDDEN_NAME


@each_case(
    "name",
    [
        *("", ".", "..", "a/b", "/", "a b", " a", "a\n", "a\r\nx: y", "\0", "a\0", "\u00e9", "\u212a", "\u2024"),
        *("a\u200b", "%2F", "a%00", "a\\b", "a?b", "a#b", "a" * 121, "a" * 10_000),
    ],
    ids=lambda name: repr(name)[:12],
)
async def test_a_name_in_a_body_that_is_not_allowed(refusing: Service, name: str) -> None:
    assert refused(await refusing.api.post(refusing.jobs, content=job(name))) == FORBIDDEN_NAME
    assert refused(await refusing.api.post(f"/route/{refusing.db}", content=route(id=name))) == FORBIDDEN_NAME


async def test_the_longest_names_with_every_character_work(server: Server, jobs: Service, receiver: Receiver) -> None:
    every = "ABCXYZabcxyz019_-.:~@+"
    db, collection, name = (every * 3)[:64], ("..." + every * 3)[:64], (every * 6)[:120]
    kept, receiver.db = {"id": db, "type": "REST", "webhook_url": receiver.url}, db

    assert (await server.request("POST", f"/route/{db}", json.dumps(kept).encode())).json() == {"status": "ok"}
    created = await server.request("POST", f"/job/{db}/{collection}", job(name, route=db, trigger_time=now_ms()))
    assert created.json() == {"status": "ok"}

    (received,) = await receiver.wait_for(name)
    sent = (received.headers["timemachine-db"], received.headers["timemachine-collection"])
    assert sent == (db, collection)
    assert (await server.request("GET", f"/job/{db}/{collection}/{name}")).json()["id"] == name
    escaped = "".join(f"%{ord(character):02x}" for character in name)
    assert (await server.request("GET", f"/job/{db}/{collection}/{escaped}")).json()["id"] == name
    assert (await server.request("DELETE", f"/route/{db}/{db}?force=true")).json() == {"status": "ok"}


# --- routes


@each_case(
    ("fields", "expected"),
    [
        ({"id": 1}, MALFORMED),
        ({"id": None}, MALFORMED),
        ({"type": None}, MALFORMED),
        ({"type": "rest"}, MALFORMED),
        ({"type": "GRPC"}, MALFORMED),
        ({"type": ["REST"]}, MALFORMED),
        ({"webhook_url": None}, MALFORMED),
        ({"webhook_url": 1}, MALFORMED),
        ({"webhook_url": ["example.org"]}, MALFORMED),
        ({"secret": "s"}, MALFORMED),
        *(
            ({"webhook_url": url}, BAD_URL)
            for url in (
                # odd schemes
                *("ftp://example.org", "file:///etc/passwd", "javascript:alert(1)", "gopher://example.org", "://a"),
                *("http:/example.org", "http:example.org", "https:", "mailto:a@example.org", "unix:/run/x.sock"),
                *("data:text/plain,x", "ws://example.org", "http+unix://a", "http s://example.org", "//example.org"),
                # user info
                *("user@example.org", "https://user:pass@example.org", "https://@example.org", "a@b@example.org"),
                *("https://example.org@evil.org", "https://example.org:80@evil.org", "https://:@example.org"),
                # ports
                *("example.org:0", "example.org:65536", "example.org:-1", "example.org:", "example.org:x"),
                *("example.org:80:80", "example.org:+80", "example.org:8_0", "example.org:" + "9" * 50),
                # hosts
                *("", "/", "?", "https://", "https:///hook", "https://?x", ":80", ".", "..", "a..b", ".org", "-a.org"),
                *("a" * 64 + ".org", "a." * 130 + "org", "ex%61mple.org", "example.org%00", "a,b", "a;b", "a|b", "*"),
                *("[::1", "::1", "[]", "[::1]x", "[::1]:x", "[v1.a]", "a[::1]", "evil[v1.a]", "[1.2.3.4]"),
                *("[fe80::1%25eth0]", "[:::1]", "[::1]]", "256.1.1.1", "127.1", "0x7f.1", "2130706433", "010.0.0.1"),
                *("0x7f000001", "1.2.3.4.5", "127.0.0.1."),
                # characters
                *("example.org/a b", " example.org", "example.org ", "example.org\n", "exa\tmple.org", "example.org\0"),
                *("https://example.org\\@evil.org", "\\\\example.org", "ex\u00e4mple.org", "example.org/\u00e4"),
                *("example.org\r\nx: y", "\uff45xample.org", "example\u3002org", "example.org/\x7f"),
                # the rest
                *("example.org#x", "example.org/a#b", "example.org/?a#b", "example.org/" + "a" * 2048),
            )
        ),
    ],
    ids=lambda value: repr(value)[:60] if isinstance(value, dict) else value[1],
)
async def test_a_field_of_a_route_that_is_wrong(
    refusing: Service, fields: dict[str, Any], expected: tuple[int, str]
) -> None:
    path = f"/route/{refusing.db}/{ROUTE}"
    before = (await refusing.api.get(path)).json()

    created = await refusing.api.post(f"/route/{refusing.db}", content=route(**fields))
    changed = await refusing.api.put(path, content=route(**{"id": ROUTE} | fields))

    assert refused(created) == expected
    assert refused(changed) == expected
    assert refused(await refusing.api.get(f"/route/{refusing.db}/r")) == NO_SUCH_ROUTE
    assert (await refusing.api.get(path)).json() == before


@pytest.mark.parametrize(
    "url",
    [
        *("example.org", "example.org:8080/a?b=c&d=%20", "http://example.org", "HTTPS://EXAMPLE.ORG/", "a.b?u=//@:"),
        *("https://a_b-c.org.", "127.0.0.1:1/x", "[::1]:65535", "https://[2001:db8::1]/hook", "localhost"),
        "xn--bcher-kva.example",
    ],
)
async def test_a_webhook_url_is_kept_as_given(jobs: Service, url: str) -> None:
    assert (await jobs.api.post(f"/route/{jobs.db}", content=route(webhook_url=url))).status_code == 200
    assert (await jobs.api.get(f"/route/{jobs.db}/r")).json()["webhook_url"] == url


@each_case("field", ["id", "type", "webhook_url"])
async def test_a_field_of_a_route_that_is_missing_is_named(refusing: Service, field: str) -> None:
    answer = await refusing.api.post(f"/route/{refusing.db}", content=without(route(), field))

    assert refused(answer) == MALFORMED
    assert f"`{field}`" in answer.json()["error"]


@each_case("query", ["force", "force=", "force=yes", "force=2", "force=null", "force=%ff", "force=true%00"])
async def test_a_force_that_is_neither_true_nor_false(refusing: Service, server: Server, query: str) -> None:
    path = f"/route/{refusing.db}/{ROUTE}"

    assert refused(await server.request("DELETE", f"{path}?{query}")) == MALFORMED
    assert (await refusing.api.get(path)).status_code == 200


# --- paths and methods


@each_case("method", ["GET", "POST", "PUT", "DELETE", "PATCH"])
@each_case(
    "path",
    [
        *(
            "/",
            "/job",
            "/job/",
            "/job/d/c/x/y",
            "/route",
            "/route/d/r/s",
            "/JOB/d/c/x",
            "/batch/d",
            "/count",
            "/cancel",
        ),
        *("/jobs/d/c", "/healthz/x", "/.env", "/schema", "/openapi.json", "/jo%62s", "/job%00/d/c", "*", "/%ff"),
        "/../etc/passwd",
    ],
)
async def test_a_path_that_is_none(server: Server, method: str, path: str) -> None:
    assert refused(await server.request(method, path)) == NO_SUCH_PATH


# Every path, with the methods that have an operation.
METHODS = each_case(
    ("path", "allowed"),
    [
        ("/job/d", {"GET"}),
        ("/job/d/c", {"GET", "POST"}),
        ("/count/d", {"GET"}),
        ("/batch/d/c", {"POST"}),
        ("/audit/d", {"GET"}),
        ("/key", {"GET", "POST"}),
        ("/job/d/c/x", {"GET", "PUT", "DELETE"}),
        ("/route/d", {"GET", "POST"}),
        ("/route/d/r", {"GET", "PUT", "DELETE"}),
        ("/route/d/r/pause", {"POST"}),
        ("/route/d/r/resume", {"POST"}),
        ("/route/d/r/secret", {"GET"}),
        ("/route/d/r/secret/rotate", {"POST"}),
        ("/route/d/r/attempts", {"GET"}),
        ("/route/d/r/redeliver", {"POST"}),
        ("/route/d/r/redeliver/x", {"GET"}),
        ("/job/d/c/x/attempts", {"GET"}),
        ("/job/d/c/x/redeliver", {"POST"}),
        ("/job/d/c/x/trigger", {"POST"}),
        ("/failed/d", {"GET"}),
        ("/cancel/d", {"POST"}),
        ("/operation/d", {"GET"}),
        ("/operation/d/x", {"GET", "DELETE"}),
        ("/livez", {"GET"}),
        ("/healthz", {"GET"}),
        ("/readyz", {"GET"}),
    ],
)


def answered(allowed: set[str]) -> set[str]:
    """Return the methods that a path answers: HEAD wherever GET is, and OPTIONS."""
    return allowed | {"OPTIONS"} | ({"HEAD"} if "GET" in allowed else set())


@METHODS
async def test_a_method_that_a_path_does_not_take(server: Server, path: str, allowed: set[str]) -> None:
    for method in {"GET", "POST", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "PROPFIND"} - allowed:
        answer = await server.request(method, path)
        assert refused(answer) == WRONG_METHOD, method
        assert set(answer.headers["allow"].split(", ")) == answered(allowed)


@METHODS
async def test_options_has_every_method_of_a_path(server: Server, path: str, allowed: set[str]) -> None:
    answer = await server.request("OPTIONS", path)

    assert (answer.status_code, answer.content) == (204, b"")
    assert set(answer.headers["allow"].split(", ")) == answered(allowed)


@METHODS
async def test_a_head_is_what_a_get_is_but_for_the_body(server: Server, path: str, allowed: set[str]) -> None:
    head, get = await server.request("HEAD", path), await server.request("GET", path)

    assert head.status_code == get.status_code
    assert head.content == b""
    assert [head.headers[name] for name in ("content-type", "content-length")] == [
        get.headers[name] for name in ("content-type", "content-length")
    ]
    assert ("GET" in allowed) is (head.status_code != 405)


async def test_a_head_leaves_nothing_behind_it_on_the_connection(jobs: Service, server: Server) -> None:
    heads = b"".join(f"HEAD {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode() for path in ("/healthz", "/batch/d/c", "/no"))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(heads + b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    async with asyncio.timeout(10):
        answers = (await reader.read()).split(b"HTTP/1.1 ")
    writer.close()

    assert [answer[:3] for answer in answers[1:]] == [b"200", b"405", b"404", b"200"]
    assert [answer.endswith(b"\r\n\r\n") for answer in answers[1:]] == [True, True, True, False]


@each_case("method", ["HEAD", "OPTIONS"])
async def test_a_path_that_is_none_is_none_for_every_method(server: Server, method: str) -> None:
    assert (await server.request(method, "/nowhere")).status_code == 404


async def test_a_header_does_not_change_the_method(refusing: Service, server: Server) -> None:

    answer = await server.request(
        "POST", f"{refusing.jobs}/{WAITING}", b"{}", JSON + b"x-http-method-override: DELETE\r\n"
    )

    assert refused(answer) == WRONG_METHOD
    assert (await refusing.find(WAITING))["state"] == "scheduled"


# --- HTTP itself


def head(path: str, *lines: bytes) -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: x\r\n".encode() + JSON + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


@each_case(
    "request_of",
    [
        pytest.param(lambda path: head(path, b"content-length: 500") + job()[:20], id="in the middle"),
        pytest.param(
            lambda path: head(path, b"content-length: 500") + job(), id="the length is larger than a whole body"
        ),
        pytest.param(lambda path: head(path, b"content-length: 500"), id="before the body"),
        pytest.param(
            lambda path: head(path, b"transfer-encoding: chunked") + chunked(job()), id="before the last chunk"
        ),
        pytest.param(lambda path: head(path, b"transfer-encoding: chunked") + chunked(job())[:-9], id="in a chunk"),
        pytest.param(lambda path: head(path, b"content-length: 5")[:-2], id="in the head"),
    ],
)
async def test_a_request_cut_short_creates_nothing(
    refusing: Service, server: Server, request_of: Callable[[str], bytes]
) -> None:
    assert await server.exchange(request_of(refusing.jobs), end=True) == b""

    assert refused(await refusing.api.get(f"{refusing.jobs}/x")) == NO_SUCH_JOB


async def test_a_client_that_waits_for_no_answer_gets_its_job(jobs: Service, server: Server) -> None:
    body = job()
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head(jobs.jobs, b"content-length: %d" % len(body)) + body)
    await writer.drain()
    writer.close()

    await eventually(lambda: jobs.api.get(f"{jobs.jobs}/x"), lambda answer: answer.status_code == 200)


async def test_chunks_of_one_byte(jobs: Service, server: Server) -> None:
    pieces = chunked(*(bytes([byte]) for byte in job())) + chunked(b"")

    answer = await server.send(head(jobs.jobs, b"transfer-encoding: chunked") + pieces)

    assert answer.json() == {"status": "ok"}


async def test_chunks_above_the_cap(refusing: Service, server: Server) -> None:
    pieces = chunked(*[b" " * 64 * KIB] * 5) + chunked(b"")

    assert refused(await server.send(head(refusing.jobs, b"transfer-encoding: chunked") + pieces)) == TOO_LARGE


async def test_a_length_above_the_cap_is_refused_before_the_body_comes(refusing: Service, server: Server) -> None:
    announced = head(refusing.jobs, b"content-length: 99999999999", b"expect: 100-continue")

    assert refused(await server.send(announced)) == TOO_LARGE


async def test_a_client_that_expects_100_continue(jobs: Service, server: Server) -> None:
    body = job()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    async with asyncio.timeout(10):
        writer.write(head(jobs.jobs, b"content-length: %d" % len(body), b"expect: 100-continue"))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        answer = parse(await reader.readuntil(b"}"))
    writer.close()

    assert answer.json() == {"status": "ok"}


@each_case(
    "lines",
    [
        pytest.param([b"content-length: 2", b"transfer-encoding: chunked"], id="length and chunks"),
        pytest.param([b"content-length: 2", b"content-length: 3"], id="two lengths"),
        pytest.param([b"content-length: -2"], id="negative length"),
        pytest.param([b"content-length: two"], id="length in words"),
        pytest.param([b"content-length: 1" + b"0" * 30], id="huge length"),
        pytest.param([b"transfer-encoding: chunked, identity", b"x: \x00"], id="NUL in a header"),
        pytest.param([b"x : y"], id="space before the colon"),
    ],
)
async def test_a_head_that_could_be_read_in_two_ways_is_refused(
    refusing: Service, server: Server, lines: list[bytes]
) -> None:
    answer = await server.exchange(head(refusing.jobs, *lines) + b"{}")

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nconnection: close\r\n" in answer


@pytest.mark.parametrize(
    "garbage", [b"\x00\r\n\r\n", b"\x16\x03\x01\x00\xa5\x01\x00\r\n\r\n", b"GET\r\n\r\n", b"get / HTTP/1.1\r\n\r\n"]
)
async def test_garbage_is_refused_and_the_connection_closed(server: Server, garbage: bytes) -> None:
    answer = await server.exchange(garbage)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nconnection: close\r\n" in answer


async def test_a_request_that_never_ends_keeps_nobody_waiting(jobs: Service, server: Server) -> None:
    opened = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(50)]
    for _, writer in opened:
        writer.write(head(jobs.jobs, b"content-length: 500") + b"{")

    assert (await server.request("POST", jobs.jobs, job())).status_code == 200

    for _, writer in opened:
        writer.close()

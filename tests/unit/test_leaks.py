"""What the tests' logs are searched for is found there, in every form in which it could be written."""

import base64
import logging
import sys

import pytest

from api.schemas import EXAMPLE_SECRET
from tests.support.leaks import PAYLOAD, LogWatch, leaks_in
from timemachine.domain.keys import generate_key, new_key_id
from timemachine.domain.signing import encode_secret


@pytest.mark.parametrize(
    "secret",
    [
        encode_secret(bytes(range(32))),
        generate_key(new_key_id()).text,
        PAYLOAD,
        "Bearer abc",
        "postgresql://someone:a-password@",
        encode_secret(bytes(range(32)))[:39],
        encode_secret(b"\xff" * 32).replace("/", "%2F"),
        *(base64.b64encode(b'{"a":"'[at:] + PAYLOAD.encode() + b'"}').decode() for at in range(4)),
        "BEARER abc",
        "authorization=Bearer%20abc",
        "Bearer token-abc",
        'Bearer "abc"',
        'postgresql://someone:a,pass"word@',
        "postgresql://someone:pa*ss@",
        "postgresql://someone:12!ss@",
        r"{\"asked\": \"Bearer \\\"abc\\\"\"}",
        "Bearer token.abc",
        "authorization=Bearer+abc",
        r"Bearer\tabc",
        "Bearer 'abc'",
        r"postgresql://someone:a\",b@",
        "postgresql://host/db?password=",
        "postgresql://host/db?password=***a",
        "postgresql://[u]:pw@",
        "Bearer error=a",
        r"postgresql://host/db?a=b\u0026password=a",
        "postgresql://host/db?a=b&amp;password=a",
        "postgresql://host/db?sslmode=require&password=a",
    ],
    ids=[
        *("secret", "key", "payload", "token", "password", "cut", "encoded", "base64-0", "base64-1", "base64-2"),
        *("base64-3", "upper", "query", "begins-token", "quoted", "comma", "star", "digits", "json"),
        *("dotted", "form", "tab", "quoted-once", "json-comma", "parameter", "second-parameter"),
        *("stars", "brackets", "error", "escaped-parameter", "parameter-in-html"),
    ],
)
def test_a_secret_is_found_within_a_line(secret: str) -> None:
    assert leaks_in(f'{{"message": "asked with {secret}host", "n": 1}}') != []


@pytest.mark.parametrize(
    "harmless",
    [
        EXAMPLE_SECRET,
        "whsec_***",
        "tm_0123456789AB",
        "postgresql://someone:***@host",
        "http://127.0.0.1:80/a@b",
        '{"target":"http://127.0.0.1:80","job_id":"a@b"}',
        '{"target":["http://127.0.0.1:80"],"job_id":"a@b"}',
        '[{"target":"http://127.0.0.1:80"},{"job_id":"a@b"}]',
        r'"{\"target\":\"http://127.0.0.1:80\",\"job_id\":\"a@b\"}"',
        "no bearer token was given",
        '"no bearer token"',
        "no bearer token, and no other",
        "no bearer token.",
        '{"http://127.0.0.1:80":"a@b"}',
        "['http://127.0.0.1:80','a@b']",
        "http://127.0.0.1:80?mail=a@b",
        "Bearer ***",
        "the bearer of the token",
        'Bearer realm="arena"',
        'Bearer error="invalid_token"',
        r'{"challenge":"Bearer error=\"invalid_token\""}',
        r'{"challenge":"Bearer realm=\"arena\""}',
        "no Bearer Token was given",
        "(postgresql://host/db?password=***)",
        '{"target":"http://[fe80::1%eth0]:80","job_id":"a@b"}',
        "bearer tokens are refused",
        "no bearer token...",
        "postgresql://someone:xxxxx@host",
        "postgresql://host/db?password=***",
        '{"target":"http://[::1]:80","job_id":"a@b"}',
        "://" + ":" * 100_000,
    ],
)
def test_what_only_looks_like_one_is_none(harmless: str) -> None:
    assert leaks_in(f"asked with {harmless}") == []


def test_the_fields_of_a_log_line_and_its_traceback_are_searched() -> None:
    watch = LogWatch()
    try:
        raise ValueError(PAYLOAD)
    except ValueError:
        failed = logging.LogRecord("a", logging.INFO, "", 0, "failed", (), sys.exc_info())
    told = logging.makeLogRecord({"levelno": logging.INFO, "msg": "told", "name": "a", "body": [PAYLOAD]})

    watch.handle(failed)
    watch.handle(told)

    assert watch.taken() == [PAYLOAD, PAYLOAD]
    assert watch.taken() == []

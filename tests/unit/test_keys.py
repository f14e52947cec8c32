"""The rules of keys: their form, and what one allows."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from timemachine.domain.errors import ForbiddenError, ForbiddenNameError, MalformedError
from timemachine.domain.keys import (
    KEY_PATTERN,
    MAX_DBS,
    MAX_KEY_NAME,
    ApiKey,
    KeyRequest,
    Role,
    generate_key,
    hash_secret,
    mistaken_for_key,
    new_key_id,
    parse_key,
)
from timemachine.domain.signing import encode_secret
from timemachine.vault import new_key as new_encryption_key

NOW = datetime(2026, 11, 26, tzinfo=UTC)
KEY = ApiKey(id="k" * 12, name="a key", role=Role.WRITE, dbs=("arena",), created_at=NOW)
ASKED = KeyRequest(name="a key", role=Role.READ, dbs=("arena",))

PINNED = "tm_0123456789AB_0000000000000000000000000000000000000000000"
"""A key that was made before must be read by every later version."""


def test_a_key_has_the_form_that_scanners_look_for() -> None:
    key = generate_key(new_key_id())

    assert re.fullmatch(KEY_PATTERN, key.text)
    assert key.text.startswith(f"tm_{key.id}_")
    assert len(key.text) == 3 + 12 + 1 + 43 + 6


def test_a_key_is_read_as_it_was_made() -> None:
    key = generate_key(new_key_id())

    presented = parse_key(key.text)

    assert presented is not None
    assert (presented.id, presented.hash) == (key.id, key.hash)
    assert key.hash == hash_secret(key.text[16:59])
    assert len(key.hash) == 32


def test_keys_of_before_are_read() -> None:
    presented = parse_key(f"{PINNED}1py9gi")

    assert presented is not None
    assert presented.id == "0123456789AB"
    assert presented.hash.hex() == "b918b22a1581fedd39058065f00e6aad35bd561f20257151131a1ddcd21803de"


def test_no_two_keys_are_alike() -> None:
    keys = [generate_key(new_key_id()) for _ in range(1000)]

    assert len({key.id for key in keys}) == len({key.hash for key in keys}) == 1000


@given(st.integers(0, 64), st.characters())
def test_a_key_with_another_character_is_none(place: int, character: str) -> None:
    text = generate_key("3xAmp1eN0tUs").text
    other = text[:place] + character + text[place + 1 :]

    assert (parse_key(other) is None) == (other != text)


@given(st.text())
def test_other_texts_are_no_keys(text: str) -> None:
    assert parse_key(text) is None


@pytest.mark.parametrize("change", [str.lower, str.upper, str.swapcase, lambda key: key[:-1], lambda key: key + "a"])
def test_a_key_is_exact(change: object) -> None:
    assert callable(change)
    assert parse_key(change(generate_key("3xAmp1eN0tUs").text)) is None


def test_other_secrets_of_ours_are_recognised() -> None:
    assert "webhook" in (mistaken_for_key(encode_secret(b"x" * 32)) or "")
    assert "TIMEMACHINE_SECRET_KEYS" in (mistaken_for_key(new_encryption_key()) or "")
    assert mistaken_for_key("hunter2") is None
    assert mistaken_for_key(generate_key(new_key_id()).text) is None


def test_each_role_may_do_what_those_before_it_may() -> None:
    assert [[role.includes(other) for other in Role] for role in Role] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


@pytest.mark.parametrize(
    ("key", "role", "db", "allowed"),
    [
        (KEY, Role.WRITE, "arena", True),
        (KEY, Role.READ, "arena", True),
        (KEY, Role.ADMIN, "arena", False),
        (KEY, Role.READ, "Arena", False),
        (KEY, Role.READ, "aren", False),
        (KEY, Role.READ, "arena2", False),
        (KEY, Role.READ, "", False),
        (KEY, Role.WRITE, None, True),
        (KEY, Role.ADMIN, None, False),
        (replace(KEY, dbs=None), Role.WRITE, "any", True),
        (replace(KEY, dbs=None), Role.ADMIN, "any", False),
        (replace(KEY, dbs=()), Role.READ, "arena", False),
    ],
)
def test_a_key_allows_its_role_in_its_dbs(key: ApiKey, role: Role, db: str | None, allowed: bool) -> None:
    if allowed:
        key.check(role, db)
    else:
        with pytest.raises(ForbiddenError):
            key.check(role, db)


def test_a_key_of_other_dbs_is_told_no_more() -> None:
    with pytest.raises(ForbiddenError, match=r"^this key does not open this db$"):
        KEY.check(Role.ADMIN, "shop")
    with pytest.raises(ForbiddenError, match=r"the role admin; this key has the role write$"):
        KEY.check(Role.ADMIN, "arena")


@pytest.mark.parametrize(
    ("own", "dbs", "covered"),
    [
        (None, None, True),
        (None, ("a",), True),
        (("a", "b"), ("b",), True),
        (("a", "b"), ("b", "a"), True),
        (("a", "b"), ("a", "c"), False),
        (("a", "b"), None, False),
    ],
)
def test_a_key_covers_what_it_opens_all_of(
    own: tuple[str, ...] | None, dbs: tuple[str, ...] | None, covered: bool
) -> None:
    assert replace(KEY, dbs=own).covers(dbs) == covered


def test_a_key_is_valid_until_the_instant_in_which_it_expires() -> None:
    key = replace(KEY, expires_at=NOW)

    assert key.is_valid(NOW - timedelta(microseconds=1))
    assert not key.is_valid(NOW)
    assert not replace(KEY, revoked_at=NOW).is_valid(NOW)
    assert KEY.is_valid(datetime.max.replace(tzinfo=UTC))


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": "x" * (MAX_KEY_NAME + 1)},
        {"name": "two\nlines"},
        {"name": "\x00"},
        {"name": "\ud800"},
        {"dbs": ()},
        {"dbs": ("a",) * (MAX_DBS + 1)},
        {"expires_at": NOW},
    ],
)
def test_what_no_key_may_be(change: dict[str, object]) -> None:
    with pytest.raises(MalformedError, match=f"^{next(iter(change))}: "):
        replace(ASKED, **change).check(NOW)


@pytest.mark.parametrize("db", ["", "..", "a/b", "x" * 65])
def test_a_key_opens_dbs_that_there_may_be_only(db: str) -> None:
    with pytest.raises(ForbiddenNameError, match=r"^dbs: "):
        replace(ASKED, dbs=("arena", db)).check(NOW)


def test_what_a_key_may_be() -> None:
    replace(ASKED, name="Spielserver ⏱ 7", dbs=None, expires_at=NOW + timedelta(seconds=1)).check(NOW)

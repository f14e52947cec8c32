import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timemachine.domain.errors import SettingsError, VaultError
from timemachine.settings import Settings
from timemachine.vault import Vault, new_key

OLD, NEW, OTHER = new_key(), new_key(), new_key()
SECRET = b"what only its owner knows"


def vault(*keys: str) -> Vault:
    return Vault(Settings(secret_keys=",".join(keys)))


@given(secret=st.binary())
def test_what_is_sealed_can_be_opened(secret: bytes) -> None:
    assert vault(NEW).open(vault(NEW).seal(secret)) == secret


def test_what_is_sealed_does_not_show_and_is_never_the_same_twice() -> None:
    first, second = vault(NEW).seal(SECRET), vault(NEW).seal(SECRET)

    assert SECRET not in first
    assert first != second


def test_another_key_does_not_fit() -> None:
    with pytest.raises(VaultError, match="TIMEMACHINE_SECRET_KEYS"):
        vault(OTHER).open(vault(NEW).seal(SECRET))


@pytest.mark.parametrize("at", [0, 1, 20, 40, -1])
def test_a_changed_token_is_refused(at: int) -> None:
    sealed = bytearray(vault(NEW).seal(SECRET))
    sealed[at] ^= 1

    with pytest.raises(VaultError):
        vault(NEW).open(bytes(sealed))


@pytest.mark.parametrize("token", [b"", b"\xff", b"gAAAA", b"not a token"])
def test_what_is_no_token_is_refused(token: bytes) -> None:
    with pytest.raises(VaultError):
        vault(NEW).open(token)


def test_a_new_key_goes_before_the_old_one() -> None:
    before = vault(OLD).seal(SECRET)
    both = vault(NEW, OLD)

    assert both.open(before) == SECRET
    assert vault(NEW).open(both.seal(SECRET)) == SECRET
    with pytest.raises(VaultError):
        vault(OLD).open(both.seal(SECRET))


def test_resealed_it_needs_the_old_key_no_more() -> None:
    resealed = vault(NEW, OLD).reseal(vault(OLD).seal(SECRET))

    assert vault(NEW).open(resealed) == SECRET
    with pytest.raises(VaultError):
        vault(OTHER).reseal(resealed)


@pytest.mark.parametrize("keys", [None, "", " , "])
def test_without_a_key_it_says_how_to_make_one(keys: str | None) -> None:
    with pytest.raises(SettingsError, match=r"is not set; `python -m timemachine\.vault` makes a key"):
        Vault(Settings(secret_keys=keys))


@pytest.mark.parametrize(
    "wrong", ["a5ecret", NEW[:-4], "schlüssel", f"{NEW} {OLD}"], ids=["short", "cut", "no ASCII", "two in one"]
)
def test_a_wrong_key_is_refused_without_being_shown(wrong: str) -> None:
    with pytest.raises(SettingsError, match="32 bytes in URL-safe base64") as refusal:
        vault(NEW, wrong)

    assert wrong not in str(refusal.value)
    assert NEW not in str(refusal.value)


def test_blanks_around_keys_do_not_matter() -> None:
    assert vault(f" {NEW} ", f"\n{OLD}").open(vault(OLD).seal(SECRET)) == SECRET


def test_the_command_makes_a_key() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "timemachine.vault"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )

    assert vault(made.stdout.strip()).open(vault(made.stdout.strip()).seal(SECRET)) == SECRET
    assert made.stderr == ""

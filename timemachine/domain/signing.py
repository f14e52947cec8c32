"""Signatures of Standard Webhooks 1.0.0, symmetric scheme `v1`."""

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator

PREFIX = "whsec_"
SECRET_BYTES = 32

PART = 10
"""Letters and digits in a row, of a secret, that no text has by chance."""

_SEPARATORS = bytes(set(range(256)) - set(b"abcdefghijklmnopqrstuvwxyz0123456789"))


def encode_secret(secret: bytes) -> str:
    """Return a secret as its owner sees it: `whsec_` and base64."""
    return PREFIX + base64.b64encode(secret).decode()


def signature(secret: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """Return one signature, `v1,` and base64, of `id.timestamp.body`.

    Args:
        secret: The secret's bytes, without prefix and base64.
        timestamp: Seconds since the epoch, of this attempt.
    """
    content = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(secret, content, hashlib.sha256)).decode()


def signatures(secrets: tuple[bytes, ...], message_id: str, timestamp: int, body: bytes) -> str:
    """Return the header's value: a signature of each secret, so that a receiver needs to know but one of them."""
    return " ".join(signature(secret, message_id, timestamp, body) for secret in secrets)


def repeats_secret(text: bytes, secrets: Iterable[bytes]) -> bool:
    """Return whether a text holds a part of one of the secrets: as its owner sees it, in hex, or in base64 once more.

    It may be escaped, wrapped, cut short, or in other case: escapes leave letters and digits as they are, so that
    `PART` of those in a row are looked for.
    """
    searched = text.lower().translate(None, delete=_SEPARATORS)
    return any(part in searched for secret in secrets for part in _parts(secret))


def _parts(secret: bytes) -> Iterator[bytes]:
    shown = base64.b64encode(secret)
    # A text may be put into base64 from any of three places on.
    hidden = (base64.b64encode(shown[start:][: (len(shown) - start) // 3 * 3]) for start in range(3))
    for form in (shown, secret.hex().encode(), *hidden):
        runs: list[bytes] = re.findall(rb"[a-z0-9]+", form.lower())
        whole = [run[at : at + PART] for run in runs for at in range(0, len(run) - PART + 1, PART)]
        yield from whole or [max(runs, key=len)]

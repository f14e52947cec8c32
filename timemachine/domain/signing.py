"""Signatures of Standard Webhooks 1.0.0, symmetric scheme `v1`."""

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable

PREFIX = "whsec_"
SECRET_BYTES = 32


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
    """Return whether a text holds one of the secrets, in hex or as its owner sees it, however escaped or wrapped.

    Escapes leave letters and digits as they are, so that the longest run of them is looked for.
    """
    searched = b"".join(text.split()).lower()
    return any(run in searched for secret in secrets for run in (secret.hex().encode(), _longest_run(secret)))


def _longest_run(secret: bytes) -> bytes:
    runs: list[bytes] = re.findall(rb"[a-z0-9]+", base64.b64encode(secret).lower())
    return max(runs, key=len)

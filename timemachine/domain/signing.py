"""Signatures of Standard Webhooks 1.0.0, symmetric scheme `v1`."""

import base64
import hashlib
import hmac

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

"""API keys: their form, what one allows, and what a new one may be."""

import hashlib
import hmac
import re
import secrets as randomness
import zlib
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from timemachine.domain.errors import ForbiddenError, MalformedError
from timemachine.domain.jobs import check_name
from timemachine.domain.signing import PREFIX as WEBHOOK_SECRET_PREFIX

ID_LENGTH = 12
SECRET_LENGTH = 43
SECRET_BYTES = 32
CHECKSUM_LENGTH = 6
MAX_KEY_NAME = 100
MAX_DBS = 100

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
KEY_ID_PATTERN = rf"^[0-9A-Za-z]{{{ID_LENGTH}}}$"
KEY_PATTERN = rf"tm_[0-9A-Za-z]{{{ID_LENGTH}}}_[0-9A-Za-z]{{{SECRET_LENGTH + CHECKSUM_LENGTH}}}"
"""The form of a key, for scanners that look for leaked ones."""

_KEY = re.compile(
    rf"(tm_([0-9A-Za-z]{{{ID_LENGTH}}})_([0-9A-Za-z]{{{SECRET_LENGTH}}}))([0-9A-Za-z]{{{CHECKSUM_LENGTH}}})"
)
_KEY_ID = re.compile(KEY_ID_PATTERN)
_ENCRYPTION_KEY = re.compile(r"[A-Za-z0-9_-]{43}=")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Role(StrEnum):
    """What a key may do. Each role may do what those before it may. Stored: values are never changed."""

    READ = "read"
    """Read jobs, routes and attempts; no secrets."""
    WRITE = "write"
    """Create, change, cancel and redeliver jobs, too."""
    ADMIN = "admin"
    """Everything: routes and their secrets, keys, work on many jobs, the audit log."""

    def includes(self, role: "Role") -> bool:
        """Return whether this role may do what another may. Roles are texts: do not compare them by `<`."""
        order = list(Role)
        return order.index(self) >= order.index(role)


class PresentedKey(msgspec.Struct, frozen=True):
    """A key as a client sends it. Holds the secret's hash only, so that it may be kept."""

    id: str
    hash: bytes
    """SHA-256 of the secret."""


class NewKey(msgspec.Struct, frozen=True):
    """A key that was just made. Never to be logged."""

    id: str
    text: str
    """The whole key, which nobody can show again."""
    hash: bytes


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is kept: without its secret."""

    id: str
    name: str
    role: Role
    dbs: tuple[str, ...] | None
    """The dbs that it opens; None for all."""
    created_at: datetime
    created_by: str | None = None
    """The id of the key that made it; None when an operator did, by the command line."""
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    """To the minute, about."""
    revoked_at: datetime | None = None
    requests_per_second: float | None = None
    """Its own limit, in place of the setting's."""

    def opens(self, db: str) -> bool:
        """Return whether it is a key of this db."""
        return self.dbs is None or db in self.dbs

    def covers(self, dbs: Iterable[str] | None) -> bool:
        """Return whether it opens all of these dbs; None stands for all that there are."""
        return self.dbs is None or (dbs is not None and set(dbs) <= set(self.dbs))

    def is_valid(self, now: datetime) -> bool:
        """Return whether it is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def check(self, role: Role, db: str | None) -> None:
        """Refuse what the key does not allow, before anything is known of what it asks for.

        Args:
            db: The db that a request is about; None for one about no db.

        Raises:
            ForbiddenError: It is a key of other dbs, or its role does not suffice.
        """
        if db is not None and not self.opens(db):
            raise ForbiddenError("this key does not open this db")
        if not self.role.includes(role):
            raise ForbiddenError(f"this needs a key with the role {role}; this key has the role {self.role}")


class KeyRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a key is to be. See `ApiKey` for the fields."""

    name: str
    role: Role
    dbs: tuple[str, ...] | None
    expires_at: datetime | None = None
    requests_per_second: float | None = None

    def check(self, now: datetime) -> None:
        """Refuse what no key may be.

        Raises:
            MalformedError: The name is empty, too long, or has control characters; no db, or too many; or it would have
                expired already.
            ForbiddenNameError: A db has a name that none may have.
        """
        if not 0 < len(self.name.strip()) <= len(self.name) <= MAX_KEY_NAME or _CONTROL.search(self.name):
            raise MalformedError(f"name: 1 to {MAX_KEY_NAME} characters are allowed, none of them a control character")
        if self.dbs is not None and not 0 < len(self.dbs) <= MAX_DBS:
            raise MalformedError(f"dbs: 1 to {MAX_DBS} are allowed, or null for all")
        for db in self.dbs or ():
            check_name("dbs", db)
        if self.expires_at is not None and self.expires_at <= now:
            raise MalformedError("expires_at: it must be in the future")


RequestsPerSecond = Annotated[float, Meta(ge=1, le=1_000_000)]


def new_key_id() -> str:
    """Return an id for a new key."""
    return "".join(randomness.choice(_ALPHABET) for _ in range(ID_LENGTH))


def is_key_id(text: str) -> bool:
    """Return whether a text has the form of a key's id. Others name none; some of them Postgres cannot read."""
    return _KEY_ID.fullmatch(text) is not None


def generate_key(key_id: str) -> NewKey:
    """Return a new secret for the key with this id: `tm_<id>_<secret><checksum>`, of 256 random bits."""
    secret = _base62(int.from_bytes(randomness.token_bytes(SECRET_BYTES)), SECRET_LENGTH)
    text = f"tm_{key_id}_{secret}"
    return NewKey(id=key_id, text=text + _checksum(text), hash=hash_secret(secret))


def parse_key(text: str) -> PresentedKey | None:
    """Return the key that a text is; None where its form or its checksum is wrong, so that nothing need be asked."""
    found = _KEY.fullmatch(text)
    if found is None or _checksum(found[1]) != found[4]:
        return None
    return PresentedKey(found[2], hash_secret(found[3]))


def holds_key(text: str) -> bool:
    """Return whether a text has a part with the form of a key."""
    return re.search(KEY_PATTERN, text) is not None


def hash_secret(secret: str) -> bytes:
    """Return what is kept of a secret. Its 256 random bits cannot be guessed, so that no slow hash is needed."""
    return hashlib.sha256(secret.encode()).digest()


def is_same_hash(one: bytes, other: bytes) -> bool:
    """Return whether two hashes are equal, in a time that tells nothing of where they differ."""
    return hmac.compare_digest(one, other)


def mistaken_for_key(text: str) -> str | None:
    """Return what somebody sent in place of a key, in words; None where it looks like no other secret of ours."""
    if text.startswith(WEBHOOK_SECRET_PREFIX):
        return "this is the secret of a webhook, which verifies deliveries; it is no API key, and was best kept private"
    if _ENCRYPTION_KEY.fullmatch(text):
        return "this looks like a key of TIMEMACHINE_SECRET_KEYS, which encrypts secrets; it is no API key: replace it"
    return None


def _checksum(text: str) -> str:
    return _base62(zlib.crc32(text.encode()), CHECKSUM_LENGTH)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))

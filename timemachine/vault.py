"""The door to encryption: secrets at rest, by Fernet (AES-128-CBC and HMAC-SHA256) of the `cryptography` package."""

import re
from functools import lru_cache

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from timemachine.domain.errors import SettingsError, VaultError
from timemachine.settings import Settings

OPENED = 1024
"""How many of the secrets that were decrypted last are kept in memory."""

# Fernet itself takes what only begins with a key, such as two with a blank between them.
_KEY = re.compile(r"[A-Za-z0-9_-]{43}=")


class Vault:
    """Encrypts with the first of the keys and decrypts with any, so that a new key can be put before the old ones."""

    def __init__(self, settings: Settings) -> None:
        """Take the keys.

        Raises:
            SettingsError: There is none, or one is not 32 bytes in URL-safe base64.
        """
        keys = [key.strip() for key in (settings.secret_keys or "").split(",") if key.strip()]
        if not keys:
            raise SettingsError("TIMEMACHINE_SECRET_KEYS is not set; `python -m timemachine.vault` makes a key")
        if not all(_KEY.fullmatch(key) for key in keys):
            raise SettingsError("TIMEMACHINE_SECRET_KEYS: each must be 32 bytes in URL-safe base64")
        self._fernet = MultiFernet([Fernet(key) for key in keys])
        # Each attempt opens its route's secrets, and a busy route has many attempts.
        self._decrypt = lru_cache(maxsize=OPENED)(self._fernet.decrypt)

    def seal(self, secret: bytes) -> bytes:
        """Encrypt."""
        return self._fernet.encrypt(secret)

    def open(self, sealed: bytes) -> bytes:
        """Decrypt.

        Raises:
            VaultError: None of the keys fits.
        """
        try:
            return self._decrypt(sealed)
        except InvalidToken as error:
            raise VaultError from error

    def reseal(self, sealed: bytes) -> bytes:
        """Encrypt anew with the first key what was encrypted with any.

        Raises:
            VaultError: None of the keys fits.
        """
        return self.seal(self.open(sealed))


def new_key() -> str:
    """Return a new key for TIMEMACHINE_SECRET_KEYS."""
    return Fernet.generate_key().decode()


if __name__ == "__main__":
    print(new_key())  # noqa: T201 - a command's output

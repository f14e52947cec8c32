"""The settings of a service under test, where they differ from an operator's."""

from typing import Any

from timemachine.settings import Auth, Settings
from timemachine.vault import new_key


def service_settings(**given: Any) -> Settings:
    """Return settings for a service that asks for no keys, which are tested by themselves."""
    return Settings(**{"auth": Auth.NONE, "secret_keys": new_key()} | given)

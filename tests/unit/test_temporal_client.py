"""How Temporal is asked for what programs need at their start."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from timemachine.domain.errors import SettingsError, SetupError, UnavailableError
from timemachine.temporal.client import MAX_NAMESPACE, check_namespace, connection_settings, temporal_timeout

# What is an answer about a job or a request, or has an error of its own.
ANSWERS = {
    RPCStatusCode.OK,
    RPCStatusCode.NOT_FOUND,
    RPCStatusCode.ALREADY_EXISTS,
    RPCStatusCode.INVALID_ARGUMENT,
    RPCStatusCode.RESOURCE_EXHAUSTED,
}


def answering(status: RPCStatusCode | None) -> tuple[Client, list[bool]]:
    """Return a client whose namespace is described or refused so, and whether each call was to be tried again."""
    retries: list[bool] = []

    async def describe(_: object, *, retry: bool = False) -> None:
        retries.append(retry)
        if status is not None:
            raise RPCError("no", status, b"")

    service: Callable[..., Awaitable[None]] = describe
    fake: Any = SimpleNamespace(namespace="here", workflow_service=SimpleNamespace(describe_namespace=service))
    return cast(Client, fake), retries


async def test_a_program_asks_again_while_temporal_fails_and_the_readiness_check_does_not() -> None:
    client, retries = answering(None)

    await check_namespace(client)
    await check_namespace(client, retry=False)

    assert retries == [True, False]


async def test_a_namespace_that_is_missing_is_named() -> None:
    client, _ = answering(RPCStatusCode.NOT_FOUND)

    with pytest.raises(SetupError, match="namespace here"):
        await check_namespace(client)


async def test_who_may_not_ask_for_a_namespace_may_yet_use_it() -> None:
    client, _ = answering(RPCStatusCode.PERMISSION_DENIED)

    await check_namespace(client)


def test_a_variable_of_others_that_is_not_utf_8_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOO", "\udcff")
    monkeypatch.setenv("TEMPORAL_NAMESPACE", "here")

    assert connection_settings()["namespace"] == "here"


def test_the_profile_file_is_found_where_it_is_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in (tmp_path, tmp_path / "Library/Application Support"):
        (folder / "temporalio").mkdir(parents=True)
        (folder / "temporalio/temporal.toml").write_text('[profile.default]\nnamespace = "there"\n')

    assert connection_settings()["namespace"] == "there"


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("TEMPORAL_API_KEY", "hunter2\udcff", "TEMPORAL_API_KEY: it is not UTF-8"),
        ("TEMPORAL_API_KEY", "hunter2\n", "the API key must be printable ASCII, without a line break"),
        ("TEMPORAL_API_KEY", "hunter2é", "the API key must be printable ASCII, without a line break"),
        (
            "TEMPORAL_GRPC_META_X_Y",
            "hunter2\n",
            "the gRPC metadata `x-y` must be printable ASCII, without a line break",
        ),
        ("TEMPORAL_NAMESPACE", "n" * (MAX_NAMESPACE + 1), "the namespace must have 1 to 1000 bytes"),
        ("TEMPORAL_NAMESPACE", "é" * (MAX_NAMESPACE // 2 + 1), "the namespace must have 1 to 1000 bytes"),
        ("TEMPORAL_NAMESPACE", "", "the namespace must have 1 to 1000 bytes"),
        *(
            ("TEMPORAL_ADDRESS", address, f"the address must be host:port, not `{address}`")
            for address in (
                *("localhost:65536", "localhost:0", "10.0.0.256:7233", "1.2.3.4.5:7233", "127.0.0.1:٧٢٣٣"),
                *("[fd00::1::2]:7233", "[10.0.0.1]:7233", "[:::::]:7233"),
                *(
                    "temporal.example.org",
                    "a b:1",
                    "temporal.1:7233",
                    "temporal.0x1:7233",
                    "temporal.08.:7233",
                    "10.0.0.x.1:7233",
                ),
            )
        ),
        ("TEMPORAL_TLS_CLIENT_CERT_DATA", "hunter2", "a client certificate and its private key need each other"),
        ("TEMPORAL_GRPC_META_FOO_BIN", "hunter2", "not end with -bin"),
        ("TEMPORAL_GRPC_META_Ä", "hunter2", "not end with -bin"),
    ],
)
def test_what_temporal_never_takes_is_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(SettingsError) as refusal:
        connection_settings()

    assert str(refusal.value).endswith(reason)
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize("address", ["localhost:1", "10.0.0.255:7233", "https://a.b-c.d:443", "[::1]:7233", "1.a:7233"])
def test_an_address_of_any_shape_is_taken(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", address)

    assert connection_settings()["target_host"] == address


@pytest.mark.parametrize(
    "line",
    [
        'api_key = "hunter2',
        'api_key = ["hunter2"]',
        'grpc_meta = "Bearer hunter2"',
        'tls = "hunter2"',
        'tls = "a\\"hunter2"',
    ],
)
def test_a_line_of_the_profile_file_is_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str) -> None:
    file = tmp_path / "temporal.toml"
    file.write_text(f"[profile.default]\n{line}\n")
    monkeypatch.setenv("TEMPORAL_CONFIG_FILE", str(file))

    with pytest.raises(SettingsError, match="TOML parse error at line 2") as refusal:
        connection_settings()

    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize("status", sorted(set(RPCStatusCode) - ANSWERS), ids=lambda status: status.name)
async def test_all_that_is_no_answer_is_an_outage(status: RPCStatusCode) -> None:
    with pytest.raises(UnavailableError):
        async with temporal_timeout(1):
            raise RPCError("no", status, b"")

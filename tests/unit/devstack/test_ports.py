"""Ports are checked before anything is started on them."""

import socket

import pytest

from devstack.ports import LOOPBACK, choose_port, free_port, url
from timemachine.domain.errors import LocalStackError


def test_a_port_in_use_is_refused_with_the_setting_that_changes_it() -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LocalStackError, match=f"port {port} .* TIMEMACHINE_HTTP_PORT"):
            choose_port(LOOPBACK, port, "TIMEMACHINE_HTTP_PORT")


def test_0_takes_a_free_one() -> None:
    port = choose_port(LOOPBACK, 0, "TIMEMACHINE_HTTP_PORT")
    with socket.create_server((LOOPBACK, port)):
        assert port != 0


def test_a_free_port_stays_out_of_the_kernels_own_range() -> None:
    assert all(free_port() < 32_768 for _ in range(100))


def test_a_foreign_address_is_refused() -> None:
    with pytest.raises(LocalStackError, match="TIMEMACHINE_HTTP_HOST"):
        free_port("192.0.2.1")


@pytest.mark.parametrize(
    ("host", "address"),
    [
        (LOOPBACK, "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),  # noqa: S104 - an example
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
        ("localhost", "http://localhost:80"),
    ],
)
def test_a_url_reaches_what_listens_on_a_host(host: str, address: str) -> None:
    assert url(host, 80) == address

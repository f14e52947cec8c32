"""Ports are checked before anything is started on them."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from devstack import ports
from devstack.children import ROOT
from devstack.ports import LOOPBACK, choose_port, free_port, url
from timemachine.domain.errors import LocalStackError

KERNELS_OWN = Path("/proc/sys/net/ipv4/ip_local_port_range")

TAKES_ONE = "from devstack.ports import free_port; print(free_port(), flush=True); input()"
"""A program that takes a port, listens on nothing, and goes on until it is told to end."""


def test_a_port_in_use_is_refused_with_the_setting_that_changes_it() -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LocalStackError, match=f"port {port} .* TIMEMACHINE_HTTP_PORT"):
            choose_port(LOOPBACK, port, "TIMEMACHINE_HTTP_PORT")


def test_0_takes_a_free_one() -> None:
    port = choose_port(LOOPBACK, 0, "TIMEMACHINE_HTTP_PORT")
    with socket.create_server((LOOPBACK, port)):
        assert port != 0


@pytest.mark.skipif(not KERNELS_OWN.exists(), reason="Linux says it there")
def test_a_free_port_stays_out_of_the_kernels_own_range() -> None:
    first, last = map(int, KERNELS_OWN.read_text().split())
    assert all(not first <= free_port() <= last for _ in range(20))


def test_a_port_that_another_process_took_is_free_again_when_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = (sys.executable, "-c", TAKES_ONE)
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        taken = int(other.stdout.readline())
        monkeypatch.setattr(ports, "_FREE_RANGE", range(taken, taken + 1))
        with pytest.raises(LocalStackError, match="no free port"):
            free_port()
        other.communicate("end\n")
    assert free_port() == taken


def test_a_port_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given = free_port()
    monkeypatch.setattr(ports, "_FREE_RANGE", range(given, given + 1))
    with pytest.raises(LocalStackError, match="no free port"):
        free_port()


def test_a_port_that_was_chosen_is_given_to_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
    assert choose_port(LOOPBACK, port, "TIMEMACHINE_HTTP_PORT") == port
    monkeypatch.setattr(ports, "_FREE_RANGE", range(port, port + 1))
    with pytest.raises(LocalStackError, match="no free port"):
        free_port()


def test_a_port_that_something_listens_on_is_given_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(ports, "_FREE_RANGE", range(port, port + 1))
        with pytest.raises(LocalStackError, match="no free port"):
            free_port()
    assert free_port() == port


def test_a_part_can_listen_on_the_port_that_was_reserved_for_it() -> None:
    with socket.create_server((LOOPBACK, free_port())) as server:
        assert server.getsockname()[1] in ports._FREE_RANGE


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

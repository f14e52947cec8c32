"""Ports for the parts of the local stack."""

import random
import socket

from timemachine.domain.errors import LocalStackError

LOOPBACK = "127.0.0.1"

# Below what Linux and macOS take source ports of outgoing connections from, so that a part that died finds its port
# still free when it is started again.
_FREE_RANGE = range(15_000, 32_000)


def choose_port(host: str, port: int, setting: str) -> int:
    """Return `port` if it can be listened on, or a free one where it is 0.

    Raises:
        LocalStackError: The port is taken; the message names `setting`.
    """
    if port == 0:
        return free_port(host)
    if not _can_listen(host, port):
        raise LocalStackError(
            f"port {port} on {host} is in use: stop the program that has it, "
            f"or set {setting} to another port (0 takes a free one)"
        )
    _reserve(host, port)
    return port


def free_port(host: str = LOOPBACK) -> int:
    """Return a port that nothing listens on, and reserve it until this process ends.

    Who gets it may listen much later, or be killed and started again: meanwhile no other call returns it, in no process
    of this machine.

    Raises:
        LocalStackError: None was found; most likely `host` is no address of this machine.
    """
    for port in random.sample(_FREE_RANGE, len(_FREE_RANGE)):
        if _reserve(host, port):
            return port
    raise LocalStackError(f"no free port on {host}: is it an address of this machine? (TIMEMACHINE_HTTP_HOST)")


def reachable(host: str) -> str:
    """Return the address at which this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)  # noqa: S104 - compared, not listened on


def url(host: str, port: int) -> str:
    """Return the `http://` address of a server that listens on `host` and `port`."""
    near = reachable(host)
    return f"http://[{near}]:{port}" if ":" in near else f"http://{near}:{port}"


def _reserve(host: str, port: int) -> bool:
    """Take a port until this process ends, if it can be listened on and nobody else has taken it so.

    It is taken by the UDP port of the same number, which no part uses.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mark:
        try:
            mark.bind((LOOPBACK, port))
        except OSError:
            return False
        if not _can_listen(host, port):
            return False
        mark.detach()  # which leaves it open
    return True


def _can_listen(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        # As servers do: a port whose last connections linger in TIME_WAIT is free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError:
            return False
    return True

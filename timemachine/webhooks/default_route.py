"""Whether this machine has lost its way to the internet."""

import socket

FAR_AWAY = ((socket.AF_INET, "1.1.1.1"), (socket.AF_INET6, "2606:4700:4700::1111"))
"""Public addresses, which nothing is sent to: the system is only asked for a route."""


class DefaultRoute:
    """The machine's route to whatever is not near, of IPv4 or IPv6.

    A machine that never had one may be meant to have none, and then a receiver that it cannot reach is set up wrongly.
    """

    def __init__(self) -> None:
        """Look once."""
        self._seen = _has_default_route()

    def look(self) -> None:
        """Look again if none has been seen so far."""
        self._seen = self._seen or _has_default_route()

    def lost(self) -> bool:
        """Return whether there was one, and there is none now of either family."""
        return self._seen and not _has_default_route()


def _has_default_route() -> bool:
    return any(_has_route(family, address) for family, address in FAR_AWAY)


def _has_route(family: socket.AddressFamily, address: str) -> bool:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as asking:
            asking.connect((address, 9))
    except OSError:
        return False
    return True

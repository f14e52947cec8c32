"""Whether the dev server is stuck, where it cannot be asked."""

from temporalio.client import Client

from devstack.ports import LOOPBACK, free_port
from devstack.stuck_sqlite import _is_stuck


async def test_a_server_that_nobody_has_reached_yet_is_not_stuck() -> None:
    assert not await _is_stuck(await Client.connect(f"{LOOPBACK}:{free_port()}", lazy=True))

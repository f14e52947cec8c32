"""How Temporal's services are started, with a program in place of its server."""

import sys
from pathlib import Path

from devstack.parts import running
from devstack.ports import free_port
from devstack.temporal_cluster import ServerProcess, _part
from devstack.temporal_server import SERVER

FAILS_ONCE = f"""#!{sys.executable}
import os, pathlib, socket, sys, time
tried = pathlib.Path("tried")
if not tried.exists():
    tried.touch()
    sys.exit("for no reason that anybody knows of")
listener = socket.create_server(("127.0.0.1", int(os.environ["WORKER_GRPC_PORT"])))
time.sleep(60)
"""


async def test_a_service_that_ends_as_it_starts_is_started_again(tmp_path: Path) -> None:
    server = tmp_path / SERVER
    server.write_text(FAILS_ONCE)
    server.chmod(0o700)
    process = ServerProcess(name="temporal-worker", ports={"worker": (free_port(), free_port())})

    async with running(_part(tmp_path, process, {}, tmp_path, None)) as part:
        assert part.pid

    assert "for no reason" in (tmp_path / "logs" / "temporal-worker.log").read_text()

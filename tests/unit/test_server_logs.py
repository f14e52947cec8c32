"""A failed test shows what its servers wrote last, and not what others did."""

from pathlib import Path

from devstack.parts import Part, Program
from devstack.postgres import Postgres
from devstack.stack import Stack
from devstack.temporal import Temporal
from devstack.temporal_cluster import TemporalCluster
from tests.support.server_logs import ends_of_logs


async def _ready() -> bool:
    return True


def a_part(log: Path | None, lines: int = 0) -> Part:
    if log and lines:
        log.write_text("".join(f"line {number}\n" for number in range(lines)))
    return Part(Program(name="a server", argv=("true",), env={}, log=log), _ready)


def test_the_last_lines_of_each_server_of_a_test_are_shown_once(tmp_path: Path) -> None:
    postgres = Postgres(a_part(tmp_path / "postgres.log", 30), "postgresql://")
    stack = Stack(folder=tmp_path, env={}, api_url="", parts={"postgres": postgres.part, "api": a_part(None)})
    history = a_part(tmp_path / "temporal-history.log", 1)
    cluster = TemporalCluster(address="", parts={"temporal-history": history})
    unstarted = Temporal(a_part(tmp_path / "temporal.log"), "", "")

    shown = dict(ends_of_logs({"a": postgres, "b": stack, "c": (cluster, unstarted), "d": "another"}))

    assert shown == {
        f"end of {tmp_path / 'postgres.log'}": "\n".join(f"line {number}" for number in range(10, 30)),
        f"end of {tmp_path / 'temporal-history.log'}": "line 0",
    }

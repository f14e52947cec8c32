"""deploy/temporal-namespace.sh with a Temporal that is not ready at once."""

import os
import subprocess
from pathlib import Path

import pytest

from devstack.children import ROOT

TEMPORAL = """#!/bin/sh
# Fails so many times what the first file says, and everything while it is not healthy.
echo "$*" >>"$HERE/asked"
case $* in
"operator cluster health") left=$HERE/unhealthy ;;
"operator search-attribute list"*) left=$HERE/unused ;;
"operator namespace describe"*) exit 1 ;;
*) [ ! -s "$HERE/unhealthy" ] && exit 0; echo "Frontend is not healthy yet" >&2; exit 1 ;;
esac
[ -s "$left" ] || exit 0
sed -i 1d "$left"
exit 1
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with what stands for Temporal's CLI, and for `sleep`, which takes no time."""
    for name, text in (("temporal", TEMPORAL), ("sleep", "#!/bin/sh\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def run(here: Path, *, unhealthy: int = 0, unused: int = 0) -> tuple[int, list[str]]:
    """Run the script, and return its status and what it asked of Temporal."""
    (here / "unhealthy").write_text("no\n" * unhealthy)
    (here / "unused").write_text("no\n" * unused)
    env = {"PATH": f"{here}:{os.environ['PATH']}", "HERE": str(here), "TEMPORAL_NAMESPACE": "n", "RETENTION": "24h"}
    ended = subprocess.run(["/bin/sh", ROOT / "deploy/temporal-namespace.sh"], env=env, check=False)
    return ended.returncode, (here / "asked").read_text().splitlines()


def test_a_namespace_is_created_once_the_frontend_is_healthy_and_awaited_until_it_is_used(here: Path) -> None:
    status, asked = run(here, unhealthy=2, unused=1)

    assert status == 0
    assert asked == [
        *["operator cluster health"] * 3,
        "operator namespace describe --namespace n",
        "operator namespace create --namespace n --retention 24h",
        *["operator search-attribute list --namespace n"] * 2,
        "operator namespace update --namespace n --retention 24h",
    ]


@pytest.mark.parametrize("never", [{"unhealthy": 100}, {"unused": 100}])
def test_it_gives_up_after_a_minute(here: Path, never: dict[str, int]) -> None:
    status, asked = run(here, **never)

    assert status == 1
    assert len(asked) <= 63
    assert "operator namespace update --namespace n --retention 24h" not in asked

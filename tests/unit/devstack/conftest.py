"""What tests of programs that are built have in common."""

from pathlib import Path

import pytest


@pytest.fixture
def env(tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, str]:
    """An environment whose Go is the test file's `GO`, and in which none can be installed."""
    for name, text in (("go", request.module.GO), ("uv", "#!/bin/sh\nexit 1\n")):
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
    return {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}

from pathlib import Path

from devstack.folder import kept_secret


def test_a_secret_is_made_once_and_read_by_its_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "secret"

    assert kept_secret(file, lambda: "first") == "first"
    assert kept_secret(file, lambda: "second") == "first"
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_an_interrupted_run_leaves_no_half_a_secret(tmp_path: Path) -> None:
    (tmp_path / "secret.new").write_text("hal")

    assert kept_secret(tmp_path / "secret", lambda: "whole") == "whole"

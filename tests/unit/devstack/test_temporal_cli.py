"""Where the Temporal CLI is looked for, and what is said when there is none."""

import asyncio
from pathlib import Path

import pytest

from devstack.temporal_cli import VERSION, find_temporal_cli
from timemachine.domain.errors import LocalStackError

WORKS = "#!/bin/sh\necho temporal version 1.5.1\n"
# What the build leaves is where GOBIN says. It says where it ran, and how often.
GO = f"#!/bin/sh\necho ran >> $0.log\necho package >&2\nmkdir -p $GOBIN\nprintf '%s' '{WORKS}' > $GOBIN/temporal\n"
GO += "chmod +x $GOBIN/temporal\n"


def program(file: Path, text: str = WORKS) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)
    return file


async def offline(folder: Path) -> Path:
    raise LocalStackError("no way out")


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "bin").mkdir()
    return {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def cached(cache: Path) -> Path:
    return cache / f"temporal-cli-{VERSION}" / "temporal"


async def test_the_setting_comes_first(tmp_path: Path, env: dict[str, str], cache: Path) -> None:
    given = program(tmp_path / "given" / "temporal")
    program(tmp_path / "bin" / "temporal")
    assert await find_temporal_cli(str(given), env, cache=cache, download=offline) == given


async def test_a_setting_that_does_not_run_is_refused(tmp_path: Path, env: dict[str, str], cache: Path) -> None:
    program(tmp_path / "bin" / "temporal")
    with pytest.raises(LocalStackError, match=r"TIMEMACHINE_TEMPORAL_CLI: .* is not there"):
        await find_temporal_cli(str(tmp_path / "none"), env, cache=cache, download=offline)


async def test_path_comes_before_the_cache(tmp_path: Path, env: dict[str, str], cache: Path) -> None:
    on_path = program(tmp_path / "bin" / "temporal")
    program(cached(cache))
    assert await find_temporal_cli(None, env, cache=cache, download=offline) == on_path


@pytest.mark.parametrize("text", ["#!/bin/sh\nexit 1\n", "#!/bin/sh\necho another program\n", "#!/no/such/shell\n", ""])
async def test_another_program_of_that_name_is_passed_over(
    tmp_path: Path, env: dict[str, str], cache: Path, text: str
) -> None:
    program(tmp_path / "bin" / "temporal", text)
    program(cached(cache))
    assert await find_temporal_cli(None, env, cache=cache, download=offline) == cached(cache)


async def test_a_download_is_kept_in_the_cache(env: dict[str, str], cache: Path) -> None:
    async def download(folder: Path) -> Path:
        return program(folder / "downloaded")

    assert await find_temporal_cli(None, env, cache=cache, download=download) == cached(cache)
    assert await find_temporal_cli(None, env, cache=cache, download=offline) == cached(cache)
    assert {file.name for file in cached(cache).parent.iterdir()} == {"temporal", "lock"}


async def test_it_is_built_once_where_it_cannot_be_downloaded(
    tmp_path: Path, env: dict[str, str], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program(tmp_path / "bin" / "go", GO)
    found = await asyncio.gather(*(find_temporal_cli(None, env, cache=cache, download=offline) for _ in range(3)))
    assert set(found) == {cached(cache)}
    assert (tmp_path / "bin" / "go.log").read_text() == "ran\n"
    assert "usually 4 to 6 minutes" in capsys.readouterr().out


async def test_a_broken_program_in_the_cache_is_replaced(env: dict[str, str], cache: Path) -> None:
    async def download(folder: Path) -> Path:
        return program(folder / "downloaded")

    program(cached(cache), "#!/bin/sh\nexit 1\n")
    await find_temporal_cli(None, env, cache=cache, download=download)
    assert cached(cache).read_text() == WORKS


async def test_without_any_way_it_says_what_was_tried_and_what_to_do(
    tmp_path: Path, env: dict[str, str], cache: Path
) -> None:
    program(tmp_path / "bin" / "go", "#!/bin/sh\necho no such module >&2\nexit 1\n")
    program(tmp_path / "bin" / "uv", "#!/bin/sh\necho no such package >&2\nexit 1\n")
    with pytest.raises(LocalStackError) as raised:
        await find_temporal_cli(None, env, cache=cache, download=offline)
    message = str(raised.value)
    for part in ("TIMEMACHINE_TEMPORAL_CLI", "TEMPORAL_ADDRESS", "no way out", "no such module", "no such package"):
        assert part in message

"""Where the Temporal CLI is looked for, how it is downloaded or built, and what is said when there is none."""

import asyncio
import os
import platform
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from devstack import go_build
from devstack.program_cache import ChecksumError
from devstack.temporal_cli import find_temporal_cli
from devstack.temporal_release import TESTED, Release
from tests.support.receiver import response
from tests.support.release_server import ReleaseServer, releasing
from timemachine.domain.errors import LocalStackError

ROOT = Path(__file__).parents[3]
WORKS = "#!/bin/sh\necho temporal version 1.5.1\n"
# What the build leaves is where GOBIN says. It says where it ran, and how often.
GO = f"#!/bin/sh\necho ran >> $0.log\necho package >&2\nmkdir -p $GOBIN\nprintf '%s' '{WORKS}' > $GOBIN/temporal\n"
GO += "chmod +x $GOBIN/temporal\n"
FIND = """
import asyncio, os, pathlib, sys, msgspec
from devstack.temporal_cli import find_temporal_cli
from devstack.temporal_release import Release
release = msgspec.json.decode(sys.argv[2], type=Release)
asyncio.run(find_temporal_cli(None, {"PATH": ""}, cache=pathlib.Path(sys.argv[1]), release=release))
"""


def program(file: Path, text: str = WORKS) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)
    return file


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """An environment without Go, where none can be installed either."""
    program(tmp_path / "bin" / "uv", "#!/bin/sh\necho no such package >&2\nexit 1\n")
    return {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}


@pytest.fixture
def go(tmp_path: Path, env: dict[str, str]) -> Path:
    """A Go on PATH that builds at once, and logs beside it that it ran."""
    return program(tmp_path / "bin" / "go", GO)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def offline() -> Release:
    """A release that cannot be reached."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    return replace(TESTED, url=f"http://127.0.0.1:{port}")


@pytest.fixture
async def releases() -> AsyncIterator[ReleaseServer]:
    async with releasing(WORKS) as server:
        yield server


def cached(cache: Path) -> Path:
    return cache / f"temporal-cli-{TESTED.version}" / "temporal"


def kept(cache: Path) -> set[str]:
    return {file.name for file in cached(cache).parent.iterdir()}


def built(go: Path) -> bool:
    return go.with_name("go.log").exists()


async def test_the_setting_comes_first(tmp_path: Path, env: dict[str, str], cache: Path, offline: Release) -> None:
    given = program(tmp_path / "given" / "temporal")
    program(tmp_path / "bin" / "temporal")
    assert await find_temporal_cli(str(given), env, cache=cache, release=offline) == given


async def test_a_setting_that_does_not_run_is_refused(
    tmp_path: Path, env: dict[str, str], cache: Path, offline: Release
) -> None:
    program(tmp_path / "bin" / "temporal")
    with pytest.raises(LocalStackError, match=r"TIMEMACHINE_TEMPORAL_CLI: .* is not there"):
        await find_temporal_cli(str(tmp_path / "none"), env, cache=cache, release=offline)


async def test_path_comes_before_the_cache(tmp_path: Path, env: dict[str, str], cache: Path, offline: Release) -> None:
    on_path = program(tmp_path / "bin" / "temporal")
    program(cached(cache))
    assert await find_temporal_cli(None, env, cache=cache, release=offline) == on_path


@pytest.mark.parametrize("text", ["#!/bin/sh\nexit 1\n", "#!/bin/sh\necho another program\n", "#!/no/such/shell\n", ""])
async def test_another_program_of_that_name_is_passed_over(
    tmp_path: Path, env: dict[str, str], cache: Path, offline: Release, text: str
) -> None:
    program(tmp_path / "bin" / "temporal", text)
    program(cached(cache))
    assert await find_temporal_cli(None, env, cache=cache, release=offline) == cached(cache)


async def test_a_download_is_kept_in_the_cache(
    env: dict[str, str], cache: Path, releases: ReleaseServer, offline: Release
) -> None:
    assert await find_temporal_cli(None, env, cache=cache, release=releases.release) == cached(cache)
    assert await find_temporal_cli(None, env, cache=cache, release=offline) == cached(cache)
    assert kept(cache) == {"temporal", "lock"}
    assert cached(cache).read_text() == WORKS


@pytest.mark.parametrize(
    ("system", "machine", "name"),
    [
        ("Linux", "x86_64", "linux_amd64"),
        ("Linux", "aarch64", "linux_arm64"),
        ("Darwin", "x86_64", "darwin_amd64"),
        ("Darwin", "arm64", "darwin_arm64"),
    ],
)
async def test_each_machine_gets_its_archive(
    env: dict[str, str],
    cache: Path,
    releases: ReleaseServer,
    monkeypatch: pytest.MonkeyPatch,
    system: str,
    machine: str,
    name: str,
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    await find_temporal_cli(None, env, cache=cache, release=releases.release)
    assert releases.targets == [f"/v{TESTED.version}/temporal_cli_{TESTED.version}_{name}.tar.gz"]


async def test_a_machine_that_no_archive_is_for_builds(
    env: dict[str, str], cache: Path, releases: ReleaseServer, go: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    await find_temporal_cli(None, env, cache=cache, release=releases.release)
    assert (releases.targets, built(go)) == ([], True)


async def test_a_download_follows_a_redirect(env: dict[str, str], cache: Path, releases: ReleaseServer) -> None:
    releases.answers["/assets/1"] = releases.answer
    releases.answer = response(302, headers="location: /assets/1\r\n")
    await find_temporal_cli(None, env, cache=cache, release=releases.release)
    assert cached(cache).read_text() == WORKS


@pytest.mark.parametrize("other", [b"not what was released", b""])
async def test_an_archive_of_another_checksum_ends_it(
    env: dict[str, str], cache: Path, releases: ReleaseServer, go: Path, other: bytes
) -> None:
    releases.answer = response(200, other)
    with pytest.raises(ChecksumError, match=rf"127\.0\.0\.1:{releases.port}.* SHA-256 .* TIMEMACHINE_TEMPORAL_CLI"):
        await find_temporal_cli(None, env, cache=cache, release=releases.release)
    assert (kept(cache), built(go)) == ({"lock"}, False)


def cut(releases: ReleaseServer) -> bytes:
    """An answer that ends within the archive."""
    return response(200, releases.archive)[: len(releases.archive) // 2]


@pytest.mark.parametrize("case", ["cut", "404", "garbage", "redirect", "loop"])
async def test_a_failed_download_is_told_and_built_instead(
    env: dict[str, str],
    cache: Path,
    releases: ReleaseServer,
    go: Path,
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    releases.answer = {
        "cut": cut(releases),
        "404": response(404),
        "garbage": b"220 mail.example ESMTP\r\n",
        "redirect": response(302, headers="location: http://[\r\n"),
        "loop": response(302, headers="location: /again\r\n"),
    }[case]
    assert await find_temporal_cli(None, env, cache=cache, release=releases.release) == cached(cache)
    assert (kept(cache), built(go)) == ({"temporal", "lock"}, True)
    assert "Temporal CLI: not downloaded: " in capsys.readouterr().out


async def test_a_downloaded_program_that_does_not_run_is_built_instead(
    env: dict[str, str], cache: Path, go: Path
) -> None:
    async with releasing("#!/no/such/shell\n") as releases:
        await find_temporal_cli(None, env, cache=cache, release=releases.release)
    assert (cached(cache).read_text(), built(go)) == (WORKS, True)


async def test_a_way_out_that_is_silent_is_given_up_soon(
    env: dict[str, str], cache: Path, go: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        release = replace(TESTED, url=f"https://127.0.0.1:{silent.getsockname()[1]}")
        async with asyncio.timeout(10):
            await find_temporal_cli(None, env, cache=cache, release=release)
    assert "not downloaded: ConnectTimeout" in capsys.readouterr().out
    assert built(go)


async def test_the_proxy_of_the_environment_is_asked(
    env: dict[str, str], cache: Path, releases: ReleaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{releases.port}")
    await find_temporal_cli(None, env, cache=cache, release=replace(releases.release, url="http://releases.invalid/v1"))
    assert [target.partition("/temporal_cli_")[0] for target in releases.targets] == ["http://releases.invalid/v1"]


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "gopher://127.0.0.1:1", "http://["])
async def test_a_proxy_that_cannot_be_used_is_told(
    env: dict[str, str],
    cache: Path,
    releases: ReleaseServer,
    go: Path,
    monkeypatch: pytest.MonkeyPatch,
    proxy: str,
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    await find_temporal_cli(None, env, cache=cache, release=releases.release)
    assert built(go)


async def test_a_full_disk_is_told(
    env: dict[str, str], cache: Path, releases: ReleaseServer, go: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        await find_temporal_cli(None, env, cache=cache, release=releases.release)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "not downloaded: [Errno 27] File too large" in capsys.readouterr().out
    assert built(go)


async def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, env: dict[str, str], offline: Release) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LocalStackError, match=r"^cache folder .* XDG_CACHE_HOME sets another$"):
        await find_temporal_cli(None, env, cache=tmp_path / "file", release=offline)


async def test_several_at_once_download_it_once(env: dict[str, str], cache: Path, releases: ReleaseServer) -> None:
    found = (find_temporal_cli(None, env, cache=cache, release=releases.release) for _ in range(3))
    assert set(await asyncio.gather(*found)) == {cached(cache)}
    assert len(releases.targets) == 1


async def test_a_download_that_is_stopped_leaves_nothing(
    env: dict[str, str], cache: Path, releases: ReleaseServer
) -> None:
    releases.answer = cut(releases)
    releases.hanging_up.clear()
    finding = asyncio.create_task(find_temporal_cli(None, env, cache=cache, release=releases.release))
    await releases.answered.wait()
    finding.cancel()
    await asyncio.wait([finding])
    assert finding.cancelled()
    assert kept(cache) == {"lock"}


async def test_what_a_killed_download_left_is_removed_by_the_next(
    env: dict[str, str], cache: Path, releases: ReleaseServer
) -> None:
    whole, releases.answer = releases.answer, cut(releases)
    releases.hanging_up.clear()
    release = msgspec.json.encode(releases.release).decode()
    killed = await asyncio.create_subprocess_exec(sys.executable, "-c", FIND, cache, release, cwd=ROOT)
    await releases.answered.wait()
    killed.send_signal(signal.SIGKILL)
    await killed.wait()
    assert len(kept(cache)) == 2  # the lock, and what it had

    releases.answer = whole
    releases.hanging_up.set()
    await find_temporal_cli(None, env, cache=cache, release=releases.release)
    assert kept(cache) == {"temporal", "lock"}


async def test_a_terminal_shows_how_far_the_download_is(
    env: dict[str, str], cache: Path, releases: ReleaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        await find_temporal_cli(None, env, cache=cache, release=releases.release)
        shown = b""
        while b"ready" not in shown:
            shown += os.read(screen, 10_000)
    os.close(screen)
    assert b"\r\x1b[KTemporal CLI: 0.5 of 0.5 MB, 100 %\r\x1b[KTemporal CLI: ready" in shown


async def test_a_pipe_gets_whole_lines_only(
    env: dict[str, str], cache: Path, releases: ReleaseServer, capsys: pytest.CaptureFixture[str]
) -> None:
    await find_temporal_cli(None, env, cache=cache, release=releases.release)
    said = capsys.readouterr().out
    assert [line.split()[2] for line in said.splitlines()] == ["downloading", "ready,"]
    assert "\r" not in said


async def test_it_is_built_once_where_it_cannot_be_downloaded(
    env: dict[str, str], cache: Path, offline: Release, go: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = await asyncio.gather(*(find_temporal_cli(None, env, cache=cache, release=offline) for _ in range(3)))
    assert set(found) == {cached(cache)}
    assert go.with_name("go.log").read_text() == "ran\n"
    assert "usually 4 to 6 minutes" in capsys.readouterr().out


async def test_a_build_says_how_far_it_is(
    tmp_path: Path,
    env: dict[str, str],
    cache: Path,
    offline: Release,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    waits = "echo 'go: downloading module v1' >&2\necho package >&2\nuntil [ -e $0.go_on ]; do sleep 0.01; done\n"
    go = program(tmp_path / "bin" / "go", GO.replace("\n", f"\n{waits}", 1))
    monkeypatch.setattr(go_build, "_PROGRESS_EVERY", 0.01)
    finding = asyncio.create_task(find_temporal_cli(None, env, cache=cache, release=offline))
    said = ""
    async with asyncio.timeout(30):
        while "1 modules fetched, 1 of about" not in said:
            await asyncio.sleep(0.01)
            said += capsys.readouterr().out
    go.with_name("go.go_on").touch()
    await finding


async def test_a_broken_program_in_the_cache_is_replaced(
    env: dict[str, str], cache: Path, releases: ReleaseServer
) -> None:
    program(cached(cache), "#!/bin/sh\nexit 1\n")
    await find_temporal_cli(None, env, cache=cache, release=releases.release)
    assert cached(cache).read_text() == WORKS


async def test_without_any_way_it_says_what_was_tried_and_what_to_do(
    tmp_path: Path, env: dict[str, str], cache: Path, offline: Release
) -> None:
    program(tmp_path / "bin" / "go", "#!/bin/sh\necho no such module >&2\nexit 1\n")
    with pytest.raises(LocalStackError) as raised:
        await find_temporal_cli(None, env, cache=cache, release=offline)
    message = str(raised.value)
    for part in ("TIMEMACHINE_TEMPORAL_CLI", "TEMPORAL_ADDRESS", "not downloaded", "no such module", "no such package"):
        assert part in message

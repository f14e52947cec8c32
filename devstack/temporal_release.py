"""Downloading the `temporal` program from the releases of the Temporal CLI."""

import asyncio
import hashlib
import platform
import shutil
import tarfile
from pathlib import Path

import httpx
import msgspec

from devstack.program_cache import ChecksumError
from devstack.terminal import say, show
from timemachine.domain.errors import LocalStackError

# Without a way out it is built, so it has to be known soon that there is none.
_TIMEOUT = httpx.Timeout(15.0, connect=2.0)

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """A version of the Temporal CLI."""

    version: str

    url: str
    """Where its archives are, each named `temporal_cli_VERSION_PLATFORM.tar.gz`."""

    checksums: dict[str, str]
    """The SHA-256 of the archive of each platform, such as `linux_amd64`."""


# The checksums are from temporal-cli.hcl in github.com/cashapp/hermit-packages, which has them since the day after the
# release. Those of zph/hermit-packages, and of a Nix expression for the same four archives, are the same.
TESTED = Release(
    version="1.5.1",
    url="https://github.com/temporalio/cli/releases/download/v1.5.1",
    checksums={
        "darwin_amd64": "bbb73e2a31135abe50a1f1cdb35030c42961df618e8ce9c60ae89f201540c5d9",
        "darwin_arm64": "cca01b7ea35ad56e2a328d9ae596bf716bd22313ef63c7a761c88354457c2415",
        "linux_amd64": "ddc95e08b0b076efd4ea9733a3f488eb7d2be875f8834e616cd2a37358b4852d",
        "linux_arm64": "bd1b0db9f18b051026de8bf6cc1505f2510f14bbb7a8b9a4a91fff46c77454f5",
    },
)
"""The release that the tests run with: what is downloaded, and what is built where that cannot be."""


async def download(release: Release, folder: Path) -> Path:
    """Download the program for this machine into a folder and return its path. Proxies are the environment's.

    Raises:
        ChecksumError: The archive is another one than was released. It must not be used.
        LocalStackError: There is none for this machine, or it cannot be reached; the message says which.
        OSError: It cannot be written there.
    """
    target = _platform()
    if target not in release.checksums:
        raise LocalStackError(f"there is none for {target}")
    url = f"{release.url}/temporal_cli_{release.version}_{target}.tar.gz"
    archive = folder / "temporal.tar.gz"
    checksum = await _fetch(url, archive)
    if checksum != release.checksums[target]:
        raise ChecksumError(
            f"what was downloaded from {url} is not Temporal's release: its SHA-256 is {checksum}, and should be "
            f"{release.checksums[target]}. It was removed. A proxy may have answered in its place; else take it for an "
            "attack. With TIMEMACHINE_TEMPORAL_CLI, or with `temporal` on PATH, nothing is downloaded."
        )
    return await asyncio.to_thread(_unpack, archive, folder / "temporal")


def _platform() -> str:
    machine = platform.machine().lower()
    return f"{platform.system().lower()}_{_ARCHITECTURES.get(machine, machine)}"


async def _fetch(url: str, file: Path) -> str:
    """Download a file, showing how far it is, and return its SHA-256."""
    say(f"Temporal CLI: downloading {url}, about 50 MB")
    try:
        async with (
            httpx.AsyncClient(timeout=_TIMEOUT, follow_redirects=True) as client,
            client.stream("GET", url, headers={"accept-encoding": "identity"}) as response,
        ):
            return await _save(response.raise_for_status(), file)
    except httpx.HTTPStatusError as error:
        raise LocalStackError(f"{error.response.url} was answered {error.response.status_code}") from error
    # The last two are what a proxy of a kind that httpx does not know is refused with.
    except (httpx.HTTPError, httpx.InvalidURL, ImportError, ValueError) as error:
        raise LocalStackError(str(error) or type(error).__name__) from error
    finally:
        show("")


async def _save(response: httpx.Response, file: Path) -> str:
    length, digest = int(response.headers.get("content-length", 0)), hashlib.sha256()
    with file.open("wb") as opened:
        async for chunk in response.aiter_raw():
            opened.write(chunk)
            digest.update(chunk)
            show(f"Temporal CLI: {_progress(response.num_bytes_downloaded, length)}")
    return digest.hexdigest()


def _progress(received: int, length: int) -> str:
    megabytes = f"{received / 1e6:.1f}"
    return f"{megabytes} of {length / 1e6:.1f} MB, {received * 100 // length} %" if length else f"{megabytes} MB"


def _unpack(archive: Path, program: Path) -> Path:
    with tarfile.open(archive) as opened, program.open("wb") as file:
        packed = opened.extractfile(program.name)
        if packed is None:
            raise LocalStackError(f"{program.name} in {archive} is no file")
        shutil.copyfileobj(packed, file)
    program.chmod(0o755)
    return program

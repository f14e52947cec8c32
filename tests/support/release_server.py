"""The place of the Temporal CLI's releases, over a real socket."""

import asyncio
import io
import os
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256

from devstack.temporal_release import TESTED, Release
from tests.support.receiver import response


def archive_of(program: str) -> bytes:
    """Return an archive as they are released. It is too large to arrive at once."""
    files = {"LICENSE": os.urandom(500_000), "temporal": program.encode()}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


class ReleaseServer:
    """Answers each request with `answer`, or with what `answers` has for its target, and hangs up."""

    def __init__(self, archive: bytes) -> None:
        self.port = 0
        self.archive = archive
        self.answer = response(200, archive)
        self.answers: dict[str, bytes] = {}
        self.targets: list[str] = []
        self.answered = asyncio.Event()
        self.hanging_up = asyncio.Event()
        self.hanging_up.set()

    @property
    def release(self) -> Release:
        """A release whose archives are all `archive`, and are here."""
        return Release(
            version=TESTED.version,
            url=f"http://127.0.0.1:{self.port}/v{TESTED.version}",
            checksums=dict.fromkeys(TESTED.checksums, sha256(self.archive).hexdigest()),
        )

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        target = head.split()[1].decode()
        self.targets.append(target)
        writer.write(self.answers.get(target, self.answer))
        await writer.drain()
        self.answered.set()
        await self.hanging_up.wait()
        writer.close()


@asynccontextmanager
async def releasing(program: str) -> AsyncIterator[ReleaseServer]:
    """Listen on a free loopback port, with an archive of the program."""
    releases = ReleaseServer(archive_of(program))
    server = await asyncio.start_server(releases._handle, "127.0.0.1", 0)
    releases.port = server.sockets[0].getsockname()[1]
    try:
        yield releases
    finally:
        server.close()
        releases.hanging_up.set()

"""Keys of the API, for operators: `python -m timemachine.keys create|list|rotate|revoke`.

It needs TIMEMACHINE_POSTGRES_DSN, as the API does, and no key: whoever may write to the database may do everything.
"""

import argparse
import asyncio
import logging
import os
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from timemachine.domain.audit import COMMAND_LINE
from timemachine.domain.errors import TimemachineError
from timemachine.domain.keys import ApiKey, KeyRequest, RequestsPerSecond, Role
from timemachine.postgres.key_store import KeyPosition, KeyStore
from timemachine.postgres.pool import open_pool
from timemachine.process import exit_process
from timemachine.settings import Settings
from timemachine.telemetry import configure_logging

log = logging.getLogger("keys")

MAX_OVERLAP = timedelta(days=7)

_PAGE = 200
_UNITS = {"s": timedelta(seconds=1), "m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}
_DURATION = re.compile(r"(\d{1,6})([smhd])")


async def create(store: KeyStore, given: argparse.Namespace) -> None:
    """Make a key, and print it: it cannot be shown again."""
    expires_at = None if given.expires_in is None else datetime.now(UTC) + given.expires_in
    asked = KeyRequest(
        name=given.name,
        role=Role(given.role),
        dbs=tuple(given.db) if given.db else None,
        expires_at=expires_at,
        requests_per_second=given.requests_per_second,
    )
    _, new = await store.create(asked, COMMAND_LINE)
    _print(new.text)


async def list_keys(store: KeyStore, _: argparse.Namespace) -> None:
    """Print a line for each key, the newest first, without its secret."""
    after: KeyPosition | None = None
    while True:
        page = await store.page(COMMAND_LINE, limit=_PAGE, after=after)
        if after is None:
            _print("\t".join(_COLUMNS))
        for key in page.keys:
            _print("\t".join(_cells(key)))
        after = page.next
        if after is None:
            break


async def rotate(store: KeyStore, given: argparse.Namespace) -> None:
    """Give a key a new secret, and print the whole key: it cannot be shown again."""
    _, new = await store.rotate(given.id, given.overlap, COMMAND_LINE)
    _print(new.text)


async def revoke(store: KeyStore, given: argparse.Namespace) -> None:
    """Revoke a key. The last admin key, too: another one can be made here at any time."""
    await store.revoke(given.id, COMMAND_LINE, keep_admin=False)
    _print(f"revoked: {given.id}; every API process refuses it within 5 s")


_COLUMNS = ("ID", "NAME", "ROLE", "DBS", "CREATED", "BY", "LAST USED", "STATE")


def _cells(key: ApiKey) -> list[str]:
    return [
        key.id,
        key.name,
        key.role,
        "all" if key.dbs is None else ",".join(key.dbs),
        _time(key.created_at),
        key.created_by or "command line",
        _time(key.last_used_at),
        _state(key, datetime.now(UTC)),
    ]


def _state(key: ApiKey, now: datetime) -> str:
    if key.revoked_at is not None:
        return f"revoked {_time(key.revoked_at)}"
    if key.expires_at is None:
        return "valid"
    return f"{'valid until' if key.is_valid(now) else 'expired'} {_time(key.expires_at)}"


def _time(at: datetime | None) -> str:
    return "never" if at is None else at.astimezone(UTC).isoformat(timespec="seconds")


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")


def _duration(text: str) -> timedelta:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text}: a number with s, m, h or d is needed, such as 24h")
    return int(found[1]) * _UNITS[found[2]]


def _overlap(text: str) -> timedelta:
    overlap = timedelta() if text == "0" else _duration(text)
    if overlap > MAX_OVERLAP:
        raise argparse.ArgumentTypeError(f"{text}: at most 7d are allowed")
    return overlap


def _rate(text: str) -> float:
    try:
        return msgspec.convert(text, RequestsPerSecond, strict=False)
    except msgspec.ValidationError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m timemachine.keys", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="create|list|rotate|revoke")
    making = commands.add_parser("create", help="make a key, and print it once")
    making.add_argument("--name", required=True, help="what it is for")
    making.add_argument("--role", required=True, choices=[str(role) for role in Role])
    making.add_argument("--db", action="append", metavar="DB", help="a db that it opens, once for each; all without it")
    making.add_argument("--expires-in", type=_duration, metavar="90d", help="when it expires; never without it")
    making.add_argument("--requests-per-second", type=_rate, metavar="N", help="its own limit, per API process")
    making.set_defaults(command=create)
    listing = commands.add_parser("list", help="list all keys, without their secrets")
    listing.set_defaults(command=list_keys)
    rotating = commands.add_parser("rotate", help="give a key a new secret, and print it once")
    rotating.add_argument("id")
    rotating.add_argument(
        "--overlap",
        type=_overlap,
        default=timedelta(days=1),
        metavar="24h",
        help="how long the present one stays valid",
    )
    rotating.set_defaults(command=rotate)
    revoking = commands.add_parser("revoke", help="revoke a key for good")
    revoking.add_argument("id")
    revoking.set_defaults(command=revoke)
    return parser


async def _run(given: argparse.Namespace, settings: Settings) -> None:
    async with open_pool(settings) as pool:
        await given.command(KeyStore(pool), given)


def main(arguments: Sequence[str]) -> int:
    """Do what is asked, and return the exit status."""
    given = _parser().parse_args(arguments)
    configure_logging()
    try:
        asyncio.run(_run(given, Settings.from_env(os.environ)))
    except TimemachineError as error:
        log.error("cannot do that", extra={"reason": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    exit_process(main(sys.argv[1:]))

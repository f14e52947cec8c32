"""What is known of the keys that clients sent in the last seconds, so that few requests ask Postgres for theirs."""

import asyncio
import logging
import time
from collections import OrderedDict
from contextlib import suppress
from contextvars import Context
from datetime import UTC, datetime

import msgspec

from timemachine import metrics
from timemachine.domain.errors import UnavailableError
from timemachine.domain.keys import ApiKey, PresentedKey, is_same_hash
from timemachine.postgres.key_store import KeyStore, StoredKey

log = logging.getLogger(__name__)

KEPT = 5.0
"""Seconds that what is known of a key is used: within them a revocation takes effect everywhere."""

KEPT_WITHOUT_POSTGRES = 600.0
"""Seconds that a key is used which was valid, while Postgres does not answer."""

KNOWN_LIMIT = 2.0
"""Seconds that Postgres gets to say whether a key is valid still, before it counts as not answering."""

REMEMBERED = 10_000
"""Valid keys, and keys that are not, that are remembered: each take some hundred bytes."""

LOOK_UP_PAUSE = 0.02
"""Seconds between two queries for keys. All that are waited for are in one."""

USE_NOTED_EVERY = 60.0
"""Seconds after which the use of a key is written again."""


class CheckedKey(msgspec.Struct, frozen=True):
    """What is known of a key that a client sent."""

    asked_at: float
    """When Postgres was asked, by the clock of the loop."""
    key: ApiKey | None
    """None where it is not valid."""
    reason: str = ""
    """Why it is not valid, for the log."""
    expires_at: datetime | None = None
    """When the key, or this secret of it, expires."""


class KeyCache:
    """Says whether a key is valid."""

    def __init__(self, store: KeyStore) -> None:
        """Take the keys. `close` it in the end."""
        self._look_ups = _LookUps(store)
        self._uses = _LastUses(store)
        # Apart, so that any number of wrong keys makes no valid one forgotten.
        self._valid = _Remembered()
        self._refused = _Remembered()

    async def check(self, presented: PresentedKey) -> tuple[ApiKey | None, str]:
        """Return the key, and None with the reason where it is not valid now.

        Raises:
            UnavailableError: Postgres does not answer, and the key was not valid when it last did.
        """
        checked = await self._find(presented)
        if checked.expires_at is not None and checked.expires_at <= datetime.now(UTC):
            return None, "expired"
        if checked.key is not None:
            self._uses.note(checked.key.id)
        return checked.key, checked.reason

    async def close(self) -> None:
        """Write what is still to be written."""
        await self._look_ups.close()
        await self._uses.close()

    async def _find(self, presented: PresentedKey) -> CheckedKey:
        now = time.monotonic()
        cached = self._valid.get(presented) or self._refused.get(presented)
        if cached is not None and now - cached.asked_at < KEPT:
            return cached
        is_known = cached is not None and cached.key is not None
        try:
            async with asyncio.timeout(KNOWN_LIMIT if is_known else None):
                stored = await self._look_ups.find(presented.id)
        except (UnavailableError, TimeoutError):
            if cached is not None and is_known and now - cached.asked_at < KEPT_WITHOUT_POSTGRES:
                return cached
            raise UnavailableError("Postgres does not answer") from None
        return self._keep(presented, _checked(presented, stored, now))

    def _keep(self, presented: PresentedKey, checked: CheckedKey) -> CheckedKey:
        kept, other = (self._valid, self._refused) if checked.key else (self._refused, self._valid)
        kept.put(presented, checked)
        other.pop(presented)
        return checked


def _checked(presented: PresentedKey, stored: StoredKey | None, asked_at: float) -> CheckedKey:
    """Return what the keys in Postgres say of one that was sent."""
    if stored is None:
        return CheckedKey(asked_at, None, "unknown")
    secret = next((secret for secret in stored.secrets if is_same_hash(secret.hash, presented.hash)), None)
    if secret is None:
        return CheckedKey(asked_at, None, "wrong secret")
    if stored.key.revoked_at is not None:
        return CheckedKey(asked_at, None, "revoked")
    ends = [at for at in (secret.expires_at, stored.key.expires_at) if at is not None]
    return CheckedKey(asked_at, stored.key, expires_at=min(ends, default=None))


class _Remembered:
    """The keys that were asked for last."""

    def __init__(self) -> None:
        self._checked: OrderedDict[PresentedKey, CheckedKey] = OrderedDict()

    def get(self, presented: PresentedKey) -> CheckedKey | None:
        if presented in self._checked:
            self._checked.move_to_end(presented)
        return self._checked.get(presented)

    def put(self, presented: PresentedKey, checked: CheckedKey) -> None:
        self._checked[presented] = checked
        if len(self._checked) > REMEMBERED:
            self._checked.popitem(last=False)

    def pop(self, presented: PresentedKey) -> None:
        self._checked.pop(presented, None)


class _LookUps:
    """Asks Postgres for keys, with one query at a time, however many are sent."""

    def __init__(self, store: KeyStore) -> None:
        self._store = store
        self._waiting: dict[str, asyncio.Future[StoredKey | None]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def find(self, key_id: str) -> StoredKey | None:
        """Return a key as it is now, or None where there is none.

        Raises:
            UnavailableError: Postgres does not answer.
        """
        answer = self._waiting.get(key_id)
        if answer is None:
            answer = self._waiting[key_id] = asyncio.get_running_loop().create_future()
            answer.add_done_callback(_retrieve)
        if self._asking is None or self._asking.done():
            # It goes on for other requests: its lines in the log must not have the id of the one that began it.
            self._asking = asyncio.create_task(self._ask(), context=Context())
        return await asyncio.shield(answer)

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            with suppress(asyncio.CancelledError):
                await self._asking

    async def _ask(self) -> None:
        while self._waiting:
            # Whoever comes from now on waits for the next query: this one may have read what they ask for already.
            asked, self._waiting = self._waiting, {}
            try:
                found = await self._store.find(list(asked))
            except Exception as error:
                for answer in asked.values():
                    answer.set_exception(error)
            else:
                for key_id, answer in asked.items():
                    answer.set_result(found.get(key_id))
            await asyncio.sleep(LOOK_UP_PAUSE)


def _retrieve(answer: asyncio.Future[StoredKey | None]) -> None:
    """Keep asyncio from logging the error of a look-up that nobody waits for any more."""
    if not answer.cancelled():
        answer.exception()


class _LastUses:
    """Writes when keys were used, beside the requests."""

    def __init__(self, store: KeyStore) -> None:
        self._store = store
        self._noted_at: OrderedDict[str, float] = OrderedDict()
        self._writing: set[asyncio.Task[None]] = set()

    def note(self, key_id: str) -> None:
        now = time.monotonic()
        if now - self._noted_at.get(key_id, -USE_NOTED_EVERY) < USE_NOTED_EVERY:
            return
        self._noted_at[key_id] = now
        self._noted_at.move_to_end(key_id)
        if len(self._noted_at) > REMEMBERED:
            self._noted_at.popitem(last=False)
        task = asyncio.create_task(self._write(key_id, datetime.now(UTC)))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def close(self) -> None:
        await asyncio.gather(*self._writing, return_exceptions=True)

    async def _write(self, key_id: str, at: datetime) -> None:
        try:
            await self._store.note_use(key_id, at)
        except UnavailableError as error:
            metrics.WRITE_FAILURES.add("api_keys")
            log.warning("use of a key not noted", extra={"key": key_id, "reason": str(error)})

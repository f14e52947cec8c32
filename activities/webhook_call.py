"""The call of a receiver: slot, POST, and what is made of the response."""

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from activities.attempt_report import (
    deferral,
    expired_report,
    explain_tls_error,
    failed_report,
    log_entry,
    record_lateness,
    taken_report,
)
from activities.route_slots import RouteSlots
from timemachine.clock import boot_time
from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.delivery import GONE, Delivery, RequestResult, attempt_headers, describe, expired, without
from timemachine.domain.errors import (
    BlockedAddressError,
    NoAnswerError,
    NoSlotError,
    NotSentError,
    OwnFaultError,
    UnavailableError,
    WebhookUrlError,
)
from timemachine.domain.outcomes import Deferred
from timemachine.domain.retry import Retry
from timemachine.domain.routes import RouteState, target_url
from timemachine.domain.signing import repeats_secret, signatures
from timemachine.postgres.attempt_log import Attempt
from timemachine.postgres.delivery_ledger import AttemptReport, Begun
from timemachine.postgres.route_store import RouteStore, Target
from timemachine.settings import Settings
from timemachine.webhooks.client import WebhookClient, WebhookResponse

log = logging.getLogger(__name__)

INTERNAL_ERROR = "an internal error; the worker's log has it"

POSTGRES_RETRY = 5.0
OWN_FAULT_RETRY = 5.0
"""Seconds after which an attempt is asked for again that Postgres, or this machine, stood in the way of."""


class WebhookCalls:
    """Calls receivers with what a worker shares among its attempts."""

    def __init__(self, routes: RouteStore, webhooks: WebhookClient, settings: Settings) -> None:
        """Take the clients of Postgres and of the receivers."""
        self._routes = routes
        self._webhooks = webhooks
        # Of routes with a limit of their own: asked once that was read, so that a changed one counts at once.
        self._limited = RouteSlots(settings.max_deliveries)
        self._default_scheme = settings.default_scheme
        self._default_timeout = settings.delivery_timeout
        self._disable_after = timedelta(hours=settings.disable_after_hours)

    async def call(
        self, delivery: Delivery, begun: Begun, begin_by: float, note_attempt: Callable[[], None]
    ) -> AttemptReport | Deferred:
        """POST the job, and return how the attempt ended, or why it was not made.

        Args:
            begin_by: Boot time after which it is not made any more.
            note_attempt: Called when the receiver is about to be called.
        """
        job, target = delivery.job, begun.target
        if expired(job, datetime.now(UTC)):
            return expired_report("the deadline has passed", begun.number)
        if target is None:
            result = RequestResult(kind=AttemptKind.REFUSED)
            return failed_report(f"no route {job.route} in {job.db}", job, job.retry or Retry(), begun.number, result)
        try:
            async with self._slot(delivery, target.route.max_in_flight):
                if boot_time() > begin_by:
                    return deferral("the worker was stopped meanwhile", 1.0)
                note_attempt()
                return await self._post(delivery, target, begun.number, begin_by)
        except NoSlotError as error:
            return deferral(str(error), error.after)
        except UnavailableError as error:
            return deferral(str(error), POSTGRES_RETRY)
        except NotSentError:
            return deferral("the worker was stopped meanwhile", 1.0)
        except OwnFaultError as error:
            log.error("attempt not made", extra={"reason": str(error), "job_id": job.id, "route": job.route_key})
            return deferral(str(error), OWN_FAULT_RETRY)

    @asynccontextmanager
    async def _slot(self, delivery: Delivery, limit: int | None) -> AsyncIterator[None]:
        """Hold one of the slots of a route with a limit of its own: on this worker, and then among all.

        Raises:
            NoSlotError, UnavailableError: There is none now, or nobody can tell.
        """
        job = delivery.job
        if limit is None:
            yield
            return
        self._limited.set_limit(job.route_key, limit)
        async with (
            self._limited.slot(job.route_key) as note_attempt,
            self._routes.in_flight_slot(job.db, job.route, delivery.run_id, limit),
        ):
            note_attempt()
            yield

    async def _post(self, delivery: Delivery, target: Target, number: int, begin_by: float) -> AttemptReport:
        """POST once.

        Raises:
            NotSentError, OwnFaultError: Nothing was sent.
        """
        job, started, began = delivery.job, datetime.now(UTC), boot_time()
        result, reason, body = await self._result(delivery, target, number, begin_by)
        if number == 1 and not job.message_id:
            record_lateness(job, started)
        row = log_entry(delivery, number, started, boot_time() - began, result, reason, body)
        if reason is None:
            return taken_report(job, row, number)
        return failed_report(reason, job, job.retry or target.route.retry, number, result, row)

    async def _result(
        self, delivery: Delivery, target: Target, number: int, begin_by: float
    ) -> tuple[RequestResult, str | None, bytes]:
        """Return how a request ended, why the receiver did not take the job, and what is kept of its response."""
        try:
            response = await self._response(delivery, target, number, begin_by)
        except NoAnswerError as error:
            if isinstance(error, BlockedAddressError):
                log.warning("target blocked", extra={"detail": error.detail, "route": delivery.job.route_key})
            return RequestResult(kind=error.kind), explain_tls_error(error, target.route.webhook_url), b""
        except WebhookUrlError as error:
            return RequestResult(kind=AttemptKind.BLOCKED), str(error), b""
        except (NotSentError, OwnFaultError):
            raise
        except Exception:
            # Not known to be taken, as when a connection breaks; and an attempt, or it would be made for ever.
            log.exception("attempt broke off", extra={"job_id": delivery.job.id, "route": delivery.job.route_key})
            return RequestResult(kind=AttemptKind.PROTOCOL), INTERNAL_ERROR, b""
        body = without(response.body, target.headers.values())
        if repeats_secret(body, target.secrets):  # a page for debugging may show what a receiver is set up with
            body = b""
        if response.taken:
            return RequestResult(kind=AttemptKind.TAKEN, status=response.status), None, body
        refused = RequestResult(kind=AttemptKind.REFUSED, status=response.status, retry_after=response.retry_after)
        return refused, describe(response.status, body), body

    async def _response(self, delivery: Delivery, target: Target, number: int, begin_by: float) -> WebhookResponse:
        url = target_url(target.route.webhook_url, default_scheme=self._default_scheme)
        body, timestamp = bytes(delivery.job.meta), int(time.time())
        signed = signatures(target.secrets, delivery.message_id, timestamp, body)
        headers = target.headers | attempt_headers(delivery, number, timestamp) | {"webhook-signature": signed}
        timeout = target.route.timeout or self._default_timeout
        # It is over by then if this process runs; and if it does not, the claim holds for some seconds more.
        until = begin_by + timeout
        return await self._webhooks.post(url, body, headers, timeout=timeout, may_send=lambda: boot_time() < until)

    async def note(self, target: Target, attempt: Attempt) -> None:
        """Note what an attempt means for its route. Best effort: the ledger has the outcome."""
        try:
            if attempt.kind is AttemptKind.TAKEN:
                if target.failing:
                    await self._routes.note_success(attempt.db, attempt.route_id)
            elif attempt.status == GONE:
                await self._routes.set_state(
                    attempt.db, attempt.route_id, RouteState.DISABLED, "the receiver answered 410 Gone"
                )
            else:
                await self._routes.note_failure(attempt.db, attempt.route_id, disable_after=self._disable_after)
        except Exception as error:
            log.warning("route's failures not noted", extra={"reason": str(error), "job_id": attempt.job_id})

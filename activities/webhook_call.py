"""The call of a receiver: slot, POST, and what is made of the response."""

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

from activities.attempt_report import (
    deferral,
    expired_report,
    explain_tls_error,
    failed_report,
    request_report,
)
from activities.attempt_span import attempt_attributes, note_result, target_attributes
from activities.route_slots import RouteSlots
from activities.webhook_request import INTERNAL_ERROR, WebhookRequest
from timemachine import metrics, tracing
from timemachine.clock import boot_time
from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.delivery import Delivery, RequestResult, attempt_headers, describe, expired, without
from timemachine.domain.errors import (
    BlockedAddressError,
    NoAnswerError,
    NoSlotError,
    NotSentError,
    OwnFaultError,
    UnavailableError,
    WebhookUrlError,
)
from timemachine.domain.jobs import Job
from timemachine.domain.outcomes import Deferred
from timemachine.domain.routes import target_url
from timemachine.domain.signing import repeats_secret, signatures
from timemachine.postgres.attempt_log import Attempt
from timemachine.postgres.delivery_ledger import AttemptReport, Begun
from timemachine.postgres.route_store import RouteStore, Target
from timemachine.settings import Settings
from timemachine.telemetry import add_log_fields
from timemachine.webhooks.client import WebhookClient, WebhookResponse

log = logging.getLogger(__name__)

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
        """POST the job, and return how the attempt ended, or why it was not made. Raises nothing, whatever goes wrong.

        What goes wrong before the receiver is called uses no attempt up. What goes wrong after that does not take back
        what the receiver answered.

        Args:
            begin_by: Boot time after which it is not made any more.
            note_attempt: Called when the receiver is about to be called.
        """
        job, request = delivery.job, WebhookRequest()
        try:
            return await self._call(delivery, begun, begin_by, note_attempt, request)
        except Exception as error:
            if request.result is None:
                return not_made(job, error)
            log.exception("attempt broke off", extra={"job_id": job.id, "route": job.route_key})
            return request_report(delivery, begun, request)

    async def _call(
        self,
        delivery: Delivery,
        begun: Begun,
        begin_by: float,
        note_attempt: Callable[[], None],
        request: WebhookRequest,
    ) -> AttemptReport:
        """POST the job if it is to be, and note in `request` what becomes known of it.

        Raises:
            Exception: Anything; nothing was sent if `request` has no result.
        """
        job, target = delivery.job, begun.target
        if expired(job, begun.now()):
            return expired_report("the deadline has passed", begun.number)
        if target is None:
            return failed_report(
                f"no route {job.route} in {job.db}", job, begun, RequestResult(kind=AttemptKind.REFUSED)
            )
        async with self._slot(delivery, target.route.max_in_flight):
            if boot_time() > begin_by:
                raise NotSentError
            if expired(job, begun.now()):
                return expired_report("the deadline has passed", begun.number)
            note_attempt()
            await self._post_traced(delivery, target, begun.number, begin_by, request)
        return request_report(delivery, begun, request)

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

    async def _post_traced(
        self, delivery: Delivery, target: Target, number: int, begin_by: float, request: WebhookRequest
    ) -> None:
        """POST once, as the first request of a trace of its own, whose id all later lines of the attempt have.

        A part of the trace in which the job was created would be a part of one that ended months ago.

        Raises:
            NotSentError, OwnFaultError: Nothing was sent.
        """
        attributes = attempt_attributes(delivery, number)
        with tracing.client_span("POST", attributes, links=delivery.job.trace_links) as request.span:
            add_log_fields(**request.span.log_fields)
            await self._post(delivery, target, number, begin_by, request)
            note_result(delivery, number, request)

    async def _post(
        self, delivery: Delivery, target: Target, number: int, begin_by: float, request: WebhookRequest
    ) -> None:
        """POST once, and note in `request` what becomes known of it.

        Raises:
            NotSentError, OwnFaultError: Nothing was sent.
        """
        try:
            response = await self._response(delivery, target, number, begin_by, request)
        except NoAnswerError as error:
            if isinstance(error, BlockedAddressError):
                log.warning("target blocked", extra={"detail": error.detail, "route": delivery.job.route_key})
            request.end(RequestResult(kind=error.kind), explain_tls_error(error, target.route.webhook_url))
        except WebhookUrlError as error:
            request.end(RequestResult(kind=AttemptKind.BLOCKED), str(error))
        except (NotSentError, OwnFaultError):
            request.give_back()
            raise
        else:
            _read(response, target, request)

    async def _response(
        self, delivery: Delivery, target: Target, number: int, begin_by: float, request: WebhookRequest
    ) -> WebhookResponse:
        url = target_url(target.route.webhook_url, default_scheme=self._default_scheme)
        body, timestamp = bytes(delivery.job.meta), int(time.time())
        signed = signatures(target.secrets, delivery.message_id, timestamp, body)
        headers = target.headers | attempt_headers(delivery, number, timestamp) | {"webhook-signature": signed}
        request.span.set(target_attributes(url))
        timeout = target.route.timeout or self._default_timeout
        # It is over by then if this process runs; and if it does not, the claim holds for some seconds more.
        until = begin_by + timeout
        with request.under_way():
            return await self._webhooks.post(
                url, body, headers | request.span.headers, timeout=timeout, may_send=lambda: boot_time() < until
            )

    async def note_failure(self, attempt: Attempt) -> None:
        """Note for its route that an attempt failed. Best effort: the next one that fails notes the same."""
        try:
            await self._routes.note_failure(attempt.db, attempt.route_id, disable_after=self._disable_after)
        except Exception as error:
            metrics.WRITE_FAILURES.add("routes")
            log.warning("route's failures not noted", extra={"reason": str(error), "job_id": attempt.job_id})


def _read(response: WebhookResponse, target: Target, request: WebhookRequest) -> None:
    """Note what a receiver answered, first what decides, and what is kept of the answer's body."""
    if response.taken:
        request.end(RequestResult(kind=AttemptKind.TAKEN, status=response.status), None)
    else:
        refused = RequestResult(kind=AttemptKind.REFUSED, status=response.status, retry_after=response.retry_after)
        request.end(refused, describe(response.status, b""))
    body = without(response.body, target.headers.values())
    if not repeats_secret(body, target.secrets):  # a page for debugging may show what a receiver is set up with
        request.body = body
        request.reason = None if response.taken else describe(response.status, body)


def not_made(job: Job, error: Exception) -> Deferred:
    """Return that an attempt was not made, because of an error that came before the receiver was called."""
    if isinstance(error, NoSlotError):
        metrics.SLOTS_UNAVAILABLE.add()
        return deferral(str(error), error.after)
    if isinstance(error, UnavailableError):
        return deferral(str(error), POSTGRES_RETRY)
    if isinstance(error, NotSentError):
        return deferral("the worker was stopped meanwhile", 1.0)
    extra = {"reason": str(error), "job_id": job.id, "route": job.route_key}
    if isinstance(error, OwnFaultError):
        log.error("attempt not made", extra=extra)
        return deferral(str(error), OWN_FAULT_RETRY)
    log.error("attempt not made", exc_info=error, extra=extra)
    return deferral(INTERNAL_ERROR, OWN_FAULT_RETRY)

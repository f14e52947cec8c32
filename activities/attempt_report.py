"""What the ledger and the log of attempts are told of an attempt, and when it is made again."""

import logging
import random
from datetime import UTC, datetime

from msgspec.structs import replace
from temporalio import activity

from activities.webhook_request import WebhookRequest
from timemachine import metrics
from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.delivery import Delivery, RequestResult, expired, has_lateness, route_news, wait_after
from timemachine.domain.errors import NoAnswerError
from timemachine.domain.jobs import Job, to_ms
from timemachine.domain.outcomes import AttemptResult, Deferred
from timemachine.domain.retry import Retry
from timemachine.domain.routes import has_scheme
from timemachine.postgres.attempt_log import Attempt
from timemachine.postgres.delivery_ledger import AttemptReport, Begun

log = logging.getLogger(__name__)


def now_ms() -> int:
    """Return the time in milliseconds since the epoch, by the worker's clock."""
    return to_ms(datetime.now(UTC))


def deferral(reason: str, wait: float) -> Deferred:
    """Return that no attempt was made. Those that were put off together do not come back together."""
    next_in = wait * random.uniform(1, 1.2)  # noqa: S311 - guards nothing
    return Deferred(reason=reason, next_at=now_ms() + int(1000 * next_in), next_in=next_in)


def explain_tls_error(error: NoAnswerError, webhook_url: str) -> str:
    """Return an error's message, with what was assumed where that may be what is wrong."""
    if error.kind is not AttemptKind.TLS or has_scheme(webhook_url):
        return str(error)
    return (
        f"{error}; https:// was put before the webhook_url, which has no scheme: for a receiver without TLS write "
        "http:// before it"
    )


def not_made_report(reason: str) -> AttemptReport:
    """Return the end of an attempt that uses nothing up, with the reason for whoever looks at the job."""
    return AttemptReport(
        counts=False,
        outcome=AttemptResult(number=0, kind=AttemptKind.NOT_MADE, reason=reason, ended_at=now_ms()),
    )


def expired_report(reason: str, number: int) -> AttemptReport:
    """Return the end of a job whose attempt with this number is not made, and none after it."""
    outcome = AttemptResult(number=number - 1, kind=AttemptKind.EXPIRED, reason=reason, ended_at=now_ms())
    return AttemptReport(counts=True, attempts=number - 1, outcome=outcome)


def request_report(delivery: Delivery, begun: Begun, request: WebhookRequest) -> AttemptReport:
    """Return the end of an attempt whose request was made, of which only the log's entry may be missing."""
    job, result = delivery.job, request.result or RequestResult(kind=AttemptKind.PROTOCOL)
    row = None
    try:
        _count(job, begun.number, result, request)
        row = _log_entry(delivery, begun.number, result, request)
    except Exception:
        metrics.WRITE_FAILURES.add("attempts")
        log.exception("attempt not logged", extra={"job_id": job.id, "route": job.route_key})
    if request.reason is None:
        report = _taken_report(job, result, request.started_at, begun.number, row)
    else:
        report = failed_report(request.reason, job, begun, result, row)
    since = begun.target.failing_since if begun.target else None
    return replace(report, route_news=route_news(result, is_failing=since is not None), failing_since=since)


def _taken_report(
    job: Job, result: RequestResult, started: datetime, number: int, row: Attempt | None
) -> AttemptReport:
    """Return the end of an attempt by which the receiver took the job."""
    late_ms = to_ms(started) - job.trigger_time
    outcome = AttemptResult(
        number=number, kind=AttemptKind.TAKEN, status=result.status, ended_at=now_ms(), late_ms=late_ms
    )
    log.info("job delivered", extra=job.log_fields | {"attempt_number": number, "late_ms": late_ms})
    return AttemptReport(counts=True, attempts=number, outcome=outcome, logged=row)


def failed_report(
    reason: str, job: Job, begun: Begun, result: RequestResult, row: Attempt | None = None
) -> AttemptReport:
    """Return the end of an attempt that failed, with the wait until the next one, if there is to be one."""
    now, number = begun.now(), begun.number
    retry = job.retry or (begun.target.route.retry if begun.target else Retry())
    wait = wait_after(result, retry, number, now=now, jitter=random.random())  # noqa: S311 - guards nothing
    if wait is not None and expired(job, now + wait):
        wait, reason = None, f"{reason}; the deadline is before the next attempt"
    log.warning(
        "attempt failed" if wait is not None else "job failed",
        extra={
            **job.log_fields,
            "attempt_number": number,
            "reason": reason,
            "next_in_seconds": round(wait.total_seconds(), 1) if wait is not None else None,
        },
    )
    outcome = AttemptResult(number=number, kind=result.kind, status=result.status, reason=reason, ended_at=now_ms())
    return AttemptReport(counts=True, attempts=number, outcome=outcome, wait=wait, logged=row)


def _log_entry(delivery: Delivery, number: int, result: RequestResult, request: WebhookRequest) -> Attempt:
    """Return the attempt as the log keeps it."""
    job = delivery.job
    return Attempt(
        db=job.db,
        collection=job.collection,
        job_id=job.id,
        route_id=job.route,
        run_id=activity.info().workflow_run_id or delivery.run_id,
        message_id=delivery.message_id,
        attempt=number,
        started_at=request.started_at,
        duration_ms=int(request.seconds * 1000),
        status=result.status,
        kind=result.kind,
        error=request.reason,
        answer=request.body,
        worker=activity.client().identity,
    )


def _count(job: Job, number: int, result: RequestResult, request: WebhookRequest) -> None:
    """Count a request, and how late it began where that tells something."""
    route = metrics.webhook_route(job.route_key)
    metrics.ATTEMPTS.add(result.kind, route)
    metrics.ATTEMPT_DURATION.record(request.seconds, result.kind, route)
    if has_lateness(job, number):
        metrics.LATENESS.record((to_ms(request.started_at) - job.trigger_time) / 1000, route)

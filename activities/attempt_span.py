"""What the span of a request to a receiver tells: neither the job's meta, nor a secret, nor what the receiver says."""

from urllib.parse import urlsplit

from activities.webhook_request import WebhookRequest
from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.delivery import Delivery, has_lateness
from timemachine.domain.jobs import to_ms
from timemachine.tracing import Attributes

_PORTS = {"http": 80, "https": 443}


def attempt_attributes(delivery: Delivery, number: int) -> Attributes:
    """Return which job's attempt it is.

    Args:
        number: Of the attempt, from 1.
    """
    job = delivery.job
    again = {"http.request.resend_count": number - 1} if number > 1 else {}
    return {
        "http.request.method": "POST",
        "timemachine.db": job.db,
        "timemachine.collection": job.collection,
        "timemachine.job_id": job.id,
        "timemachine.route": job.route,
        "timemachine.run_id": delivery.run_id,
        "timemachine.message_id": delivery.message_id,
        **again,
    }


def target_attributes(url: str) -> Attributes:
    """Return where the request goes. Of the URL only the host is told: paths and queries of webhooks hold tokens."""
    parts = urlsplit(url)
    return {
        "url.full": f"{parts.scheme}://{parts.netloc}/REDACTED",
        "server.address": parts.hostname or "",
        "server.port": parts.port or _PORTS[parts.scheme],
    }


def note_result(delivery: Delivery, number: int, request: WebhookRequest) -> None:
    """Tell how a request ended, and how late it began where that tells something."""
    span, result = request.span, request.result
    if result is None:
        return
    if has_lateness(delivery.job, number):
        span.set({"timemachine.lateness_ms": to_ms(request.started_at) - delivery.job.trigger_time})
    if result.status is not None:
        span.set({"http.response.status_code": result.status})
    if result.kind is not AttemptKind.TAKEN:
        span.fail(result.kind if result.status is None else str(result.status))

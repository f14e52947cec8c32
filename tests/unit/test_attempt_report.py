"""What an attempt says to whoever looks at the job, and what is counted of it."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from msgspec import Raw
from msgspec.structs import replace
from temporalio.common import MetricMeter

from activities.attempt_report import explain_tls_error, request_report
from activities.webhook_request import WebhookRequest
from tests.support.meters import Counted
from timemachine import metrics
from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.delivery import Delivery, RequestResult
from timemachine.domain.errors import NoAnswerError
from timemachine.domain.jobs import Job
from timemachine.domain.stored_names import EVENTS_COLLECTION
from timemachine.postgres.delivery_ledger import Begun

WITHOUT_TLS = "TLS failed: wrong version number"
JOB = Job(db="d", collection="c", id="j-1", trigger_time=0, route="hook", meta=Raw(b"{}"))


@pytest.fixture
def counted() -> Iterator[Counted]:
    yield Counted()
    metrics.export_to(MetricMeter.noop)


@pytest.mark.parametrize(
    ("job", "number", "times"),
    [
        (JOB, 1, 1),
        (JOB, 2, 0),
        (replace(JOB, message_id="msg_1"), 1, 0),
        (replace(JOB, collection=EVENTS_COLLECTION), 1, 0),
    ],
    ids=["first", "second", "redelivered", "of an event"],
)
def test_only_where_it_tells_something_is_lateness_counted(counted: Counted, job: Job, number: int, times: int) -> None:
    request = WebhookRequest()
    request.end(RequestResult(kind=AttemptKind.TAKEN, status=200), None)

    request_report(
        Delivery(job=job, message_id="msg_1"), Begun(number=number, target=None, at=datetime.now(UTC)), request
    )

    assert len(counted.values("timemachine_lateness_seconds", webhook_route="other")) == times
    assert counted.total("timemachine_attempts_total", kind="taken", webhook_route="other") == 1


def test_a_url_without_a_scheme_is_said_to_have_been_called_with_https() -> None:
    explained = explain_tls_error(NoAnswerError(WITHOUT_TLS, kind=AttemptKind.TLS), "example.org/hook")

    assert explained.startswith(f"{WITHOUT_TLS}; ")
    assert "https:// was put before the webhook_url" in explained
    assert "write http:// before it" in explained


@pytest.mark.parametrize(
    ("kind", "url"), [(AttemptKind.TLS, "https://example.org/hook"), (AttemptKind.CONNECT, "example.org/hook")]
)
def test_an_error_that_no_scheme_would_change_is_told_as_it_is(kind: AttemptKind, url: str) -> None:
    assert explain_tls_error(NoAnswerError(WITHOUT_TLS, kind=kind), url) == WITHOUT_TLS

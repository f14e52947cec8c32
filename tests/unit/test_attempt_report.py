"""What a failed attempt says to whoever looks at the job."""

import pytest

from activities.attempt_report import explain_tls_error
from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.errors import NoAnswerError

WITHOUT_TLS = "TLS failed: wrong version number"


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

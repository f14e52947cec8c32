"""URLs of webhooks: all sorts, and what becomes of them."""

from hypothesis import strategies as st

from timemachine.domain.errors import WebhookUrlError
from timemachine.domain.routes import target_url

PIECES = [
    *("http://", "https://", "HTTP://", "ftp://", "://", "//", "/", "\\", "@", ":", "80", "0", "99999", "-1", "a", "A"),
    *(
        "example.org",
        "[",
        "]",
        "[::1]",
        "::1",
        "[v1.a]",
        "%",
        "%25",
        "%2f",
        "%40",
        "%00",
        "?",
        "#",
        "&",
        "=",
        ".",
        "..",
    ),
    *("_", "-", "\u00e9", "\u0663", " ", "\t", "\n", "\0", "{", "|", "^", "`", '"', "<", "'", ";", "xn--", "127.0.0.1"),
    *("127.1", "0x7f.1", "256.1.1.1", "1.2.3.4.5", "~", "!", "$", "(", "*", "+", ",", "%eth0"),
]


urls = st.lists(st.sampled_from(PIECES), max_size=9).map("".join) | st.text(max_size=30)


def target(webhook_url: str) -> str | None:
    try:
        return target_url(webhook_url, default_scheme="https")
    except WebhookUrlError:
        return None

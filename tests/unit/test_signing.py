"""Our signatures, against the specification's own example and the library that receivers use."""

import base64
import hashlib
import html
import json
import time
from datetime import UTC, datetime
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from timemachine.domain.signing import encode_secret, repeats_secret, signature, signatures

SECRETS = st.binary(min_size=24, max_size=64)
IDS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="."), min_size=1)
# The library takes text only.
BODIES = st.text().map(str.encode)


def headers(message_id: str, timestamp: int, signed: str) -> dict[str, str]:
    return {"webhook-id": message_id, "webhook-timestamp": str(timestamp), "webhook-signature": signed}


def test_the_example_of_the_specification() -> None:
    signed = signature(
        base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )

    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@given(secret=SECRETS, message_id=IDS, timestamp=st.integers(0, 4_102_444_800), body=BODIES)
def test_it_signs_as_the_library_does(secret: bytes, message_id: str, timestamp: int, body: bytes) -> None:
    library = Webhook(encode_secret(secret))

    assert signature(secret, message_id, timestamp, body) == library.sign(
        message_id, datetime.fromtimestamp(timestamp, UTC), body.decode()
    )


@given(secrets=st.lists(SECRETS, min_size=1, max_size=5, unique=True), message_id=IDS, body=BODIES)
def test_each_secret_alone_verifies_and_no_other_does(secrets: list[bytes], message_id: str, body: bytes) -> None:
    now = int(time.time())
    signed = headers(message_id, now, signatures(tuple(secrets[1:]), message_id, now, body))

    for secret in secrets[1:]:
        Webhook(encode_secret(secret)).verify(body, signed, json_parse=False)
    if len(secrets) > 1:
        with pytest.raises(WebhookVerificationError, match="No matching signature"):
            Webhook(encode_secret(secrets[0])).verify(body, signed, json_parse=False)


@given(secret=SECRETS, message_id=IDS, body=BODIES, tail=st.text(min_size=1))
def test_nothing_of_a_message_can_be_changed(secret: bytes, message_id: str, body: bytes, tail: str) -> None:
    now = int(time.time())
    signed = signatures((secret,), message_id, now, body)
    library = Webhook(encode_secret(secret))

    for changed, content in [
        (headers(message_id, now, signed), body + tail.encode()),
        (headers(message_id + tail.replace(".", "_"), now, signed), body),
        (headers(message_id, now + 1, signed), body),
    ]:
        with pytest.raises(WebhookVerificationError, match="No matching signature"):
            library.verify(content, changed, json_parse=False)


def test_a_body_need_not_be_text() -> None:
    body = bytes(range(256))

    assert signature(b"k" * 32, "msg_1", 1, body) != signature(b"k" * 32, "msg_1", 1, body.decode("latin-1").encode())


@given(secret=SECRETS)
def test_a_secret_is_told_as_the_specification_says(secret: bytes) -> None:
    told = encode_secret(secret)

    assert told.startswith("whsec_")
    assert base64.b64decode(told.removeprefix("whsec_"), validate=True) == secret


SECRET = bytes(range(7, 250, 8))[:24] + b"\xff\xfe\xfb\xef"


@pytest.mark.parametrize(
    "echo",
    [
        encode_secret(SECRET),
        encode_secret(SECRET).upper(),
        encode_secret(SECRET).removeprefix("whsec_"),
        quote(encode_secret(SECRET), safe=""),
        json.dumps(encode_secret(SECRET)).replace("/", "\\/").replace("+", "\\u002b"),
        html.escape(encode_secret(SECRET)).replace("+", "&#43;").replace("=", "&#61;"),
        "\r\n\t".join(encode_secret(SECRET)),
        SECRET.hex(),
        SECRET.hex(" ").upper(),
        SECRET.hex(":"),
        *(base64.b64encode(("x" * before + encode_secret(SECRET)).encode()).decode() for before in range(3)),
        base64.encodebytes(("x" * 50 + encode_secret(SECRET)).encode()).decode(),
        base64.b64encode(base64.b64encode(SECRET)).decode(),
        encode_secret(SECRET)[:28],
        "...".join((encode_secret(SECRET)[:25], encode_secret(SECRET)[25:])),
        json.dumps("\n".join((encode_secret(SECRET)[:25], encode_secret(SECRET)[25:]))),
        "\0".join(encode_secret(SECRET)),
    ],
)
def test_a_secret_is_found_in_what_repeats_it(echo: str) -> None:
    assert repeats_secret(f"<p>WEBHOOK_SECRET={echo}</p>".encode(), (b"another secret", SECRET))


@pytest.mark.parametrize("shown", ["whsec_", encode_secret(SECRET)[:12], "whsec_..." + encode_secret(SECRET)[-8:]])
def test_a_hint_at_a_secret_is_none(shown: str) -> None:
    assert not repeats_secret(f"signed with {shown}".encode(), (SECRET,))


@given(text=BODIES, secret=st.binary().map(lambda seed: hashlib.sha256(seed).digest()))
def test_no_secret_is_found_where_there_is_none(text: bytes, secret: bytes) -> None:
    assert not repeats_secret(text, (secret,))
    assert not repeats_secret(text, ())

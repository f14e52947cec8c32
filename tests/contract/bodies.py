"""Bodies of requests, as bytes."""

import json
from typing import Any

from tests.support.service import ROUTE, now_ms

KIB = 1024


def job(job_id: str = "x", *, meta: bytes = b"1", **fields: Any) -> bytes:
    """Return a job's body with `meta` spelled as given."""
    known = {"id": job_id, "trigger_time": now_ms(3600), "route": ROUTE} | fields
    return json.dumps(known).encode()[:-1] + b',"meta":' + meta + b"}"


def without(body: bytes, field: str) -> bytes:
    return json.dumps({name: value for name, value in json.loads(body).items() if name != field}).encode()


def route(**fields: Any) -> bytes:
    return json.dumps({"id": "r", "type": "REST", "webhook_url": "example.org"} | fields).encode()


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)

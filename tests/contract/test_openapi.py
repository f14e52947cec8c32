"""The OpenAPI document: whole, valid, and true of the running server."""

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.batch import MAX_JOBS
from api.errors import ERROR_RESPONSES
from tests.contract.server import Server
from tests.support.keys import make_key
from timemachine.domain.errors import MalformedError
from timemachine.domain.jobs import MAX_JOB_ID, MAX_NAME, NAME_PATTERN
from timemachine.domain.keys import ID_LENGTH, KEY_ID_PATTERN
from timemachine.domain.operations import MAX_OPERATION_ID
from timemachine.domain.routes import OUR_HEADERS, check_headers
from timemachine.settings import Settings

DOCUMENT = "/docs/openapi.json"
JOBS, ROUTES = "/job/{db}/{collection}", "/route/{db}"
JOB, ROUTE = f"{JOBS}/{{job_id}}", f"{ROUTES}/{{route_id}}"
SECRET = f"{ROUTE}/secret"
FAILED = "/failed/{db}"
KEYS, KEY = "/key", "/key/{key_id}"
BATCH = "/batch/{db}/{collection}"
JOBS_OF_DB, COUNT = "/job/{db}", "/count/{db}"
OPERATION = "/operation/{db}/{operation_id}"
EVENTS = "/events/{db}"

# Each endpoint, with its name and the codes that it answers 400 with.
OPERATIONS = {
    ("post", JOBS): ("CreateJob", {"E001", "E002", "E003", "E005", "E007"}),
    ("get", JOBS_OF_DB): ("ListJobs", {"E001", "E002"}),
    ("get", JOBS): ("ListJobsOfCollection", {"E001", "E002"}),
    ("get", COUNT): ("CountJobs", {"E001", "E002"}),
    ("get", JOB): ("GetJob", {"E002", "E004"}),
    ("put", JOB): ("ChangeJob", {"E001", "E002", "E003", "E004", "E005", "E006", "E007"}),
    ("delete", JOB): ("CancelJob", {"E002", "E004", "E006"}),
    ("post", f"{JOB}/trigger"): ("TriggerJob", {"E002", "E004", "E006"}),
    ("post", BATCH): ("CreateJobs", {"E001", "E002"}),
    ("post", ROUTES): ("CreateRoute", {"E001", "E002", "E008", "E010"}),
    ("get", ROUTES): ("ListRoutes", {"E001", "E002"}),
    ("get", ROUTE): ("GetRoute", {"E002", "E007"}),
    ("put", ROUTE): ("ChangeRoute", {"E001", "E002", "E007", "E010"}),
    ("delete", ROUTE): ("DeleteRoute", {"E001", "E002", "E007", "E009"}),
    ("post", f"{ROUTE}/pause"): ("PauseRoute", {"E001", "E002", "E007"}),
    ("post", f"{ROUTE}/resume"): ("ResumeRoute", {"E001", "E002", "E007"}),
    ("get", SECRET): ("GetSecret", {"E002", "E007"}),
    ("post", f"{SECRET}/rotate"): ("RotateSecret", {"E001", "E002", "E007"}),
    ("get", f"{JOB}/attempts"): ("ListAttemptsOfJob", {"E001", "E002", "E004"}),
    ("get", f"{ROUTE}/attempts"): ("ListAttemptsOfRoute", {"E001", "E002", "E007"}),
    ("get", FAILED): ("ListFailed", {"E001", "E002"}),
    ("post", f"{JOB}/redeliver"): ("RedeliverJob", {"E002", "E004", "E006", "E007"}),
    ("post", f"{ROUTE}/redeliver"): ("RedeliverRoute", {"E001", "E002", "E007"}),
    ("get", f"{ROUTE}/redeliver/{{redelivery_id}}"): ("GetRedelivery", {"E002", "E018"}),
    ("post", "/cancel/{db}"): ("CancelJobs", {"E001", "E002"}),
    ("get", "/operation/{db}"): ("ListOperations", {"E001", "E002"}),
    ("get", OPERATION): ("GetOperation", {"E002", "E018"}),
    ("delete", OPERATION): ("StopOperation", {"E002", "E006", "E018"}),
    ("put", EVENTS): ("SetEvents", {"E001", "E002", "E007"}),
    ("get", EVENTS): ("GetEvents", {"E002"}),
    ("delete", EVENTS): ("DeleteEvents", {"E002"}),
    ("post", KEYS): ("CreateKey", {"E001", "E002"}),
    ("get", KEYS): ("ListKeys", {"E001"}),
    ("post", f"{KEY}/rotate"): ("RotateKey", {"E001", "E019"}),
    ("delete", KEY): ("RevokeKey", {"E019", "E020"}),
    ("get", "/audit/{db}"): ("ListAudit", {"E001", "E002"}),
}
TAGS = {
    "route": "Routes",
    "cancel": "Operations",
    "operation": "Operations",
    "events": "Events",
    "key": "Keys",
    "audit": "Keys",
}
"""By how a path begins; all others have to do with jobs."""
LIMITS = {"job_id": MAX_JOB_ID, "operation_id": MAX_OPERATION_ID, "key_id": ID_LENGTH}
WITHOUT_BODY = {("post", f"{JOB}/redeliver"), ("post", f"{JOB}/trigger")}
WITH_BODY = [key for key in OPERATIONS if key[0] in ("post", "put") and key not in WITHOUT_BODY]
BODY_MAY_BE_LEFT_OUT = {
    ("post", f"{path}/{action}")
    for path, action in [(SECRET, "rotate"), (ROUTE, "pause"), (ROUTE, "resume"), (KEY, "rotate")]
}
HEALTH = {("get", "/livez"), ("get", "/readyz")}

each_operation = pytest.mark.parametrize(("method", "path"), OPERATIONS)


@pytest.fixture(scope="module")
async def document(api: httpx.AsyncClient) -> Any:
    return (await api.get(DOCUMENT)).json()


def examples(document: Any, method: str, path: str, status: str) -> dict[str, Any]:
    """Return the examples of an operation's error body."""
    body = document["paths"][path][method]["responses"][status]["content"]["application/json"]
    assert body["schema"] == {"$ref": "#/components/schemas/ErrorBody"}
    return {name: example["value"] for name, example in body["examples"].items()}


def check_fields(document: Any, schema: Any) -> None:
    """Check that an object takes no other fields than those described, and that each of these has an example."""
    schema = document["components"]["schemas"][schema["$ref"].split("/")[-1]]
    assert schema["additionalProperties"] is False
    for name, field in schema["properties"].items():
        for part in [field, *field.get("oneOf", [])]:
            if "$ref" in part:
                check_fields(document, part)
        assert {"examples", "const", "$ref"} & field.keys(), name


async def test_the_document_is_valid_openapi_3_1(document: Any) -> None:
    # To import it takes over a second, and each process of the tests imports every file.
    import schemathesis

    assert document["openapi"].startswith("3.1.")
    schemathesis.openapi.from_dict(document).validate()


async def test_the_document_has_every_endpoint(document: Any) -> None:
    found = {(method, path) for path, item in document["paths"].items() for method in item}

    assert found == OPERATIONS.keys() | HEALTH


@each_operation
async def test_an_operation_is_named_and_described(document: Any, method: str, path: str) -> None:
    operation = document["paths"][path][method]

    assert operation["operationId"] == OPERATIONS[method, path][0]
    assert operation["description"].endswith(".")
    assert operation["tags"] == [TAGS.get(path.split("/")[1], "Jobs")]
    assert operation["responses"]["200"]["content"]["application/json"]["schema"]


@each_operation
async def test_an_operation_has_its_errors_with_examples(document: Any, method: str, path: str) -> None:
    refusals = examples(document, method, path, "400")

    assert set(refusals) == OPERATIONS[method, path][1]
    assert set(examples(document, method, path, "401")) == {"E012"}
    assert set(examples(document, method, path, "403")) == {"E013"}
    assert set(examples(document, method, path, "429")) == {"E014"}
    assert set(examples(document, method, path, "500")) == {"E016"}
    assert set(examples(document, method, path, "503")) == {"E015"}
    meanings = {answer.code: answer.meaning for answer in ERROR_RESPONSES.values()}
    assert list(refusals.values()) == [{"error": meanings[code], "code": code} for code in refusals]


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
async def test_a_body_is_described_with_examples(document: Any, method: str, path: str) -> None:
    body = document["paths"][path][method]["requestBody"]

    assert body["required"] != ((method, path) in BODY_MAY_BE_LEFT_OUT)
    schema = body["content"]["application/json"]["schema"]
    check_fields(document, schema.get("items", schema))
    assert set(examples(document, method, path, "413")) == {"E011"}
    assert set(examples(document, method, path, "415")) == {"E017"}


async def test_a_batch_has_two_forms(document: Any) -> None:
    operation = document["paths"][BATCH]["post"]
    forms = {"application/json", "application/x-ndjson"}

    assert set(operation["requestBody"]["content"]) == set(operation["responses"]["200"]["content"]) == forms
    assert operation["requestBody"]["content"]["application/json"]["schema"] == {
        "type": "array",
        "items": {"$ref": "#/components/schemas/JobIn"},
        "maxItems": MAX_JOBS,
    }


@each_operation
async def test_names_are_described(document: Any, method: str, path: str) -> None:
    parameters = document["paths"][path][method].get("parameters", [])
    names = {parameter["name"]: parameter["schema"] for parameter in parameters if parameter["in"] == "path"}

    assert [f"{{{name}}}" for name in names] == [part for part in path.split("/") if part.startswith("{")]
    for name, schema in names.items():
        assert schema["pattern"] == (KEY_ID_PATTERN if name == "key_id" else NAME_PATTERN)
        assert schema["maxLength"] == LIMITS.get(name, MAX_NAME)


async def test_the_numbers_in_bodies_have_their_bounds(document: Any) -> None:
    """Litestar forgets those that are 0, and those inside an array."""
    fields = {name: schema.get("properties") for name, schema in document["components"]["schemas"].items()}

    def bounds(field: Any) -> tuple[float, float]:
        return field["minimum"], field["maximum"]

    for route in (fields["RouteIn"], fields["RouteChange"]):
        assert bounds(route["timeout"]) == (0.1, 30)
        assert bounds(route["max_in_flight"]) == (1, 10_000)
        assert route["headers"]["maxProperties"] == 20
    assert bounds(fields["RetryIn"]["initial_interval"]) == (0.1, 604_800)
    assert bounds(fields["RetryIn"]["maximum_interval"]) == (0.1, 604_800)
    assert bounds(fields["RetryIn"]["backoff_coefficient"]) == (1, 10)
    assert bounds(fields["RetryIn"]["maximum_attempts"]) == (1, 100)
    assert bounds(fields["RetryIn"]["waits"]["items"]) == (0.1, 604_800)
    assert (fields["RetryIn"]["waits"]["minItems"], fields["RetryIn"]["waits"]["maxItems"]) == (1, 99)
    assert bounds(fields["RotateIn"]["overlap"]) == (0, 604_800)
    assert bounds(fields["ResumeIn"]["spread"]) == (0, 86_400)
    assert bounds(fields["CancelIn"]["due_from"]) == bounds(fields["CancelIn"]["due_to"]) == (0, 253_402_300_799_999)
    assert (
        bounds(fields["FailureWindow"]["since"]) == bounds(fields["FailureWindow"]["until"]) == (0, 253_402_300_799_999)
    )


async def test_header_names_in_the_document_are_those_that_are_allowed(document: Any) -> None:
    names = re.compile(
        document["components"]["schemas"]["RouteIn"]["properties"]["headers"]["propertyNames"]["pattern"]
    )

    assert all(names.search(name) for name in ("x-tenant", "authorization", "te-x", "hostname", "x" * 128))
    for name in ("Te", "te", "host", "webhook-id", "timemachine-db", "", "x" * 129, "x y", "\u00e9", *OUR_HEADERS):
        assert not names.search(name), name
        with pytest.raises(MalformedError):
            check_headers({name: "1"})


async def test_every_operation_has_a_summary_of_its_own(document: Any) -> None:
    summaries = [operation["summary"] for item in document["paths"].values() for operation in item.values()]

    assert [summary for summary in summaries if not re.fullmatch(r"[A-Z][a-z]+( [a-z]+)+", summary)] == []
    assert len(set(summaries)) == len(summaries)


async def test_everything_is_described(document: Any) -> None:
    schemas = document["components"]["schemas"]
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    described = {f"#/components/schemas/{name}" for name, schema in schemas.items() if schema.get("description")}

    assert len(described) == len(schemas)
    assert [
        (name, field)
        for name, schema in schemas.items()
        for field, value in schema.get("properties", {}).items()
        if not value.get("description") and value.get("$ref") not in described
    ] == []
    assert [
        (operation["operationId"], parameter["name"])
        for operation in operations
        for parameter in operation.get("parameters", [])
        if not parameter.get("description")
    ] == []


async def test_what_is_for_those_who_change_the_code_is_left_out(document: Any) -> None:
    descriptions = [schema["description"] for schema in document["components"]["schemas"].values()]

    assert [text for text in descriptions if "\n" in text or "tored" in text or not text.endswith(".")] == []


async def test_a_key_is_needed_but_for_health(document: Any) -> None:
    scheme = document["components"]["securitySchemes"]["ApiKey"]

    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    assert document["security"] == [{"ApiKey": []}]
    assert {
        (method, path): operation["security"]
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if "security" in operation
    } == {key: [{}] for key in HEALTH}


async def test_the_codes_of_errors_are_listed(document: Any) -> None:
    code = document["components"]["schemas"]["ErrorBody"]["properties"]["code"]

    assert code["enum"] == sorted({answer.code for answer in ERROR_RESPONSES.values()})


async def test_the_document_begins_with_what_comes_first(document: Any) -> None:
    paths = list(document["paths"])

    assert [tag["name"] for tag in document["tags"]] == ["Jobs", "Routes", "Operations", "Events", "Keys", "Health"]
    assert paths[:2] == [JOBS_OF_DB, JOBS]
    assert [
        (path, earlier) for place, path in enumerate(paths) for earlier in paths[:place] if earlier.startswith(path)
    ] == []


@pytest.mark.timeout(400)
async def test_schemathesis_finds_nothing(keyed: Server, settings: Settings, worker: None, tmp_path: Path) -> None:
    """All its checks but some: see the hooks; and a job or operation is there still when a DELETE has ended it.

    With a key, because it also tries to do without.

    It takes about 15 s; the limit is for a machine that is busy with other things. One worker, because before Python
    3.11.8 two threads that parse at once may end in "AST constructor recursion depth mismatch" (python/cpython#106905).
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", keyed.url + DOCUMENT),
        *("--header", f"Authorization: Bearer {await make_key(settings)}"),
        *("--checks", "all", "--exclude-checks", "positive_data_acceptance,negative_data_rejection,use_after_free"),
        *("--max-examples", "3", "--generation-deterministic", "--workers", "1", "--no-color"),
        cwd=tmp_path,
        env=os.environ | {"SCHEMATHESIS_HOOKS": str(Path(__file__).with_name("schemathesis_hooks.py"))},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 300)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode()
    count = len(OPERATIONS.keys() | HEALTH)
    assert f"{count} selected / {count} total" in output.decode()

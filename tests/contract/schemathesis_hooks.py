"""What schemathesis cannot know of this API: loaded by its own process, see test_openapi.py."""

import math
import re
import time
from collections.abc import Mapping
from typing import Any

import schemathesis
from schemathesis import Case, CheckContext, HookContext, Response
from schemathesis.specs.openapi.checks import negative_data_rejection

BATCH = "/batch/"


@schemathesis.serializer("application/x-ndjson")
def as_it_is(_: Any, value: Any) -> bytes:
    """Lines are generated as one string."""
    return str(value).encode(errors="replace")


@schemathesis.hook
def after_call(_: HookContext, __: Case[Any], response: Response) -> None:
    """Wait after each request without a valid key, of which an address may send 50 at once and then 5 a second."""
    if response.status_code == 401:
        time.sleep(0.15)


A_WHOLE_FLOAT = re.compile(r"Expected `int( \| null)?`, got `float`|it must be an integer")
"""`1.0` is an integer to JSON Schema, and none to us."""


@schemathesis.check
def what_the_document_allows_is_understood(_: CheckContext, response: Response, case: Case[Any]) -> None:
    """A request that keeps to the document may be refused for what it asks, but not as malformed or for its names.

    In place of `positive_data_acceptance`: the seed has 400 for "no such job", too.
    """
    allowed = case.meta is not None and case.meta.generation.mode.is_positive
    if allowed and response.status_code == 400 and not _is_wrong_in_itself(case):
        code, reason = response.json()["code"], response.json()["error"]
        if not A_WHOLE_FLOAT.search(reason) and "looks like seconds" not in reason:
            assert code not in ("E001", "E002"), f"{code} for a request that the document allows: {reason}"


@schemathesis.check
def what_the_document_forbids_is_refused(ctx: CheckContext, response: Response, case: Case[Any]) -> None:
    """In place of `negative_data_rejection`: in a batch it is the jobs that are refused, each by its result."""
    if not case.path.startswith(BATCH):
        negative_data_rejection(ctx, response, case)


def _is_wrong_in_itself(case: Case[Any]) -> bool:
    query: Any = case.query or {}
    return (
        _names_two_ids(case)
        or _asks_for_no_time(case)
        or _expires_in_the_past(case)
        or _is_no_filter(case)
        or _has_odd_labels(case)
        or "cursor" in query
        or _filters_nothing(query)
    )


def _expires_in_the_past(case: Case[Any]) -> bool:
    """Whether a key would have expired already."""
    key: Any = case.body if isinstance(case.body, Mapping) and case.path == "/key" else {}
    return bool(key.get("expires_at", time.time() * 1000 + 1) <= time.time() * 1000)


def _filters_nothing(query: Any) -> bool:
    """Whether a filter contradicts itself, has a prefix without a collection, or a label that may not be one."""
    is_empty = "due_from" in query and "due_to" in query and int(query["due_from"]) >= int(query["due_to"])
    return is_empty or "label" in query or ("id_prefix" in query and "collection" not in query)


def _is_no_filter(case: Case[Any]) -> bool:
    """Whether a cancel of many would mean every job or none, which no schema can forbid."""
    wanted: Any = case.body if isinstance(case.body, Mapping) and case.path.startswith("/cancel/") else None
    if wanted is None:
        return False
    ids_of_all_collections = "id_prefix" in wanted and "collection" not in wanted
    return not wanted or ids_of_all_collections or wanted.get("due_from", -1) >= wanted.get("due_to", math.inf)


def _asks_for_no_time(case: Case[Any]) -> bool:
    """Whether a window ends before it begins, or lies in the future, which no schema can forbid."""
    window: Any = case.body if isinstance(case.body, Mapping) and case.path.endswith("/redeliver") else {}
    now = time.time() * 1000
    return "since" in window and bool(window["since"] >= min(window.get("until", now), now))


def _has_odd_labels(case: Case[Any]) -> bool:
    """Whether a label is empty, too long, not printable, has a blank at an end, or is there twice."""
    body: Any = case.body if isinstance(case.body, Mapping) else {}
    labels = [*body.get("labels", []), *([body["label"]] if "label" in body else [])]
    fine = [label for label in labels if 0 < len(label) <= 64 and label.isprintable() and label == label.strip()]
    return len(set(fine)) < len(labels)


def _names_two_ids(case: Case[Any]) -> bool:
    """Whether a PUT has one id in its path and another in its body, which no schema can forbid."""
    in_path = case.path_parameters.get("job_id") or case.path_parameters.get("route_id")
    return case.method == "PUT" and isinstance(case.body, Mapping) and case.body.get("id", in_path) != in_path

"""What clients send and are sent, resource by resource. What is stored is in `timemachine.domain`."""

from enum import StrEnum
from typing import Annotated, Literal

import msgspec
from litestar.openapi.spec import OpenAPIType, Schema
from msgspec import UNSET, Meta, Raw, UnsetType

from timemachine.domain.attempt_kind import AttemptKind
from timemachine.domain.events import EventKind
from timemachine.domain.job_filter import ListedState
from timemachine.domain.jobs import MAX_JOB_ID, MAX_LABEL, MAX_LABELS, MAX_NAME, NAME_PATTERN
from timemachine.domain.keys import MAX_DBS, MAX_KEY_NAME, RequestsPerSecond, Role
from timemachine.domain.operations import OperationKind, OperationState
from timemachine.domain.retry import MAX_WAIT, MIN_WAIT, Retry, Waits
from timemachine.domain.routes import (
    HEADER_NAME_PATTERN,
    HEADER_VALUE_PATTERN,
    MAX_HEADER_CHARACTERS,
    MAX_HEADERS,
    OUR_HEADER_PREFIXES,
    OUR_HEADERS,
    RouteState,
)
from timemachine.domain.signing import encode_secret
from timemachine.settings import LONGEST_TIMEOUT

TRIGGER_TIME_EXAMPLE = 4_102_444_800_000


def name_schema(limit: int) -> dict[str, object]:
    """Return what the document says of a name. It is only said here: `check_name` refuses what is not allowed."""
    return {"pattern": NAME_PATTERN, "max_length": limit}


JobId = Annotated[
    str,
    Meta(
        description="1 to 120 characters of `A-Z a-z 0-9 _ - . : ~ @ +`.",
        examples=["nxz123bnj"],
        extra_json_schema={"extra": name_schema(MAX_JOB_ID)},
    ),
]
TriggerTime = Annotated[
    int, Meta(description="When to deliver, in milliseconds since the epoch.", examples=[TRIGGER_TIME_EXAMPLE])
]
RouteId = Annotated[
    str,
    Meta(
        description="A route: 1 to 64 characters of `A-Z a-z 0-9 _ - . : ~ @ +`.",
        examples=["gameServer"],
        extra_json_schema={"extra": name_schema(MAX_NAME)},
    ),
]


Deadline = Annotated[
    int,
    Meta(
        description="When the job is no longer worth delivering, in milliseconds since the epoch.",
        examples=[TRIGGER_TIME_EXAMPLE + 3_600_000],
    ),
]


def _null() -> Raw:
    return Raw(b"null")


class RetryIn(Retry, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When to retry. Fields that are left out have their defaults. `waits` replaces all other fields."""

    waits: (
        Annotated[
            Waits,
            # Litestar forgets the bounds of what is inside.
            Meta(
                extra_json_schema={
                    "extra": {
                        "one_of": None,
                        "type": OpenAPIType.ARRAY,
                        "items": Schema(type=OpenAPIType.NUMBER, minimum=MIN_WAIT, maximum=MAX_WAIT),
                    }
                }
            ),
        ]
        | UnsetType
    ) = UNSET

    def stored(self) -> Retry:
        """Return it as it is stored, where later versions may read fields that this one does not know."""
        return Retry(**msgspec.structs.asdict(self))


RetryOfJob = Annotated[
    RetryIn | None, Meta(description="Replaces the retry policy of the route.", examples=[{"waits": [60, 600, 3600]}])
]


Labels = Annotated[
    tuple[
        Annotated[str, Meta(min_length=1, max_length=MAX_LABEL)],
        ...,
    ],
    Meta(
        max_length=MAX_LABELS,
        description="What lists and cancels of many find the job by. Printable characters without quotes, backslashes, "
        "question marks and \u2661.",
        examples=[["order=1234", "checkout"]],
        # Litestar takes the dots of a tuple's type for another type of its items.
        extra_json_schema={"extra": {"items": Schema(type=OpenAPIType.STRING)}},
    ),
]


class JobChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The new content of a waiting job. `id` may be left out, and must otherwise be the path's."""

    id: JobId | UnsetType = UNSET
    trigger_time: TriggerTime
    route: RouteId
    meta: Raw = msgspec.field(default_factory=_null)
    retry: RetryOfJob = None
    deadline: Deadline | None = None
    labels: Labels = ()


class JobIn(JobChange, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job to create."""

    id: JobId


class BatchStatus(StrEnum):
    """What has become of a job of a batch."""

    CREATED = "created"
    UNCHANGED = "unchanged"
    """The same job was there before."""
    REFUSED = "refused"
    """Nothing was done."""
    UNKNOWN = "unknown"
    """It may have been created: the same job is to be sent again."""


class BatchResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one job of a batch."""

    id: Annotated[
        str | None,
        Meta(description="The job's id; null where it cannot be read or is too long, or is not about one job."),
    ]
    status: Annotated[
        BatchStatus,
        Meta(
            description="`created`, or `unchanged` where the same job was there before; `refused` where nothing was "
            "done; `unknown` where it may have been created: send the job again."
        ),
    ]
    code: Annotated[str | UnsetType, Meta(description="The code that a create of this job alone is answered.")] = UNSET
    error: Annotated[str | UnsetType, Meta(description="The reason, for people.")] = UNSET


class BatchOut(msgspec.Struct, frozen=True):
    """The results of a batch."""

    results: Annotated[list[BatchResult], Meta(description="One for each job, in the order of the request.")]


class JobState(StrEnum):
    """State of a job."""

    SCHEDULED = "scheduled"
    DELIVERING = "delivering"
    DELIVERED = "delivered"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobOut(msgspec.Struct, frozen=True, kw_only=True):
    """A job and its state."""

    id: JobId
    trigger_time: TriggerTime
    meta: Raw
    route: RouteId
    state: JobState
    attempts: Annotated[int | UnsetType, Meta(description="Attempts that were sent and have ended.")] = UNSET
    next_attempt_time: Annotated[
        int | UnsetType,
        Meta(description="When the next attempt is made, in milliseconds since the epoch. Only between two attempts."),
    ] = UNSET
    last_error: Annotated[str | UnsetType, Meta(description="Why the last attempt, or the whole job, failed.")] = UNSET
    delivered_at: Annotated[
        int | UnsetType, Meta(description="When the receiver accepted the job, in milliseconds since the epoch.")
    ] = UNSET
    held: Annotated[
        str | UnsetType, Meta(description="Why the job is held back, while its route is paused or disabled.")
    ] = UNSET
    retry: Annotated[Retry | UnsetType, Meta(description="The job's own retry policy, if it has one.")] = UNSET
    deadline: Deadline | UnsetType = UNSET
    labels: Annotated[tuple[str, ...] | UnsetType, Meta(description="The job's labels, if it has some.")] = UNSET


WebhookUrl = Annotated[
    str,
    Meta(
        description="Where to POST. `https://` is put before it when it has no scheme.",
        examples=["gameserver-dev-1.myorg.com/timer?action=endgame"],
    ),
]

_RESERVED_HEADERS = "|".join([*OUR_HEADER_PREFIXES, *(f"{name}$" for name in sorted(OUR_HEADERS))])

_HEADER_NAMES = HEADER_NAME_PATTERN.replace("^", f"^(?!{_RESERVED_HEADERS})", 1)

HeaderValues = Annotated[
    dict[str, str],
    Meta(
        description="Extra headers to send. Their values are write-only: they are kept encrypted and never shown. "
        f"Names are in lower case, and {MAX_HEADER_CHARACTERS} characters are allowed in all.",
        examples=[{"x-tenant": "7"}],
        extra_json_schema={
            # It is only said here: `check_headers` refuses what is not allowed.
            "extra": {
                "max_properties": MAX_HEADERS,
                "property_names": Schema(pattern=_HEADER_NAMES),
                "additional_properties": Schema(type=OpenAPIType.STRING, pattern=HEADER_VALUE_PATTERN),
            }
        },
    ),
]

Timeout = Annotated[
    float,
    Meta(
        ge=0.1,
        le=LONGEST_TIMEOUT,
        description="Seconds that one attempt may take. Defaults to the service's setting.",
        examples=[10],
    ),
]

MaxInFlight = Annotated[
    int,
    Meta(ge=1, le=10_000, description="Concurrent requests over all workers. No limit by default.", examples=[20]),
]


RouteType = Annotated[Literal["REST"], Meta(description="How jobs are delivered: by POST to a URL.")]


class RouteChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The new content of a route. It replaces all fields. `id` may be left out, and must otherwise be the path's."""

    id: RouteId | UnsetType = UNSET
    type: RouteType
    webhook_url: WebhookUrl
    retry: RetryIn = RetryIn()
    timeout: Timeout | None = None
    headers: HeaderValues = {}
    max_in_flight: MaxInFlight | None = None


class RouteIn(RouteChange, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A route to create. Fields that are left out have the defaults that GET shows."""

    id: RouteId


class RouteOut(msgspec.Struct, frozen=True, kw_only=True):
    """A route, its delivery policy, and whether deliveries are allowed now."""

    id: RouteId
    type: RouteType = "REST"
    webhook_url: WebhookUrl
    retry: Retry
    timeout: Annotated[float, Meta(description="Seconds that one attempt may take.")]
    headers: Annotated[dict[str, str], Meta(description="Names of the extra headers. The values are not shown.")]
    max_in_flight: Annotated[int | None, Meta(description="Concurrent requests over all workers; null for no limit.")]
    state: RouteState
    since: Annotated[int, Meta(description="When the route entered this state, in milliseconds since the epoch.")]
    reason: Annotated[str | UnsetType, Meta(description="Why it is paused or disabled.")] = UNSET


class PauseIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why a route is paused."""

    reason: (
        Annotated[
            str,
            Meta(
                max_length=200,
                pattern=r"^[^\x00]*$",
                description="Shown with the route and with its held jobs.",
                examples=["maintenance"],
            ),
        ]
        | UnsetType
    ) = UNSET


class ResumeIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the held jobs of a route are released."""

    spread: Annotated[
        float,
        Meta(
            ge=0,
            le=86_400,
            description="Seconds over which the jobs are spread, each at a random moment.",
            examples=[60],
        ),
    ] = 60.0


MAX_OVERLAP = 7 * 86_400

# Who decodes them reads what they are.
EXAMPLE_SECRET = encode_secret(b"example secret: not a real one !")

OLDER_EXAMPLE_SECRET = encode_secret(b"older example, not a real one  !")

SecretValue = Annotated[
    str, Meta(description="`whsec_` and 32 bytes in base64, as the libraries of Standard Webhooks take it.")
]


class RotateIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a secret is replaced."""

    overlap: Annotated[
        float,
        Meta(
            ge=0,
            le=MAX_OVERLAP,
            examples=[3600],
            description="Seconds during which the previous secrets sign, too. With 0 they end at once, which is for a "
            "secret that others have come to know: a request that is under way just then may still carry its signature "
            "only, and is refused and tried again.",
        ),
    ] = 86_400.0


class PreviousSecretOut(msgspec.Struct, frozen=True, kw_only=True):
    """A previous secret, which still signs for some time."""

    secret: Annotated[SecretValue, Meta(examples=[OLDER_EXAMPLE_SECRET])]
    expires_at: Annotated[
        int, Meta(description="Until when it signs, in milliseconds since the epoch.", examples=[4_102_444_800_000])
    ]


class SecretOut(msgspec.Struct, frozen=True, kw_only=True):
    """The secrets that sign the deliveries of a route. Every request carries a signature of each."""

    secret: Annotated[SecretValue, Meta(examples=[EXAMPLE_SECRET])]
    previous: Annotated[
        list[PreviousSecretOut],
        Meta(description="The previous secrets that still sign, the newest first. Usually empty."),
    ]


MAX_TIME = 253_402_300_799_999
"""The end of the year 9999, in milliseconds since the epoch."""
NextCursor = Annotated[str, Meta(description="The `cursor` of the next page. Left out on the last one.")]


class AttemptOut(msgspec.Struct, frozen=True, kw_only=True):
    """One request to a receiver, and how it ended."""

    collection: Annotated[str, Meta(description="The job's collection.")]
    id: Annotated[str, Meta(description="The job's id.")]
    route: Annotated[str, Meta(description="The route of the attempt.")]
    webhook_id: Annotated[str, Meta(description="The request's `webhook-id`, the same for all attempts of a job.")]
    attempt: Annotated[int, Meta(description="From 1. A redelivery counts from 1 again.")]
    started_at: Annotated[int, Meta(description="In milliseconds since the epoch.")]
    duration_ms: Annotated[int, Meta(description="Milliseconds from its start to its end.")]
    status: Annotated[int | UnsetType, Meta(description="HTTP status of the answer, where there was one.")] = UNSET
    kind: AttemptKind
    error: Annotated[str | UnsetType, Meta(description="Why the attempt failed, where it did.")] = UNSET
    answer: Annotated[str, Meta(description="The answer's first KiB, with what is not UTF-8 replaced.")]
    worker: Annotated[str, Meta(description="The worker that made the attempt.")]


class AttemptsOut(msgspec.Struct, frozen=True, kw_only=True):
    """A page of attempts, the latest first."""

    attempts: Annotated[list[AttemptOut], Meta(description="The latest first.")]
    next: NextCursor | UnsetType = UNSET


class FailedJobOut(msgspec.Struct, frozen=True, kw_only=True):
    """A job that failed for good."""

    id: Annotated[str, Meta(description="The job's id.")]
    collection: Annotated[str, Meta(description="The job's collection.")]
    route: Annotated[str | UnsetType, Meta(description="The job's route, if it is known.")] = UNSET
    trigger_time: TriggerTime | UnsetType = UNSET
    failed_at: Annotated[int, Meta(description="In milliseconds since the epoch.")]
    last_error: Annotated[
        str | UnsetType, Meta(description="Why the last attempt failed, as long as the log of attempts has it.")
    ] = UNSET


class FailedPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of failed jobs, the latest first. It may be short, or empty, even if there is a next page."""

    failed: Annotated[list[FailedJobOut], Meta(description="The latest first.")]
    next: NextCursor | UnsetType = UNSET


# Litestar forgets a bound of 0.
_BOUNDS = {"minimum": 0, "maximum": MAX_TIME}
FailedSince = Annotated[
    int,
    Meta(
        ge=0,
        le=MAX_TIME,
        description="Inclusive start of the window.",
        examples=[1_735_689_600_000],
        extra_json_schema={"extra": _BOUNDS},
    ),
]
FailedBefore = Annotated[
    int,
    Meta(
        ge=0,
        le=MAX_TIME,
        description="Exclusive end of the window. Defaults to now; a time in the future counts as now.",
        examples=[1_735_776_000_000],
        extra_json_schema={"extra": _BOUNDS},
    ),
]


class FailureWindow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When the jobs failed, in milliseconds since the epoch: from `since` on, and before `until`."""

    since: FailedSince
    until: FailedBefore | UnsetType = UNSET


class RedeliveryStarted(msgspec.Struct, frozen=True):
    """A redelivery under way."""

    id: Annotated[str, Meta(description="Use it to query the progress.", examples=["1735689600000-1735776000000"])]


class RedeliveryOut(msgspec.Struct, frozen=True, kw_only=True):
    """Progress of a redelivery. While it runs, the figures are a few seconds old."""

    id: Annotated[str, Meta(description="Use it to query the progress.")]
    found: Annotated[int, Meta(description="Failures within the window, as they were counted at the start.")] = 0
    started: Annotated[int, Meta(description="Jobs that are redelivered.")] = 0
    skipped: Annotated[
        int, Meta(description="Jobs left alone: they have changed since they failed, or are past their deadline.")
    ] = 0
    done: Annotated[bool, Meta(description="Whether the redelivery has ended.")]
    error: Annotated[str | UnsetType, Meta(description="Why the redelivery stopped early, if it did.")] = UNSET


KEY_NAME_PATTERN = r"^[^\x00-\x1f\x7f-\x9f]+$"

KeyDbs = Annotated[
    tuple[str, ...] | None,
    Meta(
        description="The dbs that the key opens; null for all.",
        examples=[["arena"]],
        extra_json_schema={
            # It is only said here: `KeyRequest.check` refuses what is not allowed.
            "extra": {
                "min_items": 1,
                "max_items": MAX_DBS,
                "items": Schema(type=OpenAPIType.STRING, pattern=NAME_PATTERN.replace("+$", f"{{1,{MAX_NAME}}}$")),
            }
        },
    ),
]
KeyRole = Annotated[
    Role,
    Meta(
        description="`read`: jobs, routes, attempts. `write`: create, change, cancel and redeliver jobs too. `admin`: "
        "routes and secrets, redelivery of many, keys and the audit log too.",
        examples=["write"],
    ),
]
KeyName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_KEY_NAME,
        pattern=KEY_NAME_PATTERN,
        description="What the key is for, for people.",
        examples=["game server"],
    ),
]
EXAMPLE_KEY_ID = "3xAmp1eN0tUs"


class KeyIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key to create."""

    name: KeyName
    role: KeyRole
    dbs: KeyDbs
    expires_at: (
        Annotated[
            int,
            Meta(
                ge=0,
                le=MAX_TIME,
                description="When the key expires, in milliseconds since the epoch. Never by default.",
                examples=[TRIGGER_TIME_EXAMPLE],
                extra_json_schema={"extra": _BOUNDS},
            ),
        ]
        | UnsetType
    ) = UNSET
    requests_per_second: (
        Annotated[
            RequestsPerSecond,
            Meta(
                description="Requests per second that one API process takes. The setting's by default.", examples=[50]
            ),
        ]
        | UnsetType
    ) = UNSET


class KeyRotateIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the secret of a key is replaced."""

    overlap: Annotated[
        float,
        Meta(
            ge=0,
            le=MAX_OVERLAP,
            examples=[3600],
            description="Seconds during which the previous secrets are valid, too. With 0 they end at once, which is "
            "for a key that others have come to know.",
        ),
    ] = 86_400.0


class NewKeyOut(msgspec.Struct, frozen=True, kw_only=True):
    """A key, shown this once."""

    id: Annotated[str, Meta(description="What the key is called in lists, logs and paths.", examples=[EXAMPLE_KEY_ID])]
    key: Annotated[
        str, Meta(description="The whole key, for `Authorization: Bearer`. It is not kept, and cannot be shown again.")
    ]
    name: KeyName
    role: KeyRole
    dbs: KeyDbs


class KeyOut(msgspec.Struct, frozen=True, kw_only=True):
    """A key, without its secret."""

    id: Annotated[str, Meta(description="What the key is called in lists, logs and paths.", examples=[EXAMPLE_KEY_ID])]
    name: KeyName
    role: KeyRole
    dbs: KeyDbs
    created_at: Annotated[int, Meta(description="In milliseconds since the epoch.")]
    created_by: Annotated[
        str | UnsetType, Meta(description="The id of the key that made it. Left out for the command line.")
    ] = UNSET
    expires_at: Annotated[int | UnsetType, Meta(description="In milliseconds since the epoch, if it expires.")] = UNSET
    last_used_at: Annotated[
        int | UnsetType, Meta(description="In milliseconds since the epoch, to the minute. Left out if it never was.")
    ] = UNSET
    revoked_at: Annotated[int | UnsetType, Meta(description="In milliseconds since the epoch, if it was.")] = UNSET
    requests_per_second: Annotated[
        float | UnsetType, Meta(description="Its own limit, in place of the setting's, if it has one.")
    ] = UNSET


class KeysOut(msgspec.Struct, frozen=True, kw_only=True):
    """A page of keys, the newest first."""

    keys: Annotated[list[KeyOut], Meta(description="The newest first.")]
    next: NextCursor | UnsetType = UNSET


class AuditEntryOut(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was done."""

    at: Annotated[int, Meta(description="In milliseconds since the epoch.")]
    key: Annotated[
        str | UnsetType, Meta(description="The id of the key that did it. Left out where none was needed.")
    ] = UNSET
    action: Annotated[str, Meta(description="What was done.", examples=["route.change"])]
    db: Annotated[str | None, Meta(description="The db that it was done to; null for all.")]
    target: Annotated[
        str,
        Meta(description="What it was done to: a route, a `collection/id`, a filter, or an id.", examples=["hook"]),
    ]
    address: Annotated[
        str, Meta(description="The address that the request came from, which may be a proxy's; or `command line`.")
    ]
    request_id: Annotated[
        str | UnsetType, Meta(description="The `x-request-id` of the answer. Left out for the command line.")
    ] = UNSET


class AuditOut(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the audit log, the latest first."""

    entries: Annotated[list[AuditEntryOut], Meta(description="The latest first.")]
    next: NextCursor | UnsetType = UNSET


class JobListed(msgspec.Struct, frozen=True, kw_only=True):
    """A job in a list, without its `meta`."""

    collection: Annotated[str, Meta(description="The job's collection.")]
    id: JobId
    trigger_time: TriggerTime
    route: RouteId
    state: ListedState
    labels: Annotated[tuple[str, ...] | UnsetType, Meta(description="The job's labels, if it has some.")] = UNSET
    created_by: Annotated[
        str | UnsetType, Meta(description="The id of the API key that created the job, if one was needed.")
    ] = UNSET
    created_at: Annotated[int, Meta(description="When it was created or redelivered, in milliseconds since the epoch.")]
    ended_at: Annotated[
        int | UnsetType, Meta(description="When it ended, in milliseconds since the epoch. Only if it has.")
    ] = UNSET


class JobsPage(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs that have not ended, the next due first, and then jobs that have, the latest first."""

    jobs: Annotated[
        list[JobListed], Meta(description="It may hold fewer than `limit`, or none, although there is a `next`.")
    ]
    next: NextCursor | UnsetType = UNSET


class StateCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs in each state."""

    scheduled: Annotated[int, Meta(description="Not due yet.")]
    due: Annotated[int, Meta(description="Due, and neither held nor ended: they are being delivered or retried.")]
    held: Annotated[int, Meta(description="Due, while their route is paused or disabled.")]
    delivered: Annotated[int, Meta(description="Taken by their receiver, while Temporal keeps them.")]
    failed: Annotated[int, Meta(description="Failed for good, while Temporal keeps them.")]
    cancelled: Annotated[int, Meta(description="Canceled, while Temporal keeps them.")]


class DueCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Scheduled jobs that are due within some time from now."""

    five_minutes: Annotated[int, Meta(description="Within 5 minutes.")] = msgspec.field(name="5m")
    hour: Annotated[int, Meta(description="Within an hour.")] = msgspec.field(name="1h")
    day: Annotated[int, Meta(description="Within 24 hours.")] = msgspec.field(name="24h")


class CountsOut(msgspec.Struct, frozen=True, kw_only=True):
    """How many jobs there are. An ended run of a job that was created again counts, too."""

    states: StateCounts
    due_within: DueCounts
    as_of: Annotated[int, Meta(description="When they were counted, in milliseconds since the epoch.")]


class RouteListed(msgspec.Struct, frozen=True, kw_only=True):
    """A route in a list, and how its attempts of the last hour went."""

    id: RouteId
    type: RouteType = "REST"
    webhook_url: WebhookUrl
    state: RouteState
    since: Annotated[int, Meta(description="When the route entered this state, in milliseconds since the epoch.")]
    reason: Annotated[str | UnsetType, Meta(description="Why it is paused or disabled.")] = UNSET
    attempts: Annotated[int, Meta(description="Attempts that started within the last hour and have ended.")]
    success_rate: Annotated[
        float | UnsetType,
        Meta(description="The share of them that the receiver took, from 0 to 1. Left out if there are none."),
    ] = UNSET


class RoutesPage(msgspec.Struct, frozen=True, kw_only=True):
    """Routes, in the order of their ids."""

    routes: Annotated[list[RouteListed], Meta(description="The routes.")]
    next: NextCursor | UnsetType = UNSET


_DUE_EXAMPLE = 1_735_689_600_000
_NAME_EXTRA = {"extra": name_schema(MAX_NAME)}


class CancelIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which jobs to cancel: those that have all of this. At least one field is required."""

    collection: (
        Annotated[
            str, Meta(description="Jobs of this collection.", examples=["timeouts"], extra_json_schema=_NAME_EXTRA)
        ]
        | UnsetType
    ) = UNSET
    route: (
        Annotated[str, Meta(description="Jobs on this route.", examples=["gameServer"], extra_json_schema=_NAME_EXTRA)]
        | UnsetType
    ) = UNSET
    label: (
        Annotated[
            str,
            Meta(min_length=1, max_length=MAX_LABEL, description="Jobs with this label.", examples=["order=1234"]),
        ]
        | UnsetType
    ) = UNSET
    id_prefix: (
        Annotated[
            str,
            Meta(
                description="Jobs whose id begins with this. Only together with `collection`.",
                examples=["cart-"],
                extra_json_schema={"extra": name_schema(MAX_JOB_ID)},
            ),
        ]
        | UnsetType
    ) = UNSET
    due_from: (
        Annotated[
            int,
            Meta(
                ge=0,
                le=MAX_TIME,
                description="Jobs with this trigger time or a later one, in milliseconds since the epoch.",
                examples=[_DUE_EXAMPLE],
                extra_json_schema={"extra": _BOUNDS},
            ),
        ]
        | UnsetType
    ) = UNSET
    due_to: (
        Annotated[
            int,
            Meta(
                ge=0,
                le=MAX_TIME,
                description="Jobs with an earlier trigger time, in milliseconds since the epoch.",
                examples=[_DUE_EXAMPLE + 86_400_000],
                extra_json_schema={"extra": _BOUNDS},
            ),
        ]
        | UnsetType
    ) = UNSET
    created_by: (
        Annotated[
            str,
            Meta(
                description="Jobs that the key with this id created.",
                examples=["k3Jx9QmW2aBc"],
                extra_json_schema=_NAME_EXTRA,
            ),
        ]
        | UnsetType
    ) = UNSET
    state: (
        Annotated[
            Literal["scheduled", "due", "held"],
            Meta(description="Jobs that are in this state, of those that have not ended.", examples=["held"]),
        ]
        | UnsetType
    ) = UNSET


class CancelCount(msgspec.Struct, frozen=True):
    """How many jobs a cancel would mean now."""

    matched: Annotated[int, Meta(description="Jobs that match and have not ended. It lags a moment.")]


class JobFilterOut(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs a cancel is for. Fields that it does not look at are left out."""

    collection: Annotated[str | UnsetType, Meta(description="Jobs of this collection.")] = UNSET
    route: Annotated[str | UnsetType, Meta(description="Jobs on this route.")] = UNSET
    label: Annotated[str | UnsetType, Meta(description="Jobs with this label.")] = UNSET
    id_prefix: Annotated[str | UnsetType, Meta(description="Jobs whose id begins with this.")] = UNSET
    due_from: Annotated[int | UnsetType, Meta(description="Jobs with this trigger time or a later one.")] = UNSET
    due_to: Annotated[int | UnsetType, Meta(description="Jobs with an earlier trigger time.")] = UNSET
    created_by: Annotated[str | UnsetType, Meta(description="Jobs that this key created.")] = UNSET
    state: Annotated[str | UnsetType, Meta(description="Jobs in this state.")] = UNSET


class OperationOut(msgspec.Struct, frozen=True, kw_only=True):
    """An operation on many jobs, and how far it is. While it runs, the figures are a few seconds old."""

    id: Annotated[str, Meta(description="Use it to query the progress, and to stop it.")]
    kind: OperationKind
    state: OperationState
    matched: Annotated[
        int | UnsetType,
        Meta(description="Jobs that are meant; while it runs, as they were counted. Left out until that is known."),
    ] = UNSET
    done: Annotated[int | UnsetType, Meta(description="Jobs that were released, redelivered or canceled.")] = UNSET
    failed: Annotated[
        int | UnsetType,
        Meta(description="Jobs for which it was too late, or to which something else had happened before."),
    ] = UNSET
    delivered: Annotated[
        int | UnsetType, Meta(description="Only of a cancel: how many of `failed` their receivers took.")
    ] = UNSET
    rate: Annotated[float | UnsetType, Meta(description="Jobs per second so far. Only while it runs.")] = UNSET
    started_at: Annotated[int, Meta(description="In milliseconds since the epoch.")]
    ended_at: Annotated[int | UnsetType, Meta(description="In milliseconds since the epoch.")] = UNSET
    started_by: Annotated[str | UnsetType, Meta(description="The id of the key that asked for it.")] = UNSET
    route: Annotated[str | UnsetType, Meta(description="Of a release or redelivery: the route.")] = UNSET
    filter: Annotated[JobFilterOut | UnsetType, Meta(description="Of a cancel: the jobs that are meant.")] = UNSET


class OperationsOut(msgspec.Struct, frozen=True, kw_only=True):
    """A page of operations: those that run, then the others, the latest to end first."""

    operations: Annotated[list[OperationOut], Meta(description="Those that run first, then the latest to end.")]
    next: NextCursor | UnsetType = UNSET


class EventsIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which events of a db are sent, and where. It replaces what was set before."""

    route: Annotated[
        str,
        Meta(
            description="The route of this db that they go to. Its own jobs and state make no events.",
            examples=["ops"],
            extra_json_schema=_NAME_EXTRA,
        ),
    ]
    on: Annotated[
        list[EventKind],
        Meta(
            min_length=1,
            description="What is sent: each at most once.",
            examples=[["job.failed", "route.disabled", "route.recovered"]],
            extra_json_schema={"extra": {"unique_items": True}},
        ),
    ]


class EventsOut(msgspec.Struct, frozen=True, kw_only=True):
    """Which events of a db are sent, and where."""

    route: Annotated[str | None, Meta(description="The route that they go to; null where none are sent.")]
    on: Annotated[list[EventKind], Meta(description="What is sent.")]


class Ok(msgspec.Struct, frozen=True):
    """The request has taken effect."""

    status: Annotated[str, Meta(description="Always `ok`.", examples=["ok"])] = "ok"

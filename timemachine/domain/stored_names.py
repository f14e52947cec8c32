"""Every name that Temporal keeps: in histories, memos, visibility and schedules. They outlive this code.

A name is never changed, and never given another meaning. One that new runs no longer use stays while old runs may.
`tests/unit/test_stored_names.py` holds this file against what is registered, queried and recorded.
"""

# Workflow types.
JOB = "Job"
WAKE_JOB = "Wake"
RELEASE = "Release"
REDELIVERY = "Redelivery"
CLEAN_ATTEMPTS = "CleanAttempts"
CANCEL_MANY = "CancelMany"

# Updates and signals of a job.
CHANGE = "change"
TRIGGER = "trigger"
WAKE = "wake"
RELEASE_JOB = "release"

# Activity types.
FIRST_ATTEMPT = "first_attempt"
DELIVER = "deliver"
CANCEL_DELIVERY = "cancel_delivery"
NOTHING = "nothing"
WAKE_RUN = "wake"
RELEASE_HELD = "release_held"
REDELIVER_FAILED = "redeliver_failed"
COUNT_REDELIVERED = "count_redelivered"
CANCEL_MATCHING = "cancel_matching"
REMOVE_OLD_ROWS = "clean_attempts"

# Activity types of runs from before the ledger.
DELIVER_AT_ONCE = "deliver_at_once"
SETTLE = "settle"
FIND_TAKEN = "find_taken"

# Types of errors: of updates that are refused, of activities, and of jobs that failed.
TOO_LATE = "TooLate"
HELD = "Held"
ATTEMPT_FAILED = "AttemptFailed"
DEFERRED = "NotYet"
OUTCOME_UNKNOWN = "Unsure"
NOT_DELIVERED = "NotDelivered"
WORKER_STOPS = "Stopping"
YIELDS_SLOT = "GivesWay"

OUTCOMES = frozenset(
    {TOO_LATE, HELD, ATTEMPT_FAILED, DEFERRED, OUTCOME_UNKNOWN, NOT_DELIVERED, WORKER_STOPS, YIELDS_SLOT}
)
"""All of them: an outcome each, and no fault of the code."""

# Keys of memos.
CHANGED_JOB = "job"
HELD_SINCE = "held"
REDELIVERS = "redelivers"
CREATED_AT = "created"
JOB_FILTER = "filter"

# Search attributes.
ROUTE_ATTRIBUTE = "TimemachineRoute"
TRIGGER_TIME_ATTRIBUTE = "TimemachineTriggerTime"
HELD_ATTRIBUTE = "TimemachineHeld"
DB_ATTRIBUTE = "TimemachineDb"
COLLECTION_ATTRIBUTE = "TimemachineCollection"
LABELS_ATTRIBUTE = "TimemachineLabels"
CREATED_BY_ATTRIBUTE = "TimemachineCreatedBy"

# Changes to the code of workflows (`workflow.patched`).
WAKE_AFTER_CUT = "2026-11-a-continued-run-is-woken"
EVERY_CANCEL_ASKS = "2026-11-every-cancel-asks-the-log"
HELD_ARE_CUT = "2026-11-held-jobs-are-continued-as-new"
RELEASED_BEFORE_DEADLINE = "2026-11-a-spread-ends-before-the-deadline"
FIRST_RUN_ATTEMPTS_IN_TASK = "2026-11-only-a-first-run-attempts-in-its-task"
CUT_AT_LIMIT = "2026-11-a-history-is-cut-at-the-job's-limit"
WAKER_IS_NO_JOB = "2026-11-a-waker-has-no-job's-id"
STOPS_AFTER_ANY_LOOK = "2026-11-a-release-stops-after-a-look-that-missed-it"

# The schedule that removes old rows, and how the ids of workflows begin that are no jobs.
CLEAN_ATTEMPTS_SCHEDULE = "timemachine-clean-attempts"
RELEASE_ID_PREFIX = "timemachine/release/"
REDELIVERY_ID_PREFIX = "timemachine/redelivery/"
WAKE_ID_PREFIX = "timemachine/wake/run/"
FORMER_WAKE_ID_PREFIX = "timemachine/wake/"
CANCEL_ID_PREFIX = "timemachine/cancel/"

# The collection of the jobs that send events, which clients create no jobs in.
EVENTS_COLLECTION = "timemachine.events"

"""Stops of operations on many jobs: what a workflow makes of its activity's end once a stop was asked for."""

from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

VISIBILITY_LAG = timedelta(seconds=3)
"""Time after which Temporal's visibility shows what was done before a stop."""


def is_stopped(error: ActivityError) -> bool:
    """Return whether an activity has ended because of a stop, or is not tried again because of one.

    The activity may not have learnt of it: Temporal tells it in the answer to a heartbeat, and its worker may have been
    killed, or have given it back, before that.
    """
    return is_cancelled_exception(error) or workflow.cancellation_reason() is not None

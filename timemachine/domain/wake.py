"""Waking a job that goes on as a new run."""

import msgspec

from timemachine.domain import stored_names


class ContinuedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run that goes on as a new one. Stored in histories: fields may only be added, with defaults."""

    workflow_id: str
    first_run_id: str
    run_id: str

    @property
    def waker_id(self) -> str:
        """The id of the workflow that wakes the new run. Its three parts begin with no job's db, collection and id."""
        return f"{stored_names.WAKE_ID_PREFIX}{self.run_id}"

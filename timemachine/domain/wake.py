"""Waking a job that goes on as a new run."""

import msgspec

from timemachine.domain import stored_names


class ContinuedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run that goes on as a new one. Stored in histories: fields may only be added, with defaults."""

    workflow_id: str
    first_run_id: str
    run_id: str

    @property
    def former_waker_id(self) -> str:
        """What the id of the workflow was that wakes the new run. A job could have it as well."""
        return f"{stored_names.FORMER_WAKE_ID_PREFIX}{self.run_id}"

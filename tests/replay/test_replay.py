"""Jobs that wait somewhere were started by older code: today's workflow must do with them what that did."""

from pathlib import Path

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

from timemachine.jobs import Job
from timemachine.temporal import DATA_CONVERTER
from workflows.job import JobWorkflow
from workflows.redelivery import RedeliveryWorkflow
from workflows.release import ReleaseWorkflow
from workflows.upkeep import CleanAttemptsWorkflow


@workflow.defn(name="Job", sandboxed=False)
class Different:
    @workflow.run
    async def run(self, job: Job) -> None:
        return None


WORKFLOWS = [JobWorkflow, RedeliveryWorkflow, ReleaseWorkflow, CleanAttemptsWorkflow]
HISTORIES = sorted((Path(__file__).parent / "histories").glob("*.json"))


@pytest.mark.parametrize("file", HISTORIES, ids=lambda file: file.stem)
async def test_a_recorded_history_replays(file: Path) -> None:
    replayer = Replayer(workflows=WORKFLOWS, data_converter=DATA_CONVERTER)

    await replayer.replay_workflow(WorkflowHistory.from_json("db/c/job", file.read_text()))


def test_every_kind_of_story_is_recorded() -> None:
    assert {file.stem for file in HISTORIES} >= {
        "delivered",
        "changed_then_delivered",
        "cancelled_while_waiting",
        "cancelled_between_attempts",
        "cancelled_in_flight_but_taken",
        "delivered_at_the_second_attempt",
        "redelivered_many",
        "released",
        "cleaned",
        "at_once_delivered",
        "at_once_changed_then_delivered",
        "at_once_cancelled_while_waiting",
        "at_once_cancelled_between_attempts",
        "at_once_cancelled_after_the_log_was_asked",
        "at_once_cancelled_in_flight_but_taken",
        "at_once_cancelled_while_the_task_is_held",
        "at_once_delivered_at_the_second_attempt",
        "at_once_held_then_released",
        "at_once_held_then_changed",
    }


async def test_a_workflow_that_does_something_else_does_not_replay() -> None:
    """The check itself can fail."""

    replayer = Replayer(workflows=[Different], data_converter=DATA_CONVERTER)
    file = next(file for file in HISTORIES if file.stem == "delivered")

    with pytest.raises(workflow.NondeterminismError):
        await replayer.replay_workflow(WorkflowHistory.from_json("db/c/job", file.read_text()))

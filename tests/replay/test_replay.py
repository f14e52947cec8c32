"""Jobs that wait somewhere were started by older code: today's workflow must do with them what that did."""

import json
from datetime import UTC
from pathlib import Path

import pytest
from temporalio import workflow
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client
from temporalio.worker import Replayer

from tests.replay.commands import COMMANDS, HISTORIES, all_commands, commands_of, read_history
from tests.replay.stories import (
    LEDGER,
    Stage,
    Story,
    cancelled_while_waiting,
    delivered,
    held_then_changed,
    held_then_triggered,
    names,
    triggered_then_delivered,
)
from tests.support.receiver import Receiver
from tests.support.service import Service
from tests.support.spans import TRACEPARENT
from timemachine.domain.jobs import Job
from timemachine.temporal.payloads import DATA_CONVERTER
from workflows.cancel_many import CancelManyWorkflow
from workflows.job import JobWorkflow
from workflows.redelivery import RedeliveryWorkflow
from workflows.release import ReleaseWorkflow
from workflows.retention import CleanAttemptsWorkflow
from workflows.wake import WakeWorkflow


@workflow.defn(name="Job", sandboxed=False)
class Different:
    @workflow.run
    async def run(self, job: Job) -> None:
        return None


WORKFLOWS = [
    JobWorkflow,
    WakeWorkflow,
    RedeliveryWorkflow,
    ReleaseWorkflow,
    CancelManyWorkflow,
    CleanAttemptsWorkflow,
]
FILES = sorted(HISTORIES.glob("*.json"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
async def test_a_recorded_history_replays(file: Path) -> None:
    await Replayer(workflows=WORKFLOWS, data_converter=DATA_CONVERTER).replay_workflow(read_history(file))


@pytest.mark.parametrize("deadline_after", [-5, 5, 60], ids="{} s".format)
async def test_a_job_that_was_released_before_deadlines_counted_replays(deadline_after: int) -> None:
    """It waits for the moment that it was given then."""
    history = read_history(HISTORIES / f"{LEDGER}released_then_triggered.json")
    signal = next(
        event for event in history.events if event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED
    )
    (asked,) = history.events[0].workflow_execution_started_event_attributes.input.payloads
    deadline = int(signal.event_time.ToDatetime(UTC).timestamp() + deadline_after) * 1000
    asked.data = json.dumps(json.loads(asked.data) | {"deadline": deadline}).encode()

    await Replayer(workflows=[JobWorkflow], data_converter=DATA_CONVERTER).replay_workflow(history)


async def test_a_history_that_an_older_worker_let_grow_beyond_the_limit_replays() -> None:
    """That worker did not know the limit which came with the job."""
    history = read_history(HISTORIES / f"{LEDGER}changed_then_delivered.json")
    updates = [event.workflow_execution_update_accepted_event_attributes for event in history.events]
    inputs = [
        history.events[0].workflow_execution_started_event_attributes.input,
        *(update.accepted_request.input.args for update in updates if update.HasField("accepted_request")),
    ]
    assert len(inputs) > 2
    for asked in inputs:
        (job,) = asked.payloads
        job.data = json.dumps(json.loads(job.data) | {"history_limit": 1}).encode()

    await Replayer(workflows=[JobWorkflow], data_converter=DATA_CONVERTER).replay_workflow(history)


async def test_what_is_linked_to_the_requests_that_led_to_it_replays() -> None:
    history = read_history(HISTORIES / f"{LEDGER}changed_then_triggered.json")
    updates = [event.workflow_execution_update_accepted_event_attributes for event in history.events]
    asked = [update.accepted_request.input for update in updates if update.HasField("accepted_request")]
    changes, triggers = ([each.args for each in asked if each.name == name] for name in ("change", "trigger"))
    for args in (history.events[0].workflow_execution_started_event_attributes.input, *changes):
        (job,) = args.payloads
        job.data = json.dumps(json.loads(job.data) | {"trace_links": [TRACEPARENT]}).encode()
    (trigger,) = triggers
    trigger.payloads.extend(DATA_CONVERTER.payload_converter.to_payloads([(TRACEPARENT,)]))

    await Replayer(workflows=[JobWorkflow], data_converter=DATA_CONVERTER).replay_workflow(history)


def test_every_story_is_recorded() -> None:
    assert names() <= {file.stem for file in FILES}


def test_what_is_recorded_is_what_was_reviewed() -> None:
    """A history that is recorded anew, or is gone, shows in the commands that are kept beside them."""
    assert all_commands() == COMMANDS.read_text()


@pytest.mark.parametrize(
    "story",
    [delivered, cancelled_while_waiting, held_then_changed, triggered_then_delivered, held_then_triggered],
    ids=lambda story: story.__name__,
)
async def test_todays_commands_are_those_that_were_recorded(
    story: Story, service: Service, receiver: Receiver, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else jobs that are on their way break when this code is deployed: a change of the order needs a patch."""
    monkeypatch.setattr("activities.deliver.TASK_PATIENCE", 4.0)  # lest a slow machine makes an attempt a slow one
    recorded = read_history(HISTORIES / f"{LEDGER}{story.__name__}.json")

    workflow = await story(Stage(service, receiver, client))

    assert commands_of(await workflow.fetch_history()) == commands_of(recorded)


async def test_a_workflow_that_does_something_else_does_not_replay() -> None:
    """The check itself can fail."""
    replayer = Replayer(workflows=[Different], data_converter=DATA_CONVERTER)

    with pytest.raises(workflow.NondeterminismError):
        await replayer.replay_workflow(read_history(HISTORIES / "delivered.json"))

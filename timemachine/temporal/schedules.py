"""The door to Temporal's schedules: what runs by itself, again and again."""

from datetime import timedelta

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleUpdate,
    ScheduleUpdateInput,
)

from timemachine.domain import stored_names

CLEAN_EVERY = timedelta(hours=1)


async def ensure_schedules(client: Client, *, task_queue: str) -> None:
    """Create our schedules, or bring them up to this version; one that an operator has paused stays so.

    Raises:
        temporalio.service.RPCError: Temporal does not answer, or refuses.
    """
    wanted = _clean_attempts(task_queue)
    try:
        await client.create_schedule(stored_names.CLEAN_ATTEMPTS_SCHEDULE, wanted)
    except ScheduleAlreadyRunningError:

        async def bring_up(present: ScheduleUpdateInput) -> ScheduleUpdate:
            wanted.state = present.description.schedule.state
            return ScheduleUpdate(wanted)

        await client.get_schedule_handle(stored_names.CLEAN_ATTEMPTS_SCHEDULE).update(bring_up)


def _clean_attempts(task_queue: str) -> Schedule:
    return Schedule(
        action=ScheduleActionStartWorkflow(
            stored_names.CLEAN_ATTEMPTS, id=stored_names.CLEAN_ATTEMPTS_SCHEDULE, task_queue=task_queue
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=CLEAN_EVERY)]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=CLEAN_EVERY),
    )

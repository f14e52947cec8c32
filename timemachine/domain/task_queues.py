"""Task queues: which work waits where. Pure."""

BULK_SUFFIX = "-bulk"


def bulk_task_queue(task_queue: str) -> str:
    """Return the task queue of bulk work: releases, redeliveries of many, and upkeep. Deliveries never wait behind it.

    Args:
        task_queue: The one that jobs are delivered from, which is the setting.
    """
    return f"{task_queue}{BULK_SUFFIX}"

"""Task queues: which work waits where."""

BULK_SUFFIX = "-bulk"


def bulk_task_queue(task_queue: str) -> str:
    """Return the task queue of operations and retention. Deliveries never wait behind them.

    Args:
        task_queue: The one that jobs are delivered from, which is the setting.
    """
    return f"{task_queue}{BULK_SUFFIX}"

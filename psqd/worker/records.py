"""What the executor writes to the storage about a task."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from psq.brokers.base import QueueSpec
from psq.context import TaskContext
from psq.message import Message
from psq.storages.base import TERMINAL, TaskRecord

__all__ = ["error_text", "record_of", "task_context"]


def error_text(error: Mapping[str, Any]) -> str:
    """``ValueError: text`` of an error document, builtins without their module."""
    kind = str(error.get("type", "")).removeprefix("builtins:").replace(":", ".")
    text = str(error.get("message", ""))
    return f"{kind}: {text}" if text else kind


def record_of(
    message: Message, queue: QueueSpec, task: TaskContext | None, state: str, worker: str, result_ttl: float
) -> TaskRecord:
    """A task's record in a state, as of now.

    A broadcast task has a record for each worker that runs it, ``task-id@member``, and one by its own id, from
    the worker that ends first: what its sender reads (`psqd.worker.steps`).

    Args:
        message: The task.
        queue: Where it came from.
        task: What ran, or None where nothing did.
        state: The state to write.
        worker: ``host:pid``.
        result_ttl: Seconds for which a terminal state is kept.
    """
    now = time.time()
    terminal = state in TERMINAL
    return TaskRecord(
        f"{message.id}@{queue.member}" if queue.broadcast else message.id,
        state,
        queue.name,
        message.function,
        attempt=task.attempt if task is not None else message.attempt,
        run=message.run,
        enqueued_at=message.enqueued_at,
        started_at=task.started_at if task is not None else None,
        finished_at=now if terminal else None,
        worker=worker,
        expires_at=now + result_ttl,
    )


def task_context(
    message: Message, queue: str, retries: int | None, redelivered: bool | None, worker: str
) -> TaskContext:
    """What a task that starts now sees as `current_task`.

    Args:
        message: The task.
        queue: Name of the queue it came from.
        retries: It has in all; None: no limit.
        redelivered: Where the broker knows, else None.
        worker: ``host:pid``.
    """
    return TaskContext(
        message.id,
        message.function,
        queue,
        attempt=message.attempt,
        run=message.run,
        retries=retries,
        enqueued_at=message.enqueued_at,
        due_at=message.due_at,
        started_at=time.time(),
        redelivered=redelivered,
        strikes=message.strikes,
        worker=worker,
    )

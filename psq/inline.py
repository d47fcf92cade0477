"""``asynchronous=False``: a task is run where it is enqueued, the way a worker would, for tests."""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack
from contextvars import Context
from typing import TYPE_CHECKING, Any

from psq.concurrency import Waiter
from psq.context import TaskContext, enter_contexts, running
from psq.errors import SerializationError
from psq.failures import error_document
from psq.functions import Allowed, Resolved
from psq.message import Message, decode, encode
from psq.options import is_limited, over
from psq.retry import RetryPolicy
from psq.serializers import dump_bytes, load_call
from psq.storages.base import FAILED, FINISHED, TaskRecord
from psq.task import Retry

if TYPE_CHECKING:
    from psq.queue import Queue

__all__ = ["MAX_ATTEMPTS", "run"]

#: Attempts after which a task that asks for Retry for ever fails; there are no pauses here.
MAX_ATTEMPTS = 100


def run(queue: Queue, message: Message) -> TaskRecord:
    """Run a task now, through the wire format, with contexts and retries (without their pauses); its last record.

    The function's errors are in the record, as they would be with a worker. Delays are not waited for, time
    limits not kept.

    Raises:
        FunctionRefused, FunctionMissing: A worker could not run it.
    """
    data = encode(message)
    resolved = Allowed([message.function.partition(":")[0]]).resolve(message.function)
    while True:
        received = decode(data)
        record = _attempt(queue, received, resolved)
        if record is not None:
            break
        received = decode(data)  # the function may have changed its arguments
        received.attempt += 1
        data = encode(received)
    _store(queue, record)
    return record


def _attempt(queue: Queue, message: Message, resolved: Resolved) -> TaskRecord | None:
    """One attempt; its record, or None where it is to be run again."""
    options, started = resolved.options, time.time()
    policy = RetryPolicy() if options is None else options.policy(RetryPolicy())
    policy = over(policy, message.retry, message.retries)
    limited = is_limited(RetryPolicy(), options, message.retry, message.retries)
    worker = f"{socket.gethostname()}:{os.getpid()}"
    task = TaskContext(
        message.id,
        message.function,
        queue.name,
        attempt=message.attempt,
        run=message.run,
        retries=policy.retries,
        enqueued_at=message.enqueued_at,
        due_at=message.due_at,
        started_at=started,
        redelivered=False,
        worker=worker,
    )
    record = TaskRecord(
        message.id,
        FINISHED,
        queue.name,
        message.function,
        attempt=message.attempt,
        run=message.run,
        enqueued_at=message.enqueued_at,
        started_at=started,
        worker=worker,
    )
    try:
        value = Context().run(_call, queue, message, task, resolved)
        record.result = dump_bytes(value, f"the result of {message.function}")
    except Retry as error:
        if message.attempt < MAX_ATTEMPTS and not (
            limited and policy.retries is not None and message.attempt > policy.retries
        ):
            return None
        record.state, record.error = FAILED, error_document(error)
    except (Exception, SystemExit) as error:
        if (
            not isinstance(error, SerializationError)
            and message.attempt < MAX_ATTEMPTS
            and policy.decide(message.attempt, error) is not None
        ):
            return None
        record.state, record.error = FAILED, error_document(error)
    record.finished_at = time.time()
    return record


def _call(queue: Queue, message: Message, task: TaskContext, resolved: Resolved) -> Any:
    running(task, queue)
    args, kwargs = load_call(message.args, message.kwargs, lambda module: True)  # the caller's own classes
    with ExitStack() as stack:
        enter_contexts(stack, queue.extra_context)
        return resolved.function(*args, **kwargs)


def _store(queue: Queue, record: TaskRecord) -> None:
    storage = queue.storage
    if storage is None or record.state not in storage.store_on_status:
        return
    waiter = Waiter()
    storage.put(record, lambda _, error: waiter.set(error))
    waiter.wait()
    if waiter.value is not None:
        raise waiter.value

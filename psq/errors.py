"""The error tree of psq: one class for each thing that a caller can do about it.

    PsqError
     ├── ConfigError            fix the setting, URL or argument that is named
     ├── MissingDependency      install the extra that is named
     ├── FunctionRefused        give a function that a worker can import and may run
     ├── SerializationError     change the argument or result that is named
     │    └── MessageTooLarge   send less, or a reference to it
     ├── MessageInvalid         (daemon) not a message of ours: a dead letter
     │    └── MessageTooNew     (daemon) written by a newer psq: wait for the deploy
     ├── BrokerError
     │    ├── BrokerUnavailable nothing was sent: try again
     │    ├── PublishUnknown    it may have been accepted: enqueue again with the same task id
     │    └── BrokerRefused     the broker said no: mend permissions or names
     ├── EnqueueFailed          some tasks of a batch were not accepted: they are listed
     ├── LeaseLost              somebody else may have the task by now
     ├── StorageError
     │    ├── StorageUnavailable  try again
     │    └── StorageRefused      the record itself is not acceptable
     ├── NoStorage              give the queue a storage
     ├── TaskNotFound           the id is unknown, or its result has expired
     ├── ResultTimeout          (also a TimeoutError) wait longer, or look later
     └── TaskFailed             the task raised: type, message and traceback are here
          └── TaskCancelled

`Retry` is no error: a task raises it to be run again. The interrupts
(`Interrupt` and what is below it) are BaseExceptions, so that a task's
``except Exception`` does not swallow them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "BrokerError",
    "BrokerRefused",
    "BrokerUnavailable",
    "ConfigError",
    "EnqueueFailed",
    "FunctionRefused",
    "Interrupt",
    "LeaseLost",
    "MessageInvalid",
    "MessageTooLarge",
    "MessageTooNew",
    "MissingDependency",
    "NoStorage",
    "PsqError",
    "PublishUnknown",
    "ResultTimeout",
    "SerializationError",
    "SoftTimeLimitExceeded",
    "StorageError",
    "StorageRefused",
    "StorageUnavailable",
    "TaskCancelled",
    "TaskFailed",
    "TaskInterrupted",
    "TaskNotFound",
    "TimeLimitExceeded",
]


class PsqError(Exception):
    """Base of all errors that psq raises."""


class ConfigError(PsqError, ValueError):
    """A setting, URL or argument is wrong; the text names it and what is valid."""


class MissingDependency(PsqError, ImportError):
    """A client library is not installed; the text names the package to install."""


class FunctionRefused(PsqError, ValueError):
    """The function can't be run by a worker, or may not; the text says why and what to write."""


class SerializationError(PsqError, TypeError):
    """An argument or result can't be said in the wire format; the text names it."""


class MessageTooLarge(SerializationError):
    """The encoded message is over the broker's limit.

    Attributes:
        size: Bytes of the encoded message.
        limit: Bytes that the broker takes.
    """

    def __init__(self, text: str, *, size: int = 0, limit: int = 0) -> None:
        super().__init__(text)
        self.size = size
        self.limit = limit


class MessageInvalid(PsqError, ValueError):
    """A payload is not a message of ours."""


class MessageTooNew(MessageInvalid):
    """A payload has a wire version that this psq does not know yet.

    Attributes:
        task_id: The task's id, which stands at the same place in all versions; "" where it has none.
    """

    task_id: str = ""


class BrokerError(PsqError):
    """Base of what goes wrong between us and the broker."""


class BrokerUnavailable(BrokerError, ConnectionError):
    """The broker can't be reached; nothing was sent. Trying again is safe."""


class PublishUnknown(BrokerError):
    """The task was sent and no answer came: it may have been accepted.

    Enqueue again with the same task id; two copies then count as one task.

    Attributes:
        task_id: The id to use again, or None where several tasks were sent.
    """

    def __init__(self, text: str, *, task_id: str | None = None) -> None:
        super().__init__(text)
        self.task_id = task_id


class BrokerRefused(BrokerError):
    """The broker refused: no permission, a wrong name, a project that does not exist."""


class EnqueueFailed(BrokerError):
    """Some tasks of a batch were not accepted.

    Attributes:
        errors: (index in the batch, task id, error) of each task that was not accepted.
        results: The results of all tasks in order; those not accepted are None.
    """

    def __init__(
        self,
        text: str,
        *,
        errors: Sequence[tuple[int, str, Exception]] = (),
        results: Sequence[Any] = (),
    ) -> None:
        super().__init__(text)
        self.errors = list(errors)
        self.results = list(results)


class LeaseLost(BrokerError):
    """The lease on a delivery is over: another worker may have the task."""


class StorageError(PsqError):
    """Base of what goes wrong between us and the storage."""


class StorageUnavailable(StorageError, ConnectionError):
    """The storage can't be reached or is overloaded. Trying again is safe."""


class StorageRefused(StorageError):
    """The storage refuses this record or request, and would again.

    Attributes:
        everything: It refuses whatever it is asked (no permission, no such database, a file that is not
            writable): nothing is wrong with this record.
    """

    everything: bool = False


class NoStorage(PsqError):
    """The queue has no storage, so there is nothing to wait for."""


class TaskNotFound(PsqError, KeyError):
    """No task or dead letter with this id."""

    def __str__(self) -> str:  # KeyError would show the repr
        return str(self.args[0]) if self.args else ""


class ResultTimeout(PsqError, TimeoutError):
    """The task has no result yet after the time that was given."""


class TaskFailed(PsqError):
    """The task raised an error in its worker.

    What `result()` raises is both this and the original type, where that is a
    builtin or a class that this process has imported.

    Attributes:
        task_id: Id of the task.
        error_type: ``module:QualName`` of the original error.
        message: Text of the original error.
        traceback: The traceback's text, as in the worker.
    """

    def __init__(
        self, text: str, *, task_id: str = "", error_type: str = "", message: str = "", traceback: str = ""
    ) -> None:
        super().__init__(text)
        self.task_id = task_id
        self.error_type = error_type
        self.message = message
        self.traceback = traceback


class TaskCancelled(TaskFailed):
    """The task was cancelled before it ended."""


class Interrupt(BaseException):
    """Base of what psqd throws into a running task; never swallowed by ``except Exception``."""


class TaskInterrupted(Interrupt):
    """The worker stops: the task is given back and runs again elsewhere."""


class TimeLimitExceeded(Interrupt):
    """The task ran longer than its ``time_limit``."""


class SoftTimeLimitExceeded(PsqError):
    """The task ran longer than its ``soft_time_limit``: clean up and end."""

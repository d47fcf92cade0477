"""`TaskResult`: what became of a task."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from psq.errors import NoStorage, PsqError, ResultTimeout, TaskFailed
from psq.failures import ErrorDocument, cancelled, error_document, rebuild
from psq.message import check_id
from psq.poller import poller_of
from psq.serializers import load_bytes
from psq.storages.base import CANCELLED, FAILED, FINISHED, TERMINAL, Storage, TaskRecord

if TYPE_CHECKING:
    from psq.queue import Queue

__all__ = ["UNKNOWN", "ErrorDocument", "Task", "TaskResult", "error_document"]

#: The status of a task of which nothing is stored.
UNKNOWN = "unknown"


def _is_imported(module: str) -> bool:
    return module in sys.modules


def _value(record: TaskRecord) -> Any:
    """A terminal record's value.

    Raises:
        TaskFailed: The task failed, or was cancelled.
        SerializationError: The value holds a class whose module is not imported here.
    """
    if record.state == CANCELLED:
        raise cancelled(record.id)
    if record.state == FAILED:
        raise rebuild(record.error or {}, record.id)
    return None if record.result is None else load_bytes(record.result, _is_imported)


class Task:
    """A task as it is stored, the way psq 0.8 showed it. The record's own attributes are there as well.

    Attributes:
        record: The record.
    """

    __slots__ = ("record",)

    def __init__(self, record: TaskRecord) -> None:
        self.record = record

    @property
    def id(self) -> str:
        """Task id."""
        return self.record.id

    @property
    def status(self) -> str:
        """One of the states."""
        return self.record.state

    @property
    def f(self) -> str:
        """The function's name, ``module:qualname``."""
        return self.record.function

    @property
    def retries(self) -> int:
        """Attempts after the first."""
        return self.record.attempt - 1

    @property
    def result(self) -> Any:
        """The value; the error, where the task failed; None while it has not ended."""
        if self.record.state not in TERMINAL:
            return None
        try:
            return _value(self.record)
        except TaskFailed as error:
            return error

    def summary(self) -> str:
        """One line for people."""
        return f"{self.id}: {self.f} -> {self.result!r} ({self.status})"

    def __getattr__(self, name: str) -> Any:
        if name == "record":  # not set yet: copy and pickle look before it is
            raise AttributeError(name)
        return getattr(self.record, name)

    def __repr__(self) -> str:
        return f"<Task {self.summary()}>"


class TaskResult:
    """What became of a task. Cheap to make; nothing is read before it is asked for.

    Safe from any thread and greenlet.

    Args:
        task_id: The task's id.
        queue: Its queue; by default the running task's own.

    Attributes:
        id: The task's id.
    """

    __slots__ = ("_batch", "_queue", "_record", "id")

    def __init__(self, task_id: str, queue: Queue | None = None) -> None:
        self.id = check_id(task_id)
        if queue is None:
            from psq.context import current_queue

            queue = current_queue._get_current_object()  # type: ignore[attr-defined]
        self._queue = queue
        self._record: TaskRecord | None = None
        self._batch: Any = None

    @classmethod
    def _of(cls, task_id: str, queue: Queue, record: TaskRecord | None = None, batch: Any = None) -> TaskResult:
        """For ids that were checked: of an enqueue."""
        self = cls.__new__(cls)
        self.id, self._queue, self._record, self._batch = task_id, queue, record, batch
        return self

    @property
    def task_id(self) -> str:
        """The id, by psq 0.8's name."""
        return self.id

    @property
    def status(self) -> str:
        """The state that is stored, ``unknown`` while nothing is. Reads the storage once.

        By default only terminal states are stored (`Storage.store_on_status`).

        Raises:
            NoStorage: The queue has none.
            StorageUnavailable: Try again.
        """
        record = self._look()
        return UNKNOWN if record is None else record.state

    def get_task(self) -> Task | None:
        """The task as it is stored, or None. Reads the storage once."""
        record = self._look()
        return None if record is None else Task(record)

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the task's end, and give its value.

        Waiters of one process share their reads: at most 8 in the first second, 5 a second after.

        Args:
            timeout: Seconds; None waits for ever, 0 looks once.

        Raises:
            NoStorage: The queue keeps no results. At once.
            ResultTimeout: No result within the time. Also a TimeoutError.
            TaskFailed: The task failed; also of the original error's type, where this process knows it.
            StorageRefused: The storage may not be read.
        """
        record = self._record
        if record is None:
            record = self._wait(timeout)
            if record.state == FINISHED:  # a failed one may be requeued and end otherwise
                self._record = record
        return _value(record)

    def _storage(self) -> Storage:
        if self._batch is not None:
            if self._batch.open:
                raise PsqError("the task is still in its batch: ask for results after the `with` block")
            if self._batch.dropped:
                raise PsqError("the task was never sent: the `with` block of its batch raised")
        storage = self._queue.storage
        if storage is None:
            raise NoStorage(
                f"the queue {self._queue.name!r} keeps no results: give it a storage, "
                "Queue(…, storage=psq.DatastoreStorage()) or a URL, on both sides"
            )
        return storage

    def _look(self) -> TaskRecord | None:
        return self._record if self._record is not None else self._storage().get([self.id]).get(self.id)

    def _wait(self, timeout: float | None) -> TaskRecord:
        if timeout is not None and timeout <= 0:
            record = self._look()
            if record is not None and record.state in TERMINAL:
                return record
            raise ResultTimeout(f"the task {self.id} has no result yet")
        found = poller_of(self._storage()).wait(self.id, timeout)
        if isinstance(found, TaskRecord):
            return found
        text = f"the task {self.id} has no result after {timeout:g} s"
        if found is not None:
            raise ResultTimeout(f"{text}; the storage can't be read: {found}") from found
        raise ResultTimeout(text)

    def __repr__(self) -> str:
        return f"<TaskResult {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskResult) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

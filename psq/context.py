"""What a running task can ask: `current_task`, `current_queue`; and the contexts it runs in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psq.queue import Queue

__all__ = [
    "ExtraContext",
    "TaskContext",
    "current_queue",
    "current_task",
    "enter_contexts",
    "queue_context",
    "running",
    "task_context",
]

#: Makes the context manager that a task runs in, as ``app.app_context``; or several, entered in order.
ExtraContext = Callable[[], AbstractContextManager[Any]] | Iterable[Callable[[], AbstractContextManager[Any]]]


class TaskContext:
    """The running task, as `psq.current_task` shows it.

    Attributes:
        id: Task id.
        function: ``module:qualname``.
        queue: Name of the queue it came from.
        attempt: psq's own count, 1 for the first.
        run: Grows when a dead letter is requeued.
        retries: Retries it has in all; None: no limit.
        enqueued_at: Unix time of the first enqueue, seconds.
        due_at: Unix time before which it was not to start, or None.
        started_at: Unix time of this start.
        redelivered: True or False where the broker knows (SQLite), else None.
        strikes: One record for each earlier start that never ended because its worker died.
        worker: ``host:pid``.
    """

    __slots__ = (
        "attempt",
        "due_at",
        "enqueued_at",
        "function",
        "id",
        "queue",
        "redelivered",
        "retries",
        "run",
        "started_at",
        "strikes",
        "worker",
    )

    def __init__(
        self,
        id: str,
        function: str,
        queue: str,
        *,
        attempt: int = 1,
        run: int = 1,
        retries: int | None = 0,
        enqueued_at: float = 0.0,
        due_at: float | None = None,
        started_at: float = 0.0,
        redelivered: bool | None = None,
        strikes: Sequence[Mapping[str, Any]] = (),
        worker: str = "",
    ) -> None:
        self.id, self.function, self.queue = id, function, queue
        self.attempt, self.run, self.retries = attempt, run, retries
        self.enqueued_at, self.due_at, self.started_at = enqueued_at, due_at, started_at
        self.redelivered, self.strikes, self.worker = redelivered, strikes, worker

    def __repr__(self) -> str:
        return f"<psq task {self.id} {self.function} attempt {self.attempt}>"


_task: ContextVar[TaskContext | None] = ContextVar("psq.current_task", default=None)
_queue: ContextVar[Queue | None] = ContextVar("psq.current_queue", default=None)


def running(task: TaskContext | None, queue: Queue | None) -> None:
    """Say what runs in the present `contextvars.Context`. Two plain sets.

    The caller runs each task in a context of its own, so nothing is reset.
    """
    _task.set(task)
    _queue.set(queue)


class _Current:
    """Stands for whatever the context variable holds at the moment; false outside of a task."""

    __slots__ = ("_name", "_variable")

    def __init__(self, variable: ContextVar[Any], name: str) -> None:
        object.__setattr__(self, "_variable", variable)
        object.__setattr__(self, "_name", name)

    def _get_current_object(self) -> Any:
        value = self._variable.get()
        if value is None:
            raise RuntimeError(f"psq.{self._name} is there only while a task runs")
        return value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and self._variable.get() is None:  # inspect and doctest ask for such
            raise AttributeError(name)
        return getattr(self._get_current_object(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._get_current_object(), name, value)

    def __reduce__(self) -> str:
        return str(self._name)  # a copy is this one; so is what another process unpickles

    def __bool__(self) -> bool:
        return self._variable.get() is not None

    def __eq__(self, other: object) -> bool:
        mine = self._variable.get()
        return bool(mine == (other._variable.get() if isinstance(other, _Current) else other))

    def __hash__(self) -> int:
        return hash(self._variable.get())

    def __repr__(self) -> str:
        value = self._variable.get()
        return repr(value) if value is not None else f"<psq.{self._name}: no task runs here>"


if TYPE_CHECKING:
    current_task: TaskContext
    current_queue: Queue
else:
    current_task = _Current(_task, "current_task")
    current_queue = _Current(_queue, "current_queue")


def enter_contexts(stack: ExitStack, extra_context: ExtraContext | None) -> None:
    """Enter a queue's contexts, in order; the stack leaves them in reverse, whatever the task raised.

    Args:
        stack: Left by the caller with the task's own error, BaseExceptions included.
        extra_context: A callable that makes a context manager, several of them, or None.
    """
    if extra_context is None:
        return
    for make in (extra_context,) if callable(extra_context) else extra_context:
        stack.enter_context(make())


@contextmanager
def queue_context(queue: Queue) -> Iterator[None]:
    """Make a queue `current_queue` within the block, in its own contexts: for tests, and programs of psq 0.8."""
    token = _queue.set(queue)
    try:
        with ExitStack() as stack:
            enter_contexts(stack, queue.extra_context)
            yield
    finally:
        _queue.reset(token)


@contextmanager
def task_context(task: TaskContext) -> Iterator[None]:
    """Make a task `current_task` within the block: for tests, and programs of psq 0.8."""
    token = _task.set(task)
    try:
        yield
    finally:
        _task.reset(token)

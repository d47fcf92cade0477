"""`@task`: a function that can enqueue itself; `Retry`; the states of a task.

The module itself is callable, so that ``@psq.task`` works although this file is named so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast, overload

from psq.errors import ConfigError, FunctionRefused
from psq.functions import OPTIONS_ATTRIBUTE
from psq.options import MAX_DELAY, Options, TaskOptions
from psq.storages.base import CANCELLED, FAILED, FINISHED, QUEUED, RETRYING, SCHEDULED, STARTED

if TYPE_CHECKING:
    from psq.queue import Queue
    from psq.result import TaskResult
    from psq.retry import RetryPolicy

__all__ = [
    "CANCELLED",
    "FAILED",
    "FINISHED",
    "QUEUED",
    "RETRYING",
    "SCHEDULED",
    "STARTED",
    "Delayed",
    "Retry",
    "TaskFunction",
    "task",
]

P = ParamSpec("P")
R = TypeVar("R")


class Retry(Exception):
    """Raised in a task: run it again.

    With no limit, unless `retries` is set for the task.

    Args:
        delay: Seconds, or a timedelta, until then; None: as the retry policy says.
        args: What the log should show.

    Attributes:
        delay: Seconds, or None.
    """

    def __init__(self, delay: float | timedelta | str | None = None, *args: object) -> None:
        if isinstance(delay, timedelta):
            delay = delay.total_seconds()
        if delay is not None and (type(delay) not in (int, float) or not 0 <= cast("float", delay) <= MAX_DELAY):
            if not isinstance(delay, str):
                raise ConfigError(f"Retry's delay is seconds, 0 to {MAX_DELAY:,}, or a timedelta, not {delay!r}")
            args, delay = (delay, *args), None  # Retry("why"), as psq 0.8 took it
        super().__init__(*args)
        self.delay = cast("float | None", delay)


class TaskFunction(Generic[P, R]):
    """What `@task` makes, for type checkers: the function itself, with these attributes."""

    if TYPE_CHECKING:
        __name__: str
        __qualname__: str
        __wrapped__: Callable[P, R]

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
            """Call the function, here and now."""

        def delay(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskResult:
            """Enqueue it."""

        def defer(self, when: float | timedelta | datetime, /, *args: P.args, **kwargs: P.kwargs) -> TaskResult:
            """Enqueue it for later: seconds, a timedelta, or an aware datetime."""

        def options(
            self,
            *,
            queue: Queue | Callable[[], Queue] | str | None = None,
            delay: float | timedelta | None = None,
            eta: datetime | float | None = None,
            task_id: str | None = None,
            retries: int | None = None,
            retry: RetryPolicy | Mapping[str, Any] | None = None,
            time_limit: float | None = None,
            soft_time_limit: float | None = None,
            publish_timeout: float | None = None,
        ) -> Delayed[P, R]:
            """Other options for the `delay` or `defer` that follows."""


class Delayed(Generic[P, R]):
    """A function with the options that its next enqueues have. Immutable.

    Args:
        function: The function that `@task` was put on.
        queue: Where to; None: where `@task` says.
        options: As for `Queue.options`.
    """

    __slots__ = ("_function", "_options", "_queue")

    def __init__(
        self,
        function: Callable[P, R],
        queue: Queue | Callable[[], Queue] | str | None = None,
        options: Options | None = None,
    ) -> None:
        self._function, self._queue, self._options = function, queue, options

    def delay(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskResult:
        """Enqueue the function; see `Queue.enqueue`."""
        return self._target(self._options).enqueue(self._function, *args, **kwargs)

    def defer(self, when: float | timedelta | datetime, /, *args: P.args, **kwargs: P.kwargs) -> TaskResult:
        """Enqueue the function for later.

        Args:
            when: Seconds from now, a timedelta, or an aware datetime.
            args: The function's.
            kwargs: The function's.
        """
        key = "eta" if isinstance(when, datetime) else "delay"
        options = (self._options or Options()).changed(**{key: when})
        return self._target(options).enqueue(self._function, *args, **kwargs)

    def options(self, *, queue: Queue | Callable[[], Queue] | str | None = None, **options: Any) -> Delayed[P, R]:
        """A copy with these options changed; see `Queue.options` for what there is."""
        changed = (self._options or Options()).changed(**options) if options else self._options
        return Delayed(self._function, queue if queue is not None else self._queue, changed)

    def _target(self, options: Options | None) -> Queue:
        """Where to, with these options over those that the queue has."""
        queue = self._queue_asked_for()
        if options is None:
            return queue
        return queue._with(options if queue._options is None else queue._options.with_those_of(options))

    def _queue_asked_for(self) -> Queue:
        own = cast("TaskOptions", getattr(self._function, OPTIONS_ATTRIBUTE)).queue
        wanted = self._queue if self._queue is not None else own
        if isinstance(wanted, str) and wanted is not own and own is not None and not isinstance(own, str):
            return _queue_of(own).named(wanted)  # beside the task's own queue
        return _queue_of(wanted)

    def __repr__(self) -> str:
        return f"<{self._function.__qualname__} with {self._options}>"


_given: dict[Callable[[], Queue], Queue] = {}  # a callable is asked once, at the first delay


def _queue_of(wanted: Queue | Callable[[], Queue] | str | None) -> Queue:
    from psq.queue import Queue

    if isinstance(wanted, Queue):
        return wanted
    if wanted is None or isinstance(wanted, str):
        from psq.context import current_queue

        name = wanted if wanted is not None else "default"
        # In a task, by the broker that brought the task; a worker's environment may name none
        return current_queue.named(name) if current_queue else Queue(name=name)
    queue = _given.get(wanted)
    if queue is None:
        queue = wanted() if callable(wanted) else None
        if not isinstance(queue, Queue):
            raise ConfigError(
                f"@task(queue=…) takes a Queue, a callable that gives one, or a name; {wanted!r} gave {queue!r}"
            )
        _given[wanted] = queue
    return queue


@overload
def task(function: Callable[P, R], /) -> TaskFunction[P, R]: ...


@overload
def task(
    *,
    queue: Queue | Callable[[], Queue] | str | None = None,
    retries: int | None = None,
    retry: RetryPolicy | Mapping[str, Any] | None = None,
    time_limit: float | None = None,
    soft_time_limit: float | None = None,
    publish_timeout: float | None = None,
) -> Callable[[Callable[P, R]], TaskFunction[P, R]]: ...


def task(function: Any = None, /, **options: Any) -> Any:
    """Say how a function is run as a task, and give it `delay`, `defer` and `options`.

    The function stays what it is: ``adder(5, 6)`` calls it. ``adder.delay(5, 6)`` enqueues it,
    ``adder.defer(60, 5, 6)`` in a minute, ``adder.options(queue="slow").delay(5, 6)`` elsewhere.
    What is said here yields to ``options``, and goes before what the queue's config says.

    Args:
        function: A function; absent where options are given.
        options: ``queue``: a Queue, a callable that gives one, or a name, which is resolved at the
            first `delay` through PSQ_BROKER and PSQ_STORAGE. ``retries``: retries after an exception.
            ``retry``: a RetryPolicy, or a dict of its keys. ``time_limit``, ``soft_time_limit``: seconds.
            ``publish_timeout``: seconds that an enqueue may take.

    Raises:
        FunctionRefused: Not a function made with def.
        ConfigError: An option's value is not valid.
    """
    if function is None:
        settings = TaskOptions(**options)
        return lambda function: _prepare(function, settings)
    if options:
        raise ConfigError("write @task(…) with options, or @task without")
    return _prepare(function, TaskOptions())


def _prepare(function: Any, settings: TaskOptions) -> Any:
    if not isinstance(function, FunctionType):
        raise FunctionRefused(f"@task is for functions made with def, not for a {type(function).__name__}")
    delayed: Delayed[..., Any] = Delayed(function)
    setattr(function, OPTIONS_ATTRIBUTE, settings)
    for name in ("delay", "defer", "options"):
        setattr(function, name, getattr(delayed, name))
    return function


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return task(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule

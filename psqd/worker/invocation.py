"""Calls a task's function: arguments, contexts, time limits, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from contextvars import Context
from typing import Any

import gevent

from psq.context import TaskContext, enter_contexts, running
from psq.errors import SoftTimeLimitExceeded, TaskInterrupted, TimeLimitExceeded
from psq.functions import Resolved
from psq.message import Message
from psq.options import is_limited, over
from psq.result import error_document
from psq.retry import RetryPolicy
from psq.serializers import load
from psq.task import Retry
from psqd.worker.outcome import Failed, Finished, Interrupted, Outcome, Retried

__all__ = ["Invocation"]


class Invocation:
    """Runs the functions of one queue.

    Args:
        queue: The psq.Queue that tasks see as `current_queue`.
        extra_context: Gives a context manager to enter around each task, or None.
        policy: The queue's own retry policy.
        time_limit: The queue's own, seconds, or None.
        soft_time_limit: The queue's own, seconds, or None.
        allow_module: Tells whether a module's dataclasses and enums may stand in arguments.
    """

    def __init__(
        self,
        queue: Any,
        extra_context: Callable[[], Any] | None,
        policy: RetryPolicy,
        time_limit: float | None,
        soft_time_limit: float | None,
        allow_module: Callable[[str], bool],
    ) -> None:
        self._queue, self._extra_context, self._policy = queue, extra_context, policy
        self._time_limit, self._soft_time_limit = time_limit, soft_time_limit
        self._allow_module = allow_module
        self._task_policies: dict[str, RetryPolicy] = {}

    def run(self, message: Message, task: TaskContext, resolved: Resolved, tagged: bool) -> Outcome:
        """Call the function, in this greenlet and a fresh context.

        Args:
            message: The task.
            task: What it sees as `current_task`.
            resolved: Its function.
            tagged: Whether its arguments hold tagged values.

        Returns:
            The outcome; whatever the function raises is one.
        """
        try:
            return Finished(Context().run(self._call, message, task, resolved, tagged))
        except TaskInterrupted:
            return Interrupted()
        except BaseException as error:  # SystemExit and KeyboardInterrupt fail the task; the worker lives
            return self._raised(message, task, resolved, error)

    def _call(self, message: Message, task: TaskContext, resolved: Resolved, tagged: bool) -> Any:
        args, kwargs = message.args, message.kwargs
        if tagged:
            args = [load(value, self._allow_module) for value in args]
            kwargs = {name: load(value, self._allow_module) for name, value in kwargs.items()}
        running(task, self._queue)
        options = resolved.options
        limit, soft = message.time_limit, message.soft_time_limit
        if limit is None:
            limit = options.time_limit if options is not None and options.time_limit is not None else self._time_limit
        if soft is None:
            soft = (
                options.soft_time_limit
                if options is not None and options.soft_time_limit is not None
                else self._soft_time_limit
            )
        if limit is None and soft is None and self._extra_context is None:
            return resolved.function(*args, **kwargs)
        with ExitStack() as stack:
            # Outermost, so that entering and leaving the contexts is under the limit too.
            if limit is not None:
                error = TimeLimitExceeded(f"it ran longer than its time_limit of {limit:g} s")
                stack.enter_context(gevent.Timeout(limit, error))
            if self._extra_context is not None:
                enter_contexts(stack, self._extra_context)
            # Innermost: it is for the function to catch. In a context that is left it would break the leaving.
            if soft is not None:
                late = SoftTimeLimitExceeded(f"it ran longer than its soft_time_limit of {soft:g} s")
                stack.enter_context(gevent.Timeout(soft, late))
            return resolved.function(*args, **kwargs)

    def policy(self, message: Message, resolved: Resolved) -> RetryPolicy:
        """Options of the call, over those of @task, over the queue's; key by key."""
        policy = self._policy
        if resolved.options is not None:
            known = self._task_policies.get(message.function)
            if known is None:  # made once: this is asked for before each start
                known = self._task_policies[message.function] = resolved.options.policy(policy)
            policy = known
        return over(policy, message.retry, message.retries)

    def _asked_again(
        self, message: Message, task: TaskContext, resolved: Resolved, error: Retry, document: Mapping[str, Any]
    ) -> Outcome:
        """`raise Retry`: again, with no limit unless retries were set somewhere."""
        policy = self.policy(message, resolved)
        limited = is_limited(self._policy, resolved.options, message.retry, message.retries)
        if limited and policy.retries is not None and task.attempt > policy.retries:
            return Failed(document, out_of_retries=policy.retries > 0)
        delay = error.delay
        if delay is None:
            delay = policy.pause(task.attempt)
        return Retried(max(0.0, delay), document)

    def _raised(self, message: Message, task: TaskContext, resolved: Resolved, error: BaseException) -> Outcome:
        _trim(error)
        document = error_document(error)
        try:
            if isinstance(error, Retry):
                return self._asked_again(message, task, resolved, error, document)
            delay = self.policy(message, resolved).decide(task.attempt, error)
        except Exception as problem:  # a policy that can't be: the task can't run forever for it
            _trim(problem)
            return Failed(error_document(problem))
        if delay is None:
            return Failed(document, out_of_retries=task.attempt > 1)
        return Retried(delay, document)


def _trim(error: BaseException) -> None:
    """Take our own frames off the top of a task's traceback: people look for theirs."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    if trace is not None:
        error.__traceback__ = trace

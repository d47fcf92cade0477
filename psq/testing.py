"""For the tests of programs that enqueue: queues that run inline, or that hold tasks until they are told.

``pytest_plugins = ["psq.testing"]`` in a conftest.py gives the fixtures `psq_eager` and `psq_held`.
psq itself never imports this.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from psq.context import ExtraContext
from psq.message import Message
from psq.publish import Draft
from psq.queue import Queue
from psq.result import TaskResult
from psq.serializers import load_call

__all__ = ["Held", "HeldQueue", "eager_queue"]


def eager_queue(name: str = "default", *, extra_context: ExtraContext | None = None) -> Queue:
    """A queue that runs each task when it is enqueued, through the wire format; needs no broker."""
    return Queue(name=name, extra_context=extra_context, asynchronous=False)


class Held(NamedTuple):
    """A task that a HeldQueue holds.

    Attributes:
        result: What enqueue returned.
        message: The task as it would be sent.
    """

    result: TaskResult
    message: Message

    @property
    def function(self) -> str:
        """``module:qualname``."""
        return self.message.function

    @property
    def args(self) -> tuple[Any, ...]:
        """Its positional arguments, as a worker would get them."""
        return tuple(load_call(self.message.args, {}, lambda module: True)[0])

    @property
    def kwargs(self) -> dict[str, Any]:
        """Its keyword arguments, as a worker would get them."""
        return load_call((), self.message.kwargs, lambda module: True)[1]


class HeldQueue(Queue):
    """A queue that holds what is enqueued until `drain` runs it here; needs no broker.

    Args:
        name: As for Queue.
        extra_context: As for Queue.

    Attributes:
        held: Tasks that wait, in order; delays and due times are in their messages.
    """

    def __init__(self, name: str = "default", *, extra_context: ExtraContext | None = None) -> None:
        super().__init__(name=name, extra_context=extra_context, asynchronous=False)
        self.held: list[Held] = []

    def _run_inline(self, task: Draft, result: TaskResult) -> None:
        self.held.append(Held(result, task.message))

    def drain(self, limit: int = 1000) -> int:
        """Run what is held, and what that enqueues here, in order, whatever is due; the number of tasks.

        Args:
            limit: Tasks after which tasks that enqueue each other for ever are an error.
        """
        ran = 0
        while self.held:
            if ran >= limit:
                raise RuntimeError(
                    f"{limit} tasks were run and {len(self.held)} more are held: do they enqueue each other?"
                )
            held = self.held.pop(0)
            super()._run_inline(Draft(held.message, 0.0), held.result)
            ran += 1
        return ran


try:
    import pytest
except ImportError:  # the helpers above need none
    pass
else:

    @pytest.fixture
    def psq_eager() -> Queue:
        """A queue that runs each task when it is enqueued."""
        return eager_queue()

    @pytest.fixture
    def psq_held() -> HeldQueue:
        """A queue that holds tasks until `drain`."""
        return HeldQueue()

"""`with q.batch():` collects what is enqueued and sends it together."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, overload

from psq.errors import PsqError

if TYPE_CHECKING:
    from types import TracebackType

    from psq.publish import Draft
    from psq.queue import Queue
    from psq.result import TaskResult

__all__ = ["Batch", "batch_for"]

_open: ContextVar[tuple[Batch, ...]] = ContextVar("psq.batches", default=())


def batch_for(queue: Queue) -> Batch | None:
    """The innermost open batch of this queue that this thread or greenlet began, or None."""
    for batch in reversed(_open.get()):
        if batch.takes(queue):
            return batch
    return None


class Batch(Sequence["TaskResult"]):
    """The results of what was enqueued in the block, in order; sent when the block ends.

    What the queue (or a copy of it with options) enqueues in the block, in the same thread or
    greenlet, joins the batch. A block that raises sends nothing.

    Attributes:
        open: The block has not ended: nothing was sent yet.
        dropped: The block raised: nothing was sent, or will be.
    """

    def __init__(self, queue: Queue) -> None:
        self.open = self.dropped = False
        self._queue = queue
        self._owner = 0
        self._drafts: list[Draft] = []
        self._results: list[TaskResult] = []
        self._token: Any = None

    def takes(self, queue: Queue) -> bool:
        """True while it is open, for the same queue in the same thread or greenlet."""
        return self.open and queue.is_same(self._queue) and self._owner == threading.get_ident()

    def add(self, draft: Draft, result: TaskResult) -> None:
        """Keep a task until the block ends."""
        self._drafts.append(draft)
        self._results.append(result)

    def join(self, result: TaskResult) -> None:
        """List the result of a task that was run inline."""
        self._results.append(result)

    def __enter__(self) -> Batch:
        if self._token is not None:
            raise PsqError("a batch is used once: write `with q.batch():` again")
        self.open, self._owner = True, threading.get_ident()
        self._token = _open.set((*_open.get(), self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send what was collected, unless the block raised.

        Raises:
            EnqueueFailed: Some tasks were not accepted; they are listed.
        """
        self.open = False
        _open.reset(self._token)
        drafts, self._drafts = self._drafts, []
        if kind is not None:
            self._results, self.dropped = [], True
        elif drafts:
            self._queue._send_all(drafts, self._results)

    def __len__(self) -> int:
        return len(self._results)

    @overload
    def __getitem__(self, index: int) -> TaskResult: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[TaskResult]: ...

    def __getitem__(self, index: int | slice) -> TaskResult | Sequence[TaskResult]:
        return self._results[index]

    def __iter__(self) -> Iterator[TaskResult]:
        return iter(self._results)

    def __repr__(self) -> str:
        return f"<psq batch of {len(self)} tasks for {self._queue.name!r}{', open' * self.open}>"

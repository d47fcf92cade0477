"""Group commit: one request in flight, whoever arrives meanwhile goes in the next.

Nobody leads. The completion of one request starts the next, so a caller that
is killed while it waits takes nobody along, and its item is still sent. There
is no timer: a caller alone waits one round trip, one among many at most two.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from psq.concurrency import Waiter, call_later

__all__ = ["Done", "Finish", "GroupCommit", "Start"]

T = TypeVar("T")

#: Called once for each item, in the thread that completed the request: (result, error).
Done = Callable[[Any, "Exception | None"], None]
#: Ends one request: a sequence with one result per item, None for "all good", or the error of all.
Finish = Callable[["Sequence[Any] | Exception | None"], None]
#: Begins one request and returns at once; calls `Finish` exactly once, from any thread.
Start = Callable[[Sequence[T], Finish], None]

#: Seconds after which a request in flight no longer holds back the next one.
DEFAULT_HASTEN = 1.0
#: Seconds before the first repetition of a request that failed for the moment, and the longest pause.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0

log = logging.getLogger("psq")


class _Entry(Generic[T]):
    __slots__ = ("deadline", "done", "item", "size")

    def __init__(self, item: T, size: int, done: Done, deadline: float | None) -> None:
        self.item, self.size, self.done, self.deadline = item, size, done, deadline


class GroupCommit(Generic[T]):
    """Collects items for one destination and sends them in as few requests as the limits allow.

    Safe from any thread and greenlet; `add` never blocks. An error that is
    transient is tried again with growing pauses until the item's deadline; any
    other is bisected to its culprit and never fails the other items.

    Args:
        start: Begins one request; see `Start`.
        max_items: Most items in one request.
        max_bytes: Most bytes in one request, by the sizes given to `add`; a single larger item goes alone.
        in_flight: Requests at a time.
        transient: Tells whether an error may go away by itself.
        key: Gives an item's key, where one request may not name a key twice.
        hasten: Seconds after which a request in flight does not hold back the next.
    """

    def __init__(
        self,
        start: Start[T],
        *,
        max_items: int,
        max_bytes: int,
        in_flight: int = 1,
        transient: Callable[[Exception], bool] = lambda error: False,
        key: Callable[[T], Any] | None = None,
        hasten: float = DEFAULT_HASTEN,
    ) -> None:
        self._start, self._transient, self._key, self._hasten = start, transient, key, hasten
        self._max_items, self._max_bytes, self._limit = max_items, max_bytes, in_flight
        self._lock = threading.Lock()
        self._waiting: deque[_Entry[T]] = deque()
        self._forced: deque[list[_Entry[T]]] = deque()  # halves of a batch that was refused
        self._flights: dict[int, float] = {}  # number -> when it began
        self._number = 0
        self._failures = 0
        self._paused = False

    def __len__(self) -> int:
        """Items that wait for a request."""
        return len(self._waiting) + sum(len(batch) for batch in self._forced)

    def idle(self) -> bool:
        """True when nothing waits and nothing is in flight."""
        return not (self._waiting or self._forced or self._flights)

    def add(self, item: T, size: int, done: Done, *, deadline: float | None = None) -> None:
        """Send an item with the next request.

        Args:
            item: What to send.
            size: Its bytes on the wire.
            done: Called once with (result, error).
            deadline: Monotonic instant after which a transient error is final; None: never.
        """
        with self._lock:
            self._waiting.append(_Entry(item, size, done, deadline))
        self.kick()

    def submit(self, item: T, size: int, *, timeout: float | None = None) -> Any:
        """Send an item and wait for its result.

        Args:
            item: What to send.
            size: Its bytes on the wire.
            timeout: Seconds after which a transient error is final. The request's own
                timeout ends the wait: this never gives up on an item that is on its way.

        Returns:
            The item's result.

        Raises:
            Exception: The item's error, as `start` gave it.
        """
        waiter = Waiter()
        deadline = None if timeout is None else time.monotonic() + timeout
        self.add(item, size, lambda result, error: waiter.set((result, error)), deadline=deadline)
        while not waiter.wait(self._hasten):
            self.kick()  # the one in flight is old by now
        result, error = waiter.value
        if error is not None:
            raise error
        return result

    def kick(self) -> None:
        """Start requests where items wait and a request is allowed. Never blocks."""
        while True:
            with self._lock:
                batch, number = self._next()
            if batch is None:
                return
            self._send(batch, number)

    def _next(self) -> tuple[list[_Entry[T]] | None, int]:
        if self._paused or not (self._waiting or self._forced):
            return None, 0
        now = time.monotonic()
        if sum(1 for began in self._flights.values() if now - began < self._hasten) >= self._limit:
            return None, 0
        batch = self._forced.popleft() if self._forced else self._cut()
        self._number += 1
        self._flights[self._number] = now
        return batch, self._number

    def _cut(self) -> list[_Entry[T]]:
        batch: list[_Entry[T]] = []
        size, waiting, key = 0, self._waiting, self._key
        if key is None and len(waiting) <= self._max_items and sum(e.size for e in waiting) <= self._max_bytes:
            batch = list(waiting)
            waiting.clear()
            return batch
        keys: set[Any] = set()
        later: list[_Entry[T]] = []
        while waiting and len(batch) < self._max_items:
            entry = waiting[0]
            if batch and size + entry.size > self._max_bytes:
                break
            waiting.popleft()
            if key is not None:
                if (k := key(entry.item)) in keys:
                    later.append(entry)
                    continue
                keys.add(k)
            batch.append(entry)
            size += entry.size
        waiting.extendleft(reversed(later))
        return batch

    def _send(self, batch: list[_Entry[T]], number: int) -> None:
        def finish(outcome: Sequence[Any] | Exception | None) -> None:
            self._finish(batch, number, outcome)

        try:
            self._start([entry.item for entry in batch], finish)
        except Exception as error:  # a start that raises has sent nothing
            finish(error)

    def _finish(self, batch: list[_Entry[T]], number: int, outcome: Sequence[Any] | Exception | None) -> None:
        ended: list[tuple[_Entry[T], Any, Exception | None]] = []
        pause = 0.0
        with self._lock:
            if self._flights.pop(number, None) is None:
                return  # finished twice
            if not isinstance(outcome, Exception):
                self._failures = 0
                results: Sequence[Any] = outcome if outcome is not None else [None] * len(batch)
                ended = [(entry, result, None) for entry, result in zip(batch, results, strict=True)]
            elif self._transient(outcome):
                now = time.monotonic()
                again = [e for e in batch if e.deadline is None or now < e.deadline]
                ended = [(e, None, outcome) for e in batch if e.deadline is not None and now >= e.deadline]
                if again:
                    self._waiting.extendleft(reversed(again))
                    pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._failures, 16)) * random.uniform(0.75, 1.25)
                    self._failures += 1
                    self._paused = True
            elif len(batch) > 1:
                middle = len(batch) // 2
                self._forced.extendleft((batch[middle:], batch[:middle]))
            else:
                ended = [(batch[0], None, outcome)]
        for entry, result, error in ended:
            try:
                entry.done(result, error)
            except Exception:
                log.exception("a callback of group commit failed")
        if pause:
            call_later(pause, self.resume)
        self.kick()

    def resume(self) -> None:
        """End the pause that a transient error made: try again now. Never blocks."""
        with self._lock:
            self._paused = False
        self.kick()

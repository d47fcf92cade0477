"""Group commit: one request in flight, whoever arrives meanwhile goes in the next.

Nobody leads. The completion of one request starts the next, so a caller that
is killed while it waits takes nobody along, and its item is still sent. There
is no timer: a caller alone waits one round trip, one among many at most two.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from psq.concurrency import Home, Waiter, call_later, original

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


#: Items that are over, each with its result or error.
_Ended = list["tuple[_Entry[T], Any, Exception | None]"]


class GroupCommit(Generic[T]):
    """Collects items for one destination and sends them in as few requests as the limits allow.

    Safe from any thread and greenlet, callbacks of the hub and native threads of a patched process
    included; `add` never blocks. Each item's `done` is called exactly once, in the thread that completed its
    request (or, of an item whose deadline passed while it waited, in whichever thread noticed), never
    under a lock: it may add items.

    An error that is transient is tried again with growing pauses until the item's deadline: then it is
    the item's. Any other is bisected to its culprit and never fails the other items. Items keep their order,
    but for those that are sent again.

    Args:
        start: Begins one request; see `Start`. What it raises is the request's error, as if nothing was sent.
        max_items: Most items in one request.
        max_bytes: Most bytes in one request, by the sizes given to `add`; a single larger item goes alone.
        in_flight: Requests at a time.
        transient: Tells whether an error may go away by itself.
        key: Gives an item's key, where one request may not name a key twice. Two items of one key may
            still be in flight at a time in two requests, where `in_flight` or `hasten` allow two.
        hasten: Seconds after which a request in flight does not hold back the next.
        longest_pause: Seconds that the pauses grow to.
        clock: Monotonic seconds.
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
        longest_pause: float = LONGEST_PAUSE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start, self._transient, self._key, self._hasten = start, transient, key, hasten
        self._max_items, self._max_bytes, self._limit = max_items, max_bytes, in_flight
        self._longest_pause, self._clock = longest_pause, clock
        # Native: it guards a few lines that never switch, and native threads of a patched process take it too
        self._lock = original("_thread", "allocate_lock")()
        self._home = Home()
        self._waiting: deque[_Entry[T]] = deque()
        self._forced: deque[list[_Entry[T]]] = deque()  # halves of a batch that was refused
        self._flights: dict[int, float] = {}  # number -> when it began
        self._number = 0
        self._full_until = 0.0  # not 0: as many requests as may be are in flight, none older than `hasten` before then
        self._failures = 0
        self._last_error: Exception | None = None  # transient
        self._resume_at = 0.0  # not 0: paused until then
        self._soonest = math.inf  # when the timer that is set looks next

    def __len__(self) -> int:
        """Items that wait for a request."""
        waiting = len(self._waiting)
        return waiting + sum(len(batch) for batch in list(self._forced)) if self._forced else waiting

    def idle(self) -> bool:
        """True when nothing waits and nothing is in flight."""
        return not (self._waiting or self._forced or self._flights)

    def add(self, item: T, size: int, done: Done, *, deadline: float | None = None) -> None:
        """Send an item with the next request.

        Args:
            item: What to send.
            size: Its bytes on the wire.
            done: Called once with (result, error); must not raise.
            deadline: Monotonic instant after which a transient error is final; None: never.
        """
        with self._lock:
            self._waiting.append(_Entry(item, size, done, deadline))
            if self._full_until and self._clock() < self._full_until:
                return  # the usual case under load: it goes with the next request
            look_at = self._timer_for(deadline) if self._resume_at and deadline is not None else 0.0
        if look_at:  # a pause must not outlast it
            self._look_at(look_at)
        self.kick()

    def submit(self, item: T, size: int, *, timeout: float | None = None) -> Any:
        """Send an item and wait for its result. Who is killed while waiting leaves the item: it is still sent.

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
        deadline = None if timeout is None else self._clock() + timeout
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
        if self._resume_at or not (self._waiting or self._forced):
            return None, 0
        flights = self._flights
        now = self._clock()
        if flights:
            young = [began for began in flights.values() if now - began < self._hasten]
            if len(young) >= self._limit:
                self._full_until = min(young) + self._hasten
                return None, 0
        batch = self._forced.popleft() if self._forced else self._cut()
        self._number += 1
        flights[self._number] = now
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
        begun = False

        def finish(outcome: Sequence[Any] | Exception | None) -> None:
            # Until `start` has returned, the loop in `kick` goes on by itself: a second one inside would
            # nest deeper with each request that completes at once
            self._finish(batch, number, outcome, lambda: begun)

        try:
            self._start([entry.item for entry in batch], finish)
        except Exception as error:
            finish(error)
        except BaseException:  # an interrupt of the caller: nobody can tell what was sent
            finish(RuntimeError("the request was interrupted while it began"))
            raise
        finally:
            begun = True

    def _finish(
        self,
        batch: list[_Entry[T]],
        number: int,
        outcome: Sequence[Any] | Exception | None,
        kicks: Callable[[], bool],
    ) -> None:
        look_at = 0.0
        with self._lock:
            if self._flights.pop(number, None) is None:
                return  # finished twice
            self._full_until = 0.0
            ended, again = self._judge(batch, outcome)
            if again:
                self._waiting.extendleft(reversed(again))
                pause = min(self._longest_pause, FIRST_PAUSE * 2 ** min(self._failures, 16)) * random.uniform(
                    0.75, 1.25
                )
                self._failures += 1
                self._resume_at = max(self._resume_at, self._clock() + pause)
                look_at = self._timer_for(min((e.deadline for e in again if e.deadline is not None), default=math.inf))
        if look_at:
            self._look_at(look_at)
        if kicks():  # read after the flight was taken off the list: whoever kicks from now on sees it gone
            self.kick()
        self._tell(ended)

    def _judge(
        self, batch: list[_Entry[T]], outcome: Sequence[Any] | Exception | None
    ) -> tuple[_Ended[T], list[_Entry[T]]]:
        """What is over, and what is to be sent again; halves of a refused batch go to `_forced`."""
        if outcome is not None and not isinstance(outcome, Exception) and len(outcome) != len(batch):
            outcome = RuntimeError(f"a request of {len(batch)} items was answered with {len(outcome)} results")
            return [(entry, None, outcome) for entry in batch], []
        if not isinstance(outcome, Exception):
            self._failures = 0
            results: Sequence[Any] = outcome if outcome is not None else [None] * len(batch)
            return [(entry, result, None) for entry, result in zip(batch, results, strict=True)], []
        if self._is_transient(outcome):
            now = self._clock()
            self._last_error = outcome
            over = [e for e in batch if e.deadline is not None and now >= e.deadline]
            return [(e, None, outcome) for e in over], [e for e in batch if e.deadline is None or now < e.deadline]
        if len(batch) > 1:
            middle = len(batch) // 2
            self._forced.extendleft((batch[middle:], batch[:middle]))
            return [], []
        return [(batch[0], None, outcome)], []

    def _is_transient(self, error: Exception) -> bool:
        try:
            return self._transient(error)
        except Exception:
            log.exception("group commit can't tell whether an error is transient")
            return False

    def _tell(self, ended: _Ended[T]) -> None:
        for entry, result, error in ended:
            try:
                entry.done(result, error)
            except Exception:
                log.exception("a callback of group commit failed")

    # pauses

    def _timer_for(self, deadline: float) -> float:
        """When to look again, or 0.0 where the timer that is set is early enough. Under the lock."""
        wanted = min(self._resume_at, deadline)
        if wanted >= self._soonest:
            return 0.0
        self._soonest = wanted
        return wanted

    def _look_at(self, instant: float) -> None:
        # A timer belongs to the hub; this may be a native thread
        self._home.run(lambda: call_later(max(0.0, instant - self._clock()), lambda: self._look(instant)))

    def _look(self, instant: float) -> None:
        """A timer fired: fail what is over, resume if it is time, else set the next timer."""
        ended: _Ended[T] = []
        look_at = 0.0
        with self._lock:
            if self._soonest >= instant:
                self._soonest = math.inf
            # A timer may be a little early, and the clock of a test stands still
            now = max(self._clock(), instant)
            if self._resume_at:
                kept: deque[_Entry[T]] = deque()
                soonest = math.inf
                for entry in self._waiting:
                    if entry.deadline is not None and now >= entry.deadline:
                        ended.append((entry, None, self._last_error))  # why there is a pause
                        continue
                    if entry.deadline is not None:
                        soonest = min(soonest, entry.deadline)
                    kept.append(entry)
                self._waiting = kept
                if now >= self._resume_at:
                    self._resume_at = 0.0
                else:
                    look_at = self._timer_for(soonest)
        if look_at:
            self._look_at(look_at)
        self.kick()
        self._tell(ended)

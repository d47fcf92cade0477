"""Receiving from a psq file: one claim in flight a queue, sent when there is room and something to have."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from psq.brokers.base import Delivery, QueueSpec, Receiver
from psq.concurrency import call_later, original
from psq.sqlite.database import Handle
from psq.sqlite.members import Forget
from psq.sqlite.messages import MAX_CLAIM, Claim, Claimed, GiveBack
from psq.sqlite.watch import FOREVER, PAUSE, Watch

__all__ = ["SQLiteReceiver"]


class SQLiteReceiver(Receiver):
    """Made by `SQLiteBroker.receiver`. `ask` and `stop` are for the consumer, the rest for watcher and writer.

    Args:
        handle: The broker's.
        queue: What is received.
        source: Its name in the file.
        deliver: Called through the outbox.
        ended: Called once it has stopped.

    Attributes:
        source: See above.
        version: Grows with each piece of news, so that an older look does not undo a newer one.
        next_at: Unix time from which there may be something: 0.0 when it is not known, infinity for nothing.
    """

    #: The watcher looks every 250 ms; a loaded machine may be late.
    poll_seconds = 5.0

    def __init__(
        self,
        handle: Handle,
        queue: QueueSpec,
        source: str,
        deliver: Callable[[list[Delivery]], None],
        ended: Callable[[SQLiteReceiver], None],
    ) -> None:
        self.source, self.version = source, 0
        self.stats = {"receives": 0, "empty": 0, "messages": 0, "errors": 0}
        self._handle, self._queue, self._deliver, self._ended = handle, queue, deliver, ended
        self._lock: Any = original("_thread", "allocate_lock")()
        self._watch: Watch | None = None
        self._open = False
        self._asked = 0  # what the consumer can take, by its own count
        self._pending = 0  # claimed, and not yet handed to it
        self._claim: Claim | None = None
        self._sure = False  # the last claim left something
        self.next_at = 0.0
        self._answered_at = 0.0
        self._stopped: list[Callable[[], None]] = []
        self._over = False

    @property
    def answered_at(self) -> float:  # type: ignore[override]
        """As the seam says; the watcher's looks count: they ask for all queues at once."""
        watch = self._watch
        return max(self._answered_at, watch.answered_at) if watch is not None else self._answered_at

    @property
    def requests(self) -> int:  # type: ignore[override]
        """As the seam says."""
        return 1 if self._claim is not None else 0

    def start(self) -> None:
        """As the seam says."""
        if self._open or self._over:
            return
        self._open = True
        self._watch = self._handle.database.watch()
        self._watch.add(self)
        self.ask(self._asked)

    def ask(self, n: int) -> None:
        """As the seam says."""
        self._asked = n
        if n > self._pending and self._claim is None:
            self._go()

    def _go(self) -> None:
        """Claim, if there is room and something to have; else be called when there is."""
        now = time.time()
        with self._lock:
            count = self._asked - self._pending
            if self._claim is not None or count <= 0 or not self._open:
                return
            next_at = self.next_at
            if next_at <= now:
                version = self.version
                claim = self._claim = Claim(
                    self._queue,
                    self.source,
                    min(count, MAX_CLAIM),
                    not self._sure,
                    lambda result, error: self._claimed(claim, version, result, error),
                )
                self.stats["receives"] += 1
            elif next_at < FOREVER and self._watch is not None:
                self._watch.wake_at(next_at)
                return
            else:
                return
        self._handle.add(claim)

    def _claimed(self, claim: Claim, version: int, result: Claimed | None, error: Exception | None) -> None:
        """In the writer's thread, after its commit."""
        deliveries = result.deliveries if result is not None else []
        if claim.cancelled:
            if deliveries:
                keys = [delivery.lease_key for delivery in deliveries]
                self._handle.add(GiveBack(self.source, keys, 0.0, lambda result, error: None))
            return
        with self._lock:
            self._claim = None
            if result is None:
                self.stats["errors"] += 1
                self.error = str(error)
                self.next_at, self._sure = time.time() + PAUSE, False
            else:
                self._answered_at = time.monotonic()
                self.error = ""
                self.next_at = result.next_at if version == self.version else 0.0
                self._sure = result.next_at == 0.0
                self.stats["messages" if deliveries else "empty"] += len(deliveries) or 1
                self._pending += len(deliveries)
        if deliveries:
            self._handle.outbox.add(self._arrived, deliveries, None)
        self._go()
        self._finish()

    def _arrived(self, deliveries: list[Delivery], error: Exception | None) -> None:
        """Through the outbox."""
        with self._lock:
            self._pending -= len(deliveries)
            self._asked = max(0, self._asked - len(deliveries))
        self._deliver(deliveries)
        self._go()
        self._finish()

    # the watcher's

    def seen(self, next_at: float, version: int) -> None:
        """See `Watched`."""
        with self._lock:
            if version != self.version:  # it was woken meanwhile
                return
            self.version += 1
            self.next_at = next_at
        self._go()

    def woken(self, at: float) -> None:
        """See `Watched`."""
        with self._lock:
            self.version += 1
            self.next_at = min(self.next_at, at)
        self._go()

    def wants(self) -> float:
        """See `Watched`."""
        waits = self._open and self._claim is None and self._asked > self._pending
        return self.next_at if waits else FOREVER

    def due(self, now: float) -> None:
        """See `Watched`."""
        self._go()

    def failed(self, text: str) -> None:
        """See `Watched`."""
        self.error = text

    # stop

    def stop(self, grace: float, stopped: Callable[[], None]) -> None:
        """As the seam says."""
        with self._lock:
            self._open = False
            self._stopped.append(stopped)
            waits = self._claim is not None or self._pending > 0
        if self._watch is not None:
            self._watch.remove(self)
        if not waits:
            self._finish()
        elif grace > 0:
            call_later(grace, self._cancel)
        else:
            self._cancel()

    def _cancel(self) -> None:
        with self._lock:
            claim, self._claim = self._claim, None
        if claim is not None:
            claim.cancelled = True
        self._finish()

    def _finish(self) -> None:
        """Say that it has stopped, once nothing is on its way."""
        with self._lock:
            if self._open or self._claim is not None or self._pending > 0 or not self._stopped:
                return
            stopped, self._stopped = self._stopped, []
            first, self._over = not self._over, True
        if first:
            self._ended(self)
            if self._queue.broadcast and self._queue.delete_on_close:
                self._handle.add(Forget(self._queue.name, self._queue.member, lambda result, error: None))
        self._handle.outbox.send([(_call, call, None) for call in stopped])


def _call(function: Callable[[], None], error: Exception | None) -> None:
    function()

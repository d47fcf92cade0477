"""Long-lived worker greenlets, started on demand; never one per task (8 µs of CPU a task against 21, measured)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import gevent
from gevent.queue import SimpleQueue

from psq.brokers.base import Delivery
from psq.errors import TaskInterrupted

__all__ = ["Pool"]


class Pool:
    """Runs deliveries on at most `size` greenlets, in the order in which they came.

    Everything runs on the hub; only `join` and `kill` block.

    Args:
        name: The queue's name, for the greenlets' names.
        size: Greenlets at most; may be changed at any time.
        run: Runs one delivery to its outcome; must not raise.

    Attributes:
        ready: Deliveries that wait for a greenlet.
        running: Deliveries that run.
    """

    def __init__(self, name: str, size: int, run: Callable[[Delivery], None]) -> None:
        self.name, self._run = name, run
        self.ready: deque[Delivery] = deque()
        self.running = 0
        self._size = size
        self._wake: SimpleQueue[None] = SimpleQueue()  # a token for each delivery
        self._idle = 0  # greenlets that wait for a token, those just spawned included
        self._greenlets: set[gevent.Greenlet[[], None]] = set()

    @property
    def size(self) -> int:
        """Greenlets at most."""
        return self._size

    @size.setter
    def size(self, value: int) -> None:
        self._size = value
        for _ in range(min(self._idle, len(self._greenlets) - value)):
            self._wake.put(None)  # a greenlet too many wakes, finds nothing, and ends
        self._spawn()

    def put(self, deliveries: list[Delivery]) -> None:
        """Run these as soon as there are greenlets for them."""
        self.ready.extend(deliveries)
        for _ in deliveries:
            self._wake.put(None)
        self._spawn()

    def take_back(self, older_than: float | None = None) -> list[Delivery]:
        """Take out what waits and has not begun.

        Args:
            older_than: Only what arrived before this monotonic instant; None: all.
        """
        taken: list[Delivery] = []
        while self.ready and (older_than is None or self.ready[0].arrived_at < older_than):
            taken.append(self.ready.popleft())
        return taken

    def discard(self, delivery: Delivery) -> bool:
        """Take one out that waits and has not begun; False where it does not."""
        try:
            self.ready.remove(delivery)
        except ValueError:
            return False
        return True

    def join(self, timeout: float) -> bool:
        """Wait until nothing runs and nothing waits.

        Args:
            timeout: Seconds.

        Returns:
            True if so, False if the time ran out.
        """
        self.size = 0
        gevent.joinall(list(self._greenlets), timeout=max(0.0, timeout))
        return not self.running

    def kill(self, timeout: float) -> bool:
        """Interrupt what runs, and wait for it.

        Args:
            timeout: Seconds.

        Returns:
            False if some task is still there: it swallowed the interrupt, or never yields.
        """
        self.size = 0
        greenlets = list(self._greenlets)
        gevent.killall(greenlets, exception=TaskInterrupted, block=False)
        gevent.joinall(greenlets, timeout=max(0.0, timeout))
        return not self.running

    def _spawn(self) -> None:
        while self._idle < len(self.ready) and len(self._greenlets) < self._size:
            greenlet = gevent.spawn(self._work)
            greenlet.name = f"psqd task of {self.name}"
            self._greenlets.add(greenlet)
            greenlet.rawlink(self._ended)
            self._idle += 1

    def _ended(self, greenlet: Any) -> None:
        self._greenlets.discard(greenlet)
        self._spawn()  # it may have been killed while deliveries wait

    def _work(self) -> None:
        ready, get, run = self.ready, self._wake.get, self._run
        waiting = True
        try:
            while len(self._greenlets) <= self._size:
                get()
                if not ready:
                    continue  # its delivery was taken back
                delivery = ready.popleft()
                self._idle -= 1
                waiting = False
                self.running += 1
                try:
                    run(delivery)
                finally:
                    self.running -= 1
                    self._idle += 1
                    waiting = True
        except TaskInterrupted:
            pass  # interrupted while it waited for a delivery
        finally:
            if waiting:
                self._idle -= 1

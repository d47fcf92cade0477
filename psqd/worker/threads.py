"""The hub's native threads: calls that block in C take one each, and acks, results and DNS need some too."""

from __future__ import annotations

import logging
from math import inf
from typing import Protocol

__all__ = ["MOST", "SPARE", "Threads"]

#: Threads beside one for each task, and most of all.
SPARE, MOST = 16, 256
#: Seconds between two warnings.
TELL_PAUSE = 60.0
#: Looks in a row at which all are taken before it is told: a burst of look-ups is over sooner.
LOOKS = 3

log = logging.getLogger("psqd")


class ThreadPool(Protocol):
    """What is used of `gevent.threadpool.ThreadPool`."""

    maxsize: int

    def __len__(self) -> int:
        """Calls under way."""


class Threads:
    """Sizes the hub's thread pool, and tells when all of it is taken.

    Google's clients and DNS look-ups of tasks block one thread each for as long as they wait. Threads come on demand.

    Args:
        pool: The hub's.
    """

    def __init__(self, pool: ThreadPool) -> None:
        self._pool = pool
        self._full = 0
        self._tell_at = -inf

    def size(self, tasks: int) -> None:
        """Allow for so many tasks at a time."""
        self._pool.maxsize = min(MOST, SPARE + tasks)

    @property
    def most(self) -> int:
        """Threads that there may be."""
        return self._pool.maxsize

    @property
    def taken(self) -> int:
        """Threads that are taken."""
        return min(len(self._pool), self._pool.maxsize)

    def look(self, now: float) -> None:
        """Once a second: tell, if none is left for longer than a moment.

        Args:
            now: Monotonic.
        """
        self._full = self._full + 1 if len(self._pool) >= self._pool.maxsize else 0
        if self._full >= LOOKS and now >= self._tell_at:
            self._tell_at = now + TELL_PAUSE
            log.warning(
                "all %d native threads are taken by calls that block (Google's clients, DNS): acks, results and "
                "look-ups of names wait until one ends; fewer such tasks at a time help (concurrency)",
                self._pool.maxsize,
            )

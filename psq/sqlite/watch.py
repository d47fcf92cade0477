"""One native thread per process and file that knows which queues have something.

It sleeps until it is woken, until the next due time or end of a lease, or for a
quarter of a second; then one query tells about all queues.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from psq.concurrency import native_thread, original
from psq.sqlite.opening import inode, reader
from psq.sqlite.wakeup import Bell, Touched

__all__ = ["Watch", "Watched"]

#: Seconds between looks at ``data_version``: what datagrams missed is seen so much later.
NET = 0.25
#: Pause after the file could not be read, seconds.
PAUSE = 1.0
FOREVER = float("inf")

# From one queue that has something to the next: those that are empty cost nothing. And one row, so that a
# thousand queues cost the thread its turn once.
_QUERY = """
    WITH RECURSIVE queue (name) AS (
        SELECT min(queue) FROM message
        UNION ALL SELECT (SELECT min(queue) FROM message WHERE queue > name) FROM queue WHERE name IS NOT NULL)
    SELECT json_group_object(name, (SELECT min(visible_at) FROM message WHERE queue = name))
    FROM queue WHERE name IS NOT NULL"""


class Watched(Protocol):
    """A receiver, as the watcher knows it. All of it is called in native threads and must not block or raise."""

    source: str
    version: int
    next_at: float

    def seen(self, next_at: float, version: int) -> None:
        """The queue was looked at when `version` was the receiver's: something is there from `next_at` on."""

    def woken(self, at: float) -> None:
        """Something was committed that may be had from `at` on."""

    def wants(self) -> float:
        """Unix time when it wants to be called again: what it waits for; infinity for nothing."""

    def due(self, now: float) -> None:
        """The time that it waited for is there."""

    def failed(self, text: str) -> None:
        """The file could not be read."""


class Watch:
    """Watches a file for all receivers of this process. `add`, `remove` and `touched` are for any thread.

    Args:
        path: Of the file.

    Attributes:
        answered_at: Monotonic instant of the last look that succeeded.
        gate: Held while the thread is inside SQLite.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.answered_at = 0.0
        self.gate: Any = original("_thread", "allocate_lock")()
        self.bell = Bell(path)
        self._lock: Any = original("_thread", "allocate_lock")()
        self._receivers: dict[str, list[Watched]] = {}
        self._all: tuple[Watched, ...] = ()
        self._wake_at = 0.0
        self._closed = False
        self.connection: sqlite3.Connection | None = None
        self._data_version, self._inode = -1, (0, 0)
        self._ended: Any = original("_thread", "allocate_lock")()
        self._ended.acquire()
        self.looks = 0
        native_thread(self._run)

    def add(self, receiver: Watched) -> None:
        """Tell this receiver what there is."""
        with self._lock:
            self._receivers.setdefault(receiver.source, []).append(receiver)
            self._index()

    def remove(self, receiver: Watched) -> None:
        """Forget this receiver. Idempotent."""
        with self._lock:
            same = self._receivers.get(receiver.source, [])
            if receiver in same:
                same.remove(receiver)
            if not same:
                self._receivers.pop(receiver.source, None)
            self._index()

    def _index(self) -> None:
        self._all = tuple(receiver for same in self._receivers.values() for receiver in same)

    def touched(self, touched: Touched) -> None:
        """This process has committed something, or another one says so."""
        for source, at in touched.items():
            for receiver in tuple(self._receivers.get(source, ())):
                receiver.woken(at)

    def wake_at(self, at: float) -> None:
        """Call `due` of who waits for it, no later than at this unix time. Cheap."""
        if at < self._wake_at:
            self._sooner(at)
            self.bell.ring()

    def _sooner(self, at: float) -> None:
        with self._lock:
            self._wake_at = min(self._wake_at, at)

    def close(self) -> None:
        """End the thread; waits for it, for a second at most."""
        self._closed = True
        self.bell.ring()
        self._ended.acquire(True, 1.0)

    def _run(self) -> None:
        net_at = 0.0
        while True:
            wait = min(net_at - time.monotonic(), self._wake_at - time.time())
            news = self.bell.wait(wait)
            if self._closed:
                break
            try:
                if news:
                    self.touched(news)
                if (now := time.monotonic()) >= net_at or news is None:
                    net_at = now + (NET if self._looked(everything=news is None) else PAUSE)
                if time.time() >= self._wake_at:
                    self._due()
            except Exception:  # a receiver that raises must not end the thread: all others wait for it
                sys.stderr.write(traceback.format_exc())
                net_at = time.monotonic() + PAUSE
        with self.gate:
            self.close_file()
        self.bell.close()
        self._ended.release()

    def _looked(self, *, everything: bool) -> bool:
        """Look whether anything has changed, and tell the receivers; False when the file can't be read."""
        try:
            with self.gate:
                found = self._look(everything)
        except sqlite3.Error as error:
            with self.gate:
                self.close_file()
            for receiver in self._all:
                receiver.failed(f"{self._path} can't be read: {error}")
            return False
        self.answered_at = time.monotonic()
        if found is not None:
            receivers, versions, at_of = found
            for receiver, version in zip(receivers, versions, strict=True):
                at = at_of.get(receiver.source, FOREVER)
                if at != receiver.next_at:
                    receiver.seen(at, version)
            self._due()
        return True

    def _look(self, everything: bool) -> tuple[Sequence[Watched], Sequence[int], Mapping[str, float]] | None:
        if self.connection is not None and self._inode != inode(self._path):  # removed or replaced
            self.close_file()
        if self.connection is None:
            self.connection = reader(self._path)
            self._data_version, self._inode = -1, inode(self._path)
            self.bell.bind()
        version = self.connection.execute("PRAGMA data_version").fetchone()[0]
        if version == self._data_version and not everything:
            return None
        self._data_version = version
        receivers = self._all
        versions = [receiver.version for receiver in receivers]
        found = json.loads(self.connection.execute(_QUERY).fetchone()[0])
        self.looks += 1
        return receivers, versions, found

    def _due(self) -> None:
        now = time.time()
        receivers = self._all
        self._wake_at = FOREVER  # whoever asks from now on is not forgotten by what follows
        hopeful = [receiver for receiver in receivers if receiver.next_at < FOREVER]
        for receiver in hopeful:
            if receiver.wants() <= now:
                receiver.due(now)
        self._sooner(min((receiver.wants() for receiver in hopeful), default=FOREVER))

    def close_file(self) -> None:
        """Close it; the next look opens it again. With the gate held."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()

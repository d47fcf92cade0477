"""The one native thread that writes to a file, with group commit.

`Work` is what can be written: each kind of work is written for all its items at
once. The hub, or a caller's thread, hands work over and goes on; the thread
commits whatever has come meanwhile in one transaction.

A thread that gives the interpreter's lock away gets it back after up to 5 ms
when the hub is busy, and every call into SQLite gives it away. So there are as
few statements a commit as can be, whatever the number of items.
"""

from __future__ import annotations

import random
import sqlite3
import sys
import time
import traceback
from _queue import Empty, SimpleQueue
from collections.abc import Callable, Sequence
from typing import Any

from psq.concurrency import Waiter, native_thread, original
from psq.group_commit import Done, Finish, GroupCommit
from psq.sqlite.opening import connect, inode, is_locked, is_transient, translate
from psq.sqlite.work import LATER, Careful, Outbox, Transaction, Work

__all__ = ["Writer"]

#: Most items and bytes in one transaction: it holds the lock against other processes.
MAX_ITEMS, MAX_BYTES = 2000, 32 * 1024 * 1024
#: Pauses while another process holds the lock, seconds. SQLite's own busy handler starved one writer of four.
SHORTEST_WAIT, LONGEST_WAIT = 0.0005, 0.002
#: Seconds between looks at deadlines while the lock is waited for.
LOOK = 0.05
#: Pause before work is tried again that failed for the moment (a full disk), seconds.
RETRY_PAUSE = 0.05
#: Seconds between looks whether the file is still the one that we opened.
CHECK_FILE = 0.5


class _Request:
    __slots__ = ("finish", "works")

    def __init__(self, works: Sequence[Work], finish: Finish) -> None:
        self.works, self.finish = works, finish


class Writer:
    """Writes everything of this process to one file. Safe from any thread and greenlet.

    Args:
        path: Of the file; opened by the thread, at the first work.
        synchronous: ``FULL`` or ``NORMAL``.
        committed: Called after each commit with what was touched; must not block or raise.

    Attributes:
        outboxes: Flushed after each commit.
        connection: While the file is open.
        gate: Held while the thread is inside SQLite.
    """

    def __init__(self, path: str, synchronous: str, committed: Callable[[dict[str, float]], None]) -> None:
        self.path, self._synchronous, self._committed = path, synchronous, committed
        self._mode = synchronous
        self.outboxes: tuple[Outbox, ...] = ()
        self.connection: sqlite3.Connection | None = None
        self.counters = {"commits": 0, "items": 0, "lock_waits": 0, "lock_wait_seconds": 0.0, "retries": 0}
        self.gate: Any = original("_thread", "allocate_lock")()
        self._inode: tuple[int, int] = (0, 0)
        self._checked_at = 0.0
        self._requests: SimpleQueue[_Request | None] = SimpleQueue()
        self._commit: GroupCommit[Work] = GroupCommit(
            self._start, max_items=MAX_ITEMS, max_bytes=MAX_BYTES, hasten=LOOK
        )
        self._sleep = original("time", "sleep")
        self._give_up_at: float | None = None
        self._looked_at = 0.0
        self._ended: Waiter | None = None
        native_thread(self._serve)

    def add(self, work: Work) -> None:
        """Write it with the next commit. Never blocks."""
        self._commit.add(work, work.weight(), work.complete)

    def call(self, work: Callable[[Done], Work]) -> Any:
        """Write something and wait for its result.

        Args:
            work: Makes it, given its `done`.

        Raises:
            PsqError: As its kinds say.
        """
        waiter = Waiter()
        self.add(work(lambda result, error: waiter.set((result, error))))
        waiter.wait()
        result, error = waiter.value
        if error is not None:
            raise error
        return result

    def kick(self) -> None:
        """As `GroupCommit.kick`."""
        self._commit.kick()

    def close(self, timeout: float) -> None:
        """Write what waits, close the file, end the thread; what could not be written in time fails.

        Args:
            timeout: Seconds.
        """
        self._ended = ended = Waiter()
        self._give_up_at = time.monotonic() + timeout
        self._requests.put(None)
        ended.wait(timeout + 1.0)

    # in the thread

    def _start(self, works: Sequence[Work], finish: Finish) -> None:
        self._requests.put(_Request(works, finish))

    def _serve(self) -> None:
        closing = False
        while not (closing and self._requests.empty() and self._commit.idle()):
            request = self._requests.get() if not closing else self._next(0.01)
            if request is None:
                closing = closing or self._give_up_at is not None
                self._commit.kick()
                continue
            try:
                self._write(self._gather([request]))
                self._flush()
            except Exception:  # a callback that raises must not end the thread: everybody waits for it
                sys.stderr.write(traceback.format_exc())
        self.close_file()
        if self._ended is not None:
            self._ended.set()

    def _next(self, seconds: float) -> _Request | None:
        try:
            return self._requests.get(timeout=seconds)
        except Empty:
            return None

    def _gather(self, requests: list[_Request]) -> list[_Request]:
        while not self._requests.empty():
            request = self._requests.get()
            if request is None:  # close: seen again when this is written
                self._requests.put(None)
                break
            requests.append(request)
        return requests

    def _flush(self) -> None:
        for outbox in self.outboxes:
            outbox.flush()

    def _write(self, requests: list[_Request]) -> None:
        try:
            touched = self._transact(requests)
        except _AllOver:
            touched = {}
        except Exception as error:
            if len(requests) > 1:  # any of them may be the culprit
                for request in requests:
                    self._write([request])
                return
            self._failed(requests[0], error)
            return
        if touched:
            self._committed(touched)
        for request in requests:
            request.finish([work.result for work in request.works])

    def _failed(self, request: _Request, error: Exception) -> None:
        live = [work for work in request.works if not work.over]
        opening = self.connection is None
        if len(live) > 1 and not opening:
            request.finish(error)  # halves it, until the culprit stands alone
            return
        again: list[Work] = []
        now = time.monotonic()
        for work in live:
            waits = work.deadline is None or now < work.deadline
            if is_transient(error) and waits and self._give_up_at is None:
                again.append(work)
            else:
                work.complete(None, translate(error, work.kinds, self.path))
        if again:
            self.counters["retries"] += 1
            self._sleep(RETRY_PAUSE)
        request.finish([LATER] * len(request.works))
        for work in again:
            self.add(work)

    def _transact(self, requests: list[_Request]) -> dict[str, float]:
        careful, waited_since = False, 0.0
        while True:
            try:
                with self.gate:
                    touched = self._attempt(requests, careful)
                break
            except Careful:
                careful = True
            except sqlite3.Error as error:
                if not is_locked(error):
                    raise
                waited_since = waited_since or time.monotonic()
                self._wait(requests)
        if waited_since:
            self.counters["lock_waits"] += 1
            self.counters["lock_wait_seconds"] += time.monotonic() - waited_since
        return touched

    def _attempt(self, requests: list[_Request], careful: bool) -> dict[str, float]:
        connection = self._open()
        kinds: dict[type[Work], list[Work]] = {}
        for request in requests:
            for work in request.works:
                if not work.over:
                    work.result = None
                    kinds.setdefault(type(work), []).append(work)
        if all(work.unlocked(connection) for works in kinds.values() for work in works):
            return {}
        self._set_synchronous(connection, any(kind.durable for kind in kinds))
        connection.execute("BEGIN IMMEDIATE")
        try:
            tx = Transaction(connection, careful)
            for kind in sorted(kinds, key=lambda kind: kind.order):
                results = kind.write(tx, kinds[kind])
                if results is not None:
                    for work, result in zip(kinds[kind], results, strict=True):
                        work.result = result
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self.counters["commits"] += 1
        self.counters["items"] += sum(map(len, kinds.values()))
        return tx.touched

    def _set_synchronous(self, connection: sqlite3.Connection, durable: bool) -> None:
        """Whether the next commit waits for the disk. One that does not is on disk with the next one that does."""
        mode = self._synchronous if durable else "NORMAL"
        if mode != self._mode:
            connection.execute(f"PRAGMA synchronous = {mode}")
            self._mode = mode

    def _open(self) -> sqlite3.Connection:
        now = time.monotonic()
        if self.connection is not None and now - self._checked_at > CHECK_FILE:
            self._checked_at = now
            if inode(self.path) != self._inode:  # removed or replaced: what we wrote there would be lost
                self.close_file()
        if self.connection is None:
            self.connection = connect(self.path, self._synchronous)
            self._mode = self._synchronous
            self._inode = inode(self.path)
        return self.connection

    def close_file(self) -> None:
        """Close it; the next work opens it again. With the gate held, or in the thread."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()

    def _wait(self, requests: list[_Request]) -> None:
        """A short random pause while the lock is another's. Whose time is over meanwhile fails, the others stay."""
        self._sleep(random.uniform(SHORTEST_WAIT, LONGEST_WAIT))
        now = time.monotonic()
        if now - self._looked_at < LOOK:
            return
        self._looked_at = now
        self._commit.kick()
        self._gather(requests)
        give_up = self._give_up_at is not None and now >= self._give_up_at
        left = False
        for request in requests:
            for work in request.works:
                if not work.over and (give_up or (work.deadline is not None and now >= work.deadline)):
                    work.complete(None, work.kinds.unavailable(f"{self.path} is locked by another process"))
                left = left or not work.over
        self._flush()
        if not left:
            raise _AllOver


class _AllOver(Exception):
    """Nobody waits for this transaction any more."""

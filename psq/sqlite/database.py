"""A psq file as this process has it open: one writer, some readers, one watcher, for all who use it."""

from __future__ import annotations

import atexit
import os
import sqlite3
import time
from collections.abc import Sequence
from typing import Any, Self

from psq.concurrency import Waiter, original
from psq.group_commit import Done
from psq.sqlite.opening import Kinds, inode, is_locked, reader, translate
from psq.sqlite.wakeup import Ringer, Touched
from psq.sqlite.watch import Watch
from psq.sqlite.writer import Outbox, Transaction, Work, Writer

__all__ = ["Database", "Handle", "Open"]

#: Seconds that `close` waits for what is not written yet, and the end of the process does.
CLOSE_TIMEOUT, EXIT_TIMEOUT = 10.0, 2.0
#: Seconds that a reader waits while the file is locked as a whole (it is being recovered, or made).
READ_TIMEOUT = 5.0


class Open(Work):
    """Writes nothing: it is done once the file is open, and everything before it is written."""

    __slots__ = ()
    order = 100

    def unlocked(self, connection: sqlite3.Connection) -> bool:
        """The file is open by now."""
        return True

    @classmethod
    def write(cls, tx: Transaction, works: Sequence[Self]) -> None:
        """Nothing."""


class Database:
    """Shared by all brokers and storages of this process on one file; see `Handle`.

    Args:
        path: Absolute, without links.
        synchronous: ``FULL`` or ``NORMAL``.
    """

    def __init__(self, path: str, synchronous: str) -> None:
        self.path = path
        self.users = 0
        self.writer = Writer(path, synchronous, self._committed)
        self._ringer = Ringer(path)
        self._watch: Watch | None = None
        self._lock: Any = original("_thread", "allocate_lock")()
        self._readers: list[sqlite3.Connection] = []
        self._inode = (0, 0)
        self._closed = False

    def watch(self) -> Watch:
        """The watcher; its thread starts when it is first asked for."""
        with self._lock:
            if self._watch is None:
                self._watch = Watch(self.path)
                self._ringer.own = self._watch.bell.name
            return self._watch

    def _committed(self, touched: Touched) -> None:
        watch = self._watch
        if watch is not None:
            watch.touched(touched)
        self._ringer.ring(touched)

    def read(self, sql: str, parameters: Sequence[Any], kinds: Kinds) -> list[tuple[Any, ...]]:
        """All rows of a query, read by the caller.

        Raises:
            PsqError: As `kinds` say.
        """
        deadline = time.monotonic() + READ_TIMEOUT
        while True:
            try:
                connection = self._reader(kinds)
                try:
                    rows: list[tuple[Any, ...]] = connection.execute(sql, parameters).fetchall()
                except BaseException:
                    connection.close()
                    raise
            except sqlite3.Error as error:
                if not is_locked(error) or time.monotonic() >= deadline:
                    raise translate(error, kinds, self.path) from error
                time.sleep(0.005)  # gevent's own, once patched
                continue
            with self._lock:
                self._readers.append(connection)
            return rows

    def _reader(self, kinds: Kinds) -> sqlite3.Connection:
        now = inode(self.path)
        if now != self._inode or now == (0, 0):  # not opened yet, removed or replaced
            self.writer.call(lambda done: Open(done, kinds))
            with self._lock:
                old, self._readers = self._readers, []
                self._inode = inode(self.path)
            for connection in old:
                connection.close()
        with self._lock:
            if self._readers:
                return self._readers.pop()
        return reader(self.path)

    def close(self, timeout: float) -> None:
        """Write what waits and end both threads. Idempotent."""
        if self._closed:
            return
        self._closed = True
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()
        self.writer.close(timeout)
        self._ringer.close()
        with self._lock:
            readers, self._readers = self._readers, []
        for connection in readers:
            connection.close()

    @property
    def wakeups(self) -> int:
        """Datagrams sent to other processes."""
        return self._ringer.sent

    def abandon(self) -> list[sqlite3.Connection]:
        """In a forked child: let go of the sockets; the connections, which must not even be closed."""
        found = [self.writer.connection, *self._readers]
        self._ringer.close()
        if self._watch is not None:
            found.append(self._watch.connection)
            self._watch.bell.close()
        return [one for one in found if one is not None]


_databases: dict[str, Database] = {}
_lock: Any = original("_thread", "allocate_lock")()
_generation = 0


class Handle:
    """One owner's way to a file: made anew after a fork, counted, with an outbox of its own.

    Args:
        path: Absolute, without links.
        synchronous: Of whoever is first.
        owner: Has `dispatch`.
        kinds: Which errors it gets.
    """

    def __init__(self, path: str, synchronous: str, owner: Any, kinds: Kinds) -> None:
        self.path, self.kinds = path, kinds
        self._synchronous = synchronous
        self._database: Database | None = None
        self._generation = -1
        self.outbox = Outbox(lambda: owner.dispatch)

    @property
    def database(self) -> Database:
        """The file, as this process has it open."""
        if self._database is None or self._generation != _generation:
            return self._attach()
        return self._database

    def _attach(self) -> Database:
        with _lock:
            if self._database is not None and self._generation == _generation:
                return self._database
            database = _databases.get(self.path)
            if database is None:
                database = _databases[self.path] = Database(self.path, self._synchronous)
            database.users += 1
            if self._generation != _generation and self._generation >= 0:
                self.outbox.clear()  # the parent's callbacks are the parent's
            database.writer.outboxes = (*database.writer.outboxes, self.outbox)
            self._database, self._generation = database, _generation
            return database

    @property
    def is_open(self) -> bool:
        """True while it holds the file."""
        return self._database is not None and self._generation == _generation

    def add(self, work: Work) -> None:
        """Write it with the next commit. Never blocks."""
        self.database.writer.add(work)

    def call(self, work: Any) -> Any:
        """Write something and wait; see `Writer.call`."""
        return self.database.writer.call(work)

    def open(self) -> None:
        """Wait until the file is open.

        Raises:
            PsqError: It can't be.
        """
        self.call(lambda done: Open(done, self.kinds))

    def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query. Blocking."""
        return self.database.read(sql, parameters, self.kinds)

    def fail(self, done: Done, error: Exception) -> None:
        """Call `done` with an error that was found before anything was sent."""
        self.outbox.send([(done, None, error)])

    def forget(self) -> None:
        """In a forked child: the next use attaches anew."""
        self._database = None

    def close(self) -> None:
        """Write what waits, then let go; the last one closes the file. Idempotent."""
        database = self._database
        if database is None or self._generation != _generation:
            return
        with _lock:
            self._database = None
            database.users -= 1
            last = database.users == 0
            if last:
                _databases.pop(self.path, None)
        if last:
            database.close(CLOSE_TIMEOUT)
        else:
            waiter = Waiter()  # through the outbox: what was called before is called before
            database.writer.add(Open(lambda result, error: waiter.set(), self.kinds, self.outbox, CLOSE_TIMEOUT))
            waiter.wait(CLOSE_TIMEOUT + 1.0)
            with _lock:
                outboxes = database.writer.outboxes
                database.writer.outboxes = tuple(one for one in outboxes if one is not self.outbox)


def _after_fork() -> None:
    """The parent's threads are gone, and its connections must not be touched: not even closed."""
    global _lock, _generation
    _lock = original("_thread", "allocate_lock")()
    _generation += 1
    inherited = [connection for database in _databases.values() for connection in database.abandon()]
    _databases.clear()
    if inherited:
        # Closing one that was in a transaction would undo it, in memory that the parent uses.
        import ctypes

        for connection in inherited:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


def _at_exit() -> None:
    with _lock:
        databases = list(_databases.values())
        _databases.clear()
    for database in databases:
        database.close(EXIT_TIMEOUT)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
